"""The choice of variants: which regimes and sizes are judged, what is compiled, and what measurements change."""

from collections.abc import Callable, Mapping, Sequence

import pytest

from planish.codegen.triton.choose import UNTUNED, Tuner, Untuned, choose
from planish.codegen.triton.compile import Binary, Request
from planish.codegen.triton.device import Device
from planish.codegen.triton.gemm import Gemm
from planish.codegen.triton.judge import judged_sizes, reached
from planish.codegen.triton.kernel import Launch, Regime
from planish.compiler import ops
from planish.compiler.ir import Graph
from planish.compiler.types import Dim, DType, Size, evaluate_dim
from planish.errors import TemplateError
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import device

B, S = Size("batch").symbol, Size("seq").symbol


def _launch(size: Dim, *ends: int | None) -> Launch:
    return Launch(None, {}, {}, tuple(Regime(end, ()) for end in ends), size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("at", "hints", "size"),
    [
        (0, {"batch": 1, "seq": 1}, 1),  # the workload is of this regime
        (1, {"batch": 1, "seq": 1}, 256),  # its largest
        (2, {"batch": 1, "seq": 1}, 1024),  # four times the end of the one below
        (2, {"batch": 4, "seq": 512}, 2048),
        (0, {"batch": 4, "seq": 512}, 16),
        (0, {"batch": 3, "seq": 512}, 15),  # as near as five positions of three get
    ],
)
def test_regimes_are_judged_at_the_workload_or_at_their_largest_size(
    at: int, hints: Mapping[str, int], size: int
) -> None:
    launch = _launch(B * S, 16, 256, None)
    found = judged_sizes(launch, at, hints)
    assert evaluate_dim(launch.size, found) == size


def test_a_known_size_has_one_regime() -> None:
    assert reached(_launch(17, 16, 256, None)) == (1,)
    assert reached(_launch(16, 16, 256, None)) == (0,)
    assert reached(_launch(B, 16, 256, None)) == (0, 1, 2)


class _Compiler:
    """Gives each request the resources that a test wants."""

    def __init__(self, binary: Callable[[Request], Binary]) -> None:
        self.binary, self.asked = binary, list[Request]()

    def __call__(self, requests: Sequence[Request], device: Device) -> tuple[Binary, ...]:
        self.asked += requests
        return tuple(map(self.binary, requests))


def _fits(request: Request) -> Binary:
    return Binary(request.name, b"", "", request.num_warps, 1000, 64, 0, 0.0)


def _too_large(request: Request) -> Binary:
    return Binary(request.name, b"", "", request.num_warps, 1 << 20, 64, 0, 0.0)


class _Times(Untuned):
    """Says of each request what a test has measured."""

    def __init__(self, known: Callable[[Request], float | str | None]) -> None:
        self._known = known

    def known(self, request: Request, sizes: Mapping[str, int]) -> float | str | None:  # type: ignore[override]
        return self._known(request)


def _product(rows: Dim, compiler: _Compiler, tuner: Tuner = UNTUNED, most: int = 3):  # type: ignore[no-untyped-def]
    x = ops.input_(name="x0", shape=(rows, 4096), dtype=DType.f16)
    w = ops.input_(name="x1", shape=(4096, 4096), dtype=DType.f16)
    sizes = () if isinstance(rows, int) else (Size("batch", hint=64),)
    call = call_of(Graph("main", (x, w), (ops.linear(x, w),), sizes), ops.linear)
    kernel = Gemm().build(call, device())
    found = choose({"k0": (call, kernel)}, device(), {"batch": 64}, lambda text: None, compiler, tuner, most)
    return found["k0"][0]


def test_every_regime_of_a_named_size_has_its_variant() -> None:
    compiler = _Compiler(_fits)
    chosen = _product(B, compiler)
    assert [c.most for c in chosen][-3:] == [16, 256, None]
    assert [row.size for c in chosen for row in c.rows if row.chosen][-3:] == [16, 64, 1024]
    assert len(compiler.asked) == sum(len(c.rows) for c in chosen)
    assert len({repr(r) for r in compiler.asked}) == len(compiler.asked)


def test_rows_of_the_report_name_the_chosen_variant_first_and_the_others_by_time() -> None:
    (chosen,) = _product(64, _Compiler(_fits))
    assert [row.chosen for row in chosen.rows] == [True] + [False] * (len(chosen.rows) - 1)
    assert chosen.rows[0].seconds == chosen.seconds == min(row.seconds for row in chosen.rows)
    assert {row.basis for row in chosen.rows} == {"predicted"}
    assert f"BLOCK_M={chosen.variant.constants['BLOCK_M']} " in chosen.rows[0].variant


def test_a_measured_time_counts_more_than_a_predicted_one() -> None:
    compiler = _Compiler(_fits)
    (plain,) = _product(64, compiler)
    last = compiler.asked[-1]
    (chosen,) = _product(64, _Compiler(_fits), _Times(lambda request: 1.0 if request == last else None))
    assert chosen.rows[0].basis == "measured"
    assert chosen.seconds == 1.0
    assert chosen.variant.constants.items() <= last.constants.items()
    assert chosen.variant.constants != plain.variant.constants


def test_the_fastest_on_record_is_compiled_though_the_model_ranks_it_low() -> None:
    every = _Compiler(_fits)
    _product(64, every, most=99)
    low = every.asked[-1]
    few = _Compiler(_fits)
    (chosen,) = _product(64, few, _Times(lambda request: 1e-6 if request == low else None), most=1)
    assert few.asked == [every.asked[0], low]
    assert chosen.variant.constants.items() <= low.constants.items()


def test_who_asks_for_more_variants_gets_also_those_that_the_model_thinks_hopeless() -> None:
    many = _Compiler(_fits)
    (chosen,) = _product(64, many, most=99)
    seconds = [row.predicted_seconds or 0.0 for row in chosen.rows]
    assert len(many.asked) == len(seconds)
    assert max(seconds) > 2 * min(seconds)


def test_what_the_device_would_not_run_is_not_chosen_and_says_why() -> None:
    compiler = _Compiler(_fits)
    _product(64, compiler)
    first = compiler.asked[0]
    (chosen,) = _product(64, _Compiler(_fits), _Times(lambda request: "it died" if request == first else None))
    assert not chosen.variant.constants.items() <= first.constants.items()
    assert [row.refused for row in chosen.rows if row.refused] == ["it died"]


def test_variants_that_do_not_fit_are_not_chosen_and_say_why() -> None:
    first: list[Request] = []

    def binary(request: Request) -> Binary:
        first.append(request)
        return _too_large(request) if len(first) == 1 else _fits(request)

    (chosen,) = _product(64, _Compiler(binary))
    refused = [row for row in chosen.rows if row.refused]
    assert [row.refused for row in refused] == ["a block takes 1048576 bytes of shared memory, the device has 232448"]
    assert not refused[0].chosen


def test_refuses_a_kernel_of_which_nothing_fits() -> None:
    with pytest.raises(TemplateError, match=r"k0 does not fit h200: a block takes 1048576 bytes of shared memory"):
        _product(64, _Compiler(_too_large))
