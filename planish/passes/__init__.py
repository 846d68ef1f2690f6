"""Passes, one a file: `ALL` of them, and the default order `EXACT`."""

from planish.compiler.pass_ import Pass
from planish.compiler.recipe import parse_pass as _parse_pass
from planish.passes.cancel_movements import CancelMovements
from planish.passes.compute_bf16 import ComputeBf16
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.fold_constants import FoldConstants
from planish.passes.fuse_activations import FuseActivations
from planish.passes.fuse_attention import FuseAttention
from planish.passes.fuse_bias import FuseBias
from planish.passes.fuse_norms import FuseNorms
from planish.passes.fuse_rope import FuseRope
from planish.passes.group_experts import GroupExperts
from planish.passes.merge_common_subexpressions import MergeCommonSubexpressions
from planish.passes.merge_parallel_linears import MergeParallelLinears
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.simplify_arithmetic import SimplifyArithmetic
from planish.passes.simplify_indices import SimplifyIndices

ALL: tuple[type[Pass], ...] = (
    MergeCommonSubexpressions,
    SimplifyIndices,
    SimplifyArithmetic,
    FoldConstants,
    CancelMovements,
    FuseNorms,
    FuseActivations,
    FuseRope,
    FuseAttention,
    GroupExperts,
    FuseBias,
    FoldBatchNorm,
    MergeParallelLinears,
    QuantizeWeights,
    ComputeBf16,
)

EXACT: tuple[Pass, ...] = (
    MergeCommonSubexpressions(),
    SimplifyIndices(),
    SimplifyArithmetic(),
    CancelMovements(sink=False),
    MergeCommonSubexpressions(),
    FuseNorms(),
    FuseActivations(),
    FuseRope(),
    FuseAttention(),
    GroupExperts(),
    CancelMovements(),
    FuseNorms(),
    FuseBias(),
    FoldBatchNorm(),
    FoldConstants(),
    MergeParallelLinears(),
    FoldConstants(),
    SimplifyArithmetic(),
    CancelMovements(),
    MergeCommonSubexpressions(),
)


def parse_pass(text: str) -> Pass:
    """The pass of a line such as `fold-constants{limit=3}`; raises PassError naming what is unknown."""
    return _parse_pass(text, ALL)


__all__ = ["ALL", "EXACT", "Pass", "parse_pass", *(kind.__name__ for kind in ALL)]
