"""The table of all CPU templates, in the order in which they are asked."""

from planish.codegen.template import Template
from planish.codegen.tvm.attention import Attention
from planish.codegen.tvm.attention_wide import AttentionWide
from planish.codegen.tvm.cache_update import CacheUpdate
from planish.codegen.tvm.cached_attention import CachedAttention
from planish.codegen.tvm.columns import Columns
from planish.codegen.tvm.conv import Conv
from planish.codegen.tvm.depthwise import Depthwise
from planish.codegen.tvm.gemm import Gemm
from planish.codegen.tvm.greedy_tokens import GreedyTokens
from planish.codegen.tvm.group_norm import GroupNorm
from planish.codegen.tvm.grouped_linear import GroupedLinear
from planish.codegen.tvm.int8_linear import Int8Linear
from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import Kernel
from planish.codegen.tvm.map import Map
from planish.codegen.tvm.matmul import Matmul
from planish.codegen.tvm.pool import Pool
from planish.codegen.tvm.quantization import Quantization
from planish.codegen.tvm.quantized_embedding import QuantizedEmbedding
from planish.codegen.tvm.quantized_linear import QuantizedLinear
from planish.codegen.tvm.reduce import Reduce
from planish.codegen.tvm.rope import Rope
from planish.codegen.tvm.rounded_rows import RoundedRows
from planish.codegen.tvm.rows import Rows
from planish.codegen.tvm.scan import Scan

TEMPLATES: tuple[Template[Isa, Kernel], ...] = (
    *(
        Int8Linear(),
        QuantizedLinear(),
        Gemm(),
        GroupedLinear(),
        Matmul(),
        Depthwise(),
        Conv(),
        CachedAttention(),
        Attention(),
        AttentionWide(),
    ),
    CacheUpdate(),
    GreedyTokens(),
    *(Rows(), Columns(), Reduce(), GroupNorm(), Rope(), Pool(), Scan()),
    *(RoundedRows(), Quantization(), QuantizedEmbedding(), Map()),
)
