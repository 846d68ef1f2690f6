"""What is made up for torch 2.11, by the definition of a minimum; other versions of torch give the same."""

import sympy
from torch.utils._sympy import functions

from planish.compiler.importers.old_torch import _smaller, resolved_minima

SIZE = sympy.Symbol("s", integer=True, positive=True)
ANY = sympy.Symbol("n", integer=True)


def test_the_smaller_of_two_multiples_of_a_size_is_known() -> None:
    before = functions.Min.__new__
    with resolved_minima():
        assert functions.Min(8 * SIZE, 16 * SIZE) == functions.Min(16 * SIZE, 8 * SIZE) == 8 * SIZE
        assert functions.Min(SIZE, 3 * SIZE) == SIZE
        assert functions.Min(7, 5) == 5
        assert functions.Min(SIZE, ANY).func is functions.Min
    assert functions.Min.__new__ is before


def test_multiples_of_what_may_be_negative_are_left() -> None:
    assert _smaller(8 * ANY, 16 * ANY) is None
    assert _smaller(8 * SIZE, 8 * ANY) is None
    assert _smaller(8 * SIZE, 16 * SIZE) == 8 * SIZE
