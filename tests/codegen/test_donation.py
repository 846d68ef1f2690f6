"""Which results take the memory of an input."""

import pytest

from planish.codegen.donation import donations
from planish.codegen.select import select
from planish.codegen.tvm.isa import AVX2
from planish.compiler.text import parse
from planish.errors import TemplateError
from tests.codegen.test_selection import Rows

UPDATE = """graph main(%cache: f32[2, 3, 8, 4], %new: f32[2, 3, 1, 4], %past: i64[2], %count: i64[2]) {{
  %0 = cache_update({cache}, %new, %past, %count): f32[2, 3, 8, 4]  # layers.0
  %1 = relu({read}): f32[2, 3, 8, 4]
  return {result}
}}"""


def _donations(cache: str = "%cache", read: str = "%0", result: str = "%1, %0") -> tuple[tuple[int, int], ...]:
    graph = parse(UPDATE.format(cache=cache, read=read, result=result))
    return donations(select(graph, (Rows(),), AVX2))


def test_an_updated_cache_takes_the_memory_of_the_cache() -> None:
    assert _donations() == ((1, 0),)


def test_a_cache_that_something_else_reads_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"cache_update in 'layers\.0' .* an input that nothing else reads"):
        _donations(read="%cache", result="%1, %0")


def test_an_update_that_is_no_result_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"cache_update in 'layers\.0' .* must be a result of 'main'"):
        _donations(result="%1")
