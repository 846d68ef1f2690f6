"""round-caches: attention(q, k, v) -> attention(q, held(k), held(v)), where caches of generation would hold them."""

from dataclasses import dataclass, replace
from typing import ClassVar

from planish.compiler.ir import Node, Program, Value
from planish.compiler.ops import attention
from planish.compiler.pass_ import Change, Context, Contract, Lossy
from planish.compiler.rewrite import Hit, substitute
from planish.passes.split_generation_attention import held


@dataclass(frozen=True, slots=True)
class RoundCaches:
    """Rounds keys and values of every attention over tokens as a cache of the kind `cache` does: "f16", "i8" or "i4".

    It makes whole sequences see what generation sees, which stores the keys and values of a step before it reads them.
    It will not touch scores that are spelled out as products and a softmax.
    """

    cache: str
    name: ClassVar[str] = "round-caches"
    contract: ClassVar[Contract] = Lossy("perplexity")

    def apply(self, program: Program, context: Context) -> Change:
        hits: list[Hit] = []

        def visit(node: Node) -> tuple[Value, ...] | None:
            if node.op is not attention:
                return None
            hits.append(Hit("round", node.scope))
            q, k, v, *rest = node.inputs
            assert k is not None
            assert v is not None
            k, v = (held(value, self.cache, lambda part, _: part, node.scope) for value in (k, v))
            return attention.node((q, k, v, *rest), node.attrs, node.scope).values

        functions = {name: substitute(graph, visit) for name, graph in program.functions.items()}
        return Change(replace(program, functions=functions), tuple(hits))
