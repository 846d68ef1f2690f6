"""The aten table: which of our ops each aten op becomes, one file a family."""

import torch

from planish.compiler.importers import (
    aten_contract,
    aten_convolve,
    aten_create,
    aten_elementwise,
    aten_exponential,
    aten_index,
    aten_normalize,
    aten_pool,
    aten_reduce,
    aten_resize,
    aten_shape,
)
from planish.compiler.importers.builder import Table

aten = torch.ops.aten

TABLE: Table = {
    **aten_elementwise.TABLE,
    **aten_exponential.TABLE,
    **aten_contract.TABLE,
    **aten_convolve.TABLE,
    **aten_normalize.TABLE,
    **aten_shape.TABLE,
    **aten_index.TABLE,
    **aten_create.TABLE,
    **aten_reduce.TABLE,
    **aten_pool.TABLE,
    **aten_resize.TABLE,
}

# Ops without a result that check what tracing has already fixed.
CHECKS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_async.msg,
        aten._assert_scalar.default,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)

# Schema arguments that say where and how a tensor is stored, which the IR does not.
STORAGE_ARGUMENTS = frozenset(
    {"device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "copy", "implicit"}
)
