"""The table of all CPU templates, in the order in which they are asked."""

from planish.codegen.template import Template
from planish.codegen.tvm.gemm import Gemm

TEMPLATES: tuple[Template, ...] = (Gemm(),)
