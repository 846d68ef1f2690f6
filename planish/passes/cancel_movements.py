"""cancel-movements: transpose(transpose(x)) -> x, relu(transpose(x)) -> transpose(relu(x)), x + expand(y) -> x + y."""

from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.ir import Program
from planish.compiler.pass_ import Change, Context, Contract, Exact
from planish.compiler.rewrite import apply_steps
from planish.passes.matching import each_function
from planish.passes.movements import CANCEL
from planish.passes.sinking import SINK


@dataclass(frozen=True, slots=True)
class CancelMovements:
    """Removes reshapes, transposes and expansions that undo each other or that nothing needs.

    Transposes move towards the outputs through elementwise ops, reductions, joins and reshapes until they meet their
    inverse, so that a channels-first model computes channels-last with no transpose inside; an expansion in front of
    an op that broadcasts is dropped. A transpose stays where the op after it mixes the axes that it moved. `sink`
    false only cancels neighbours.
    """

    sink: bool = True
    name: ClassVar[str] = "cancel-movements"
    contract: ClassVar[Contract] = Exact()

    def apply(self, program: Program, context: Context) -> Change:
        steps = CANCEL + SINK if self.sink else CANCEL
        return each_function(program, lambda graph: apply_steps(graph, steps))
