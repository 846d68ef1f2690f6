"""The table of all GPU templates, in the order in which they are asked."""

from planish.codegen.template import Template
from planish.codegen.triton.attention import Attention
from planish.codegen.triton.block_attention import BlockAttention
from planish.codegen.triton.cache_update import CacheUpdate
from planish.codegen.triton.cached_attention import CachedAttention
from planish.codegen.triton.device import Device
from planish.codegen.triton.gemm import Gemm
from planish.codegen.triton.grouped import GroupedLinear
from planish.codegen.triton.grouped_quantized import GroupedQuantizedLinear
from planish.codegen.triton.int8_linear import F8Linear, Int8Linear
from planish.codegen.triton.kernel import Kernel
from planish.codegen.triton.map import Map
from planish.codegen.triton.matmul import Matmul
from planish.codegen.triton.quantization import Quantization
from planish.codegen.triton.quantized_linear import QuantizedLinear
from planish.codegen.triton.quantized_rows import QuantizedRows
from planish.codegen.triton.reduce import Reduce
from planish.codegen.triton.rows import Rows
from planish.codegen.triton.sampling import TokenChoice

TEMPLATES: tuple[Template[Device, Kernel], ...] = (
    Gemm(),
    QuantizedLinear(),
    Int8Linear(),
    F8Linear(),
    Matmul(),
    GroupedLinear(),
    GroupedQuantizedLinear(),
    CachedAttention(),
    Attention(),
    BlockAttention(),
    CacheUpdate(),
    Rows(),
    Reduce(),
    Quantization(),
    QuantizedRows(),
    Map(),
    TokenChoice(),
)
