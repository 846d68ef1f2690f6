"""What CPU templates compute around their anchors."""

from planish.codegen.around import Around
from planish.codegen.tvm.elementwise import TABLE, refuse_elementwise
from planish.codegen.tvm.expression import EVALUATED

_AROUND = Around(TABLE, EVALUATED, refuse_elementwise)
fuses_after, fuses_before, refuse_around = _AROUND.fuses_after, _AROUND.fuses_before, _AROUND.refuse_around
