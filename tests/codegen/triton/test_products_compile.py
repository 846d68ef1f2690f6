"""Products compile for every GPU: within its shared memory and registers, on its matrix units, without spills."""

import re
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest

from planish.codegen.call import Call
from planish.codegen.template import Template
from planish.codegen.triton import compile as compiler
from planish.codegen.triton.compile import Request, _binary, compile_all
from planish.codegen.triton.cost import refuse_resources
from planish.codegen.triton.device import Device
from planish.codegen.triton.gemm import Gemm
from planish.codegen.triton.grouped import GroupedLinear
from planish.codegen.triton.grouped_quantized import GroupedQuantizedLinear
from planish.codegen.triton.int8_linear import F8Linear, Int8Linear
from planish.codegen.triton.kernel import Argument, Kernel, Number, Real, Scratch
from planish.codegen.triton.matmul import Matmul
from planish.codegen.triton.quantized_linear import QuantizedLinear
from planish.codegen.triton.request import passed, request_of
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, evaluate_dim, symbol
from planish.errors import BuildError
from planish.passes.weight_codes import NF4
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import device

_SIZE = 1024
_M = symbol("m")
_X = ops.input_(name="x", shape=(_M, _SIZE), dtype=DType.f16)


def _weight(name: str, dtype: DType, *shape: int) -> Value:
    return ops.weight(name=name, shape=shape, dtype=dtype)


def _gated(y: Value) -> Value:
    gate, up = (ops.slice_(y, axis=1, start=s, stop=s + _SIZE // 2) for s in (0, _SIZE // 2))
    return ops.mul(ops.silu(gate), up)


def _of_floats(gate: bool = False) -> Call:
    y = ops.linear(_X, _weight("w", DType.f16, _SIZE, _SIZE))
    return call_of(Graph("main", (_X,), (_gated(y) if gate else y,)), ops.linear)


def _of_codes(bits: int, group: int, codebook: tuple[float, ...] = (), zero: bool = False, gate: bool = False) -> Call:
    scale = (_SIZE, _SIZE // group)
    parts = (_weight("q", DType.u8, _SIZE, _SIZE), _weight("s", DType.f16, *scale), _weight("z", DType.u8, *scale))
    given = parts if zero else parts[:2]
    w = ops.dequantize(*given, group=group, bits=bits, codebook=codebook, dtype=DType.f16)
    y = ops.linear(_X, w)
    return call_of(Graph("main", (_X,), (_gated(y) if gate else y,)), ops.linear)


def _of_f8(dtype: DType = DType.f16) -> Call:
    x = ops.input_(name="x", shape=(_M, _SIZE), dtype=dtype)
    parts = (_weight("q", DType.f8, _SIZE, _SIZE), _weight("s", DType.f32, _SIZE, 1))
    w = ops.dequantize(*parts, group=_SIZE, dtype=dtype)
    return call_of(Graph("main", (x,), (ops.linear(x, w),)), ops.linear)


def _of_rows(codes: DType, gate: bool = False) -> Call:
    x = ops.input_(name="x", shape=(_M, _SIZE), dtype=codes)
    scale = ops.input_(name="xs", shape=(_M, 1), dtype=DType.f32)
    w = ops.dequantize(_weight("q", codes, _SIZE, _SIZE), _weight("s", DType.f32, _SIZE, 1), group=_SIZE)
    y = ops.linear(ops.dequantize(x, scale, group=_SIZE), w)
    return call_of(Graph("main", (x, scale), (_gated(y) if gate else y,)), ops.linear)


def _of_experts(gate: bool = False) -> Call:
    index = ops.input_(name="i", shape=(_M,), dtype=DType.i64)
    y = ops.grouped_linear(_X, _weight("w", DType.f16, 8, _SIZE, _SIZE), index)
    return call_of(Graph("main", (_X, index), (_gated(y) if gate else y,)), ops.grouped_linear)


def _of_coded_experts() -> Call:
    index = ops.input_(name="i", shape=(_M,), dtype=DType.i64)
    codes, scale = _weight("q", DType.u8, 8, _SIZE, _SIZE), _weight("s", DType.f16, 8, _SIZE, _SIZE // 128)
    w = ops.dequantize(codes, scale, group=128, bits=4, dtype=DType.f16)
    return call_of(Graph("main", (_X, index), (ops.grouped_linear(_X, w, index),)), ops.grouped_linear)


def _of_activations() -> Call:
    x, y = (ops.input_(name=n, shape=(8, _SIZE, _SIZE), dtype=DType.f16) for n in "xy")
    return call_of(Graph("main", (x, y), (ops.matmul(x, y),)), ops.matmul)


_CALLS: dict[str, tuple[Template[Device, Kernel], Call]] = {
    "f16": (Gemm(), _of_floats()),
    "f16 with a gate": (Gemm(), _of_floats(gate=True)),
    "int4": (QuantizedLinear(), _of_codes(4, 128)),
    "int4 with zeros": (QuantizedLinear(), _of_codes(4, 64, zero=True)),
    "nf4": (QuantizedLinear(), _of_codes(4, 64, NF4)),
    "int8": (QuantizedLinear(), _of_codes(8, _SIZE)),
    "int4 with a gate": (QuantizedLinear(), _of_codes(4, 128, gate=True)),
    "f8": (QuantizedLinear(), _of_f8()),
    "f8 beside bf16": (QuantizedLinear(), _of_f8(DType.bf16)),
    "int8 rows": (Int8Linear(), _of_rows(DType.i8)),
    "int8 rows with a gate": (Int8Linear(), _of_rows(DType.i8, gate=True)),
    "f8 rows": (F8Linear(), _of_rows(DType.f8)),
    "f8 rows with a gate": (F8Linear(), _of_rows(DType.f8, gate=True)),
    "experts": (GroupedLinear(), _of_experts()),
    "experts with a gate": (GroupedLinear(), _of_experts(gate=True)),
    "experts of int4": (GroupedQuantizedLinear(), _of_coded_experts()),
    "activations": (Matmul(), _of_activations()),
}


def _requests(name: str, gpu: Device) -> list[Request]:
    """The first variant for the fewest rows and for the most."""
    template, call = _CALLS[name]
    assert template.refuse(call, gpu) is None
    launch = template.build(call, gpu).launches[-1]  # experts put their rows in order before
    return [request_of(call, launch, launch.regimes[i].variants[0]) for i in (0, -1)]


@pytest.mark.parametrize("profile", ["a100", "rtx-4090", "l40s", "h200", "mi300x"])
def test_products_fit_the_gpu_and_run_on_its_matrix_units(profile: str) -> None:
    gpu = device(profile)
    taken = [name for name in _CALLS if gpu.has_f8 or not name.startswith("f8 rows")]
    requests = {name: _requests(name, gpu) for name in taken}
    binaries = compile_all([r for pair in requests.values() for r in pair], gpu)
    units = ("mma.sync", "wgmma.mma_async") if gpu.backend == "cuda" else ("mfma",)
    for name, binary in zip([n for n in taken for _ in range(2)], binaries, strict=True):
        assert refuse_resources(binary, gpu) is None, name
        assert binary.spilled_bytes == 0, name
        assert any(unit in binary.assembly for unit in units), name


@pytest.mark.parametrize("profile", ["a100", "h200", "mi300x"])
def test_rows_are_put_in_the_order_of_their_experts_without_spills(profile: str) -> None:
    gpu, call = device(profile), _of_experts()
    launch = GroupedLinear().build(call, gpu).launches[0]
    (binary,) = compile_all([request_of(call, launch, launch.regimes[-1].variants[0])], gpu)
    assert binary.spilled_bytes == 0


def test_codes_go_to_the_matrix_units_of_a_hopper_gpu_in_registers() -> None:
    """Before the sums are stored, only scales are written to shared memory, one of 16 bits by each thread."""
    gpu = device("h200")
    few, many = compile_all(_requests("int4", gpu), gpu)
    assert "wgmma.mma_async" in many.assembly
    for binary, last in ((few, "mma.sync"), (many, "wgmma.mma_async")):
        before = binary.assembly[: binary.assembly.rindex(last)]
        assert "cp.async.cg.shared.global" in before
        assert before.count("st.shared") == before.count("st.shared.b16") <= 1
        assert "stmatrix" not in before


_F8_UNITS = {
    "rtx-4090": ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",) * 2,
    # of few rows Triton makes f16 there, in registers
    "h200": ("mma.sync.aligned.m16n8k16.row.col.f32.f16", "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3"),
    "mi300x": ("_fp8_fp8",) * 2,
}


@pytest.mark.parametrize("profile", _F8_UNITS)
def test_f8_is_multiplied_as_f8_straight_from_memory(profile: str) -> None:
    gpu = device(profile)
    for binary, unit in zip(compile_all(_requests("f8 rows", gpu), gpu), _F8_UNITS[profile], strict=True):
        assert unit in binary.assembly
        assert gpu.backend != "cuda" or "cp.async.cg.shared.global" in binary.assembly


def test_f8_has_tiles_of_the_widest_instruction() -> None:
    gpu = device("h200")
    _, call = _CALLS["f8 rows"]
    (launch,) = F8Linear().build(call, gpu).launches
    (binary,) = compile_all([request_of(call, launch, launch.regimes[-1].variants[-1])], gpu)
    assert "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3" in binary.assembly
    assert refuse_resources(binary, gpu) is None
    assert binary.spilled_bytes == 0


@pytest.mark.parametrize(("profile", "instruction"), [("h200", "cvt.rn.f16x2.e4m3x2"), ("a100", "mul.f16x2")])
def test_f8_becomes_f16_in_registers(profile: str, instruction: str) -> None:
    gpu = device(profile)
    for binary in compile_all(_requests("f8", gpu), gpu):
        assert instruction in binary.assembly


def test_scratch_memory_begins_where_kernels_are_told_that_it_does() -> None:
    """Vector loads at addresses that are no multiple of 16 fault on a device; the interpreter has none."""
    gpu, call = device("h200"), _CALLS["experts"][1]
    places = [a for launch in GroupedLinear().build(call, gpu).launches for a in launch.arguments.values()]
    offsets = [evaluate_dim(a.byte_offset, {"m": 33}) for a in places if isinstance(a, Scratch)]
    assert len(offsets) == 4
    assert all(offset % 16 == 0 for offset in offsets)


def test_scratch_memory_behind_any_number_of_bytes_is_not_called_aligned() -> None:
    call = _CALLS["experts"][1]
    launch = GroupedLinear().build(call, device("h200")).launches[0]
    odd = replace(launch, arguments={**launch.arguments, "order": Scratch(4 * _M, DType.i32)})
    variant = launch.regimes[-1].variants[0]
    assert (0,) in request_of(call, launch, variant).aligned
    assert (0,) not in request_of(call, odd, variant).aligned


@pytest.mark.parametrize("name", ["f16 with a gate", "int4 with zeros", "int8 rows", "experts"])
def test_kernels_take_the_parameters_that_a_launch_passes_and_two_pointers_of_triton(name: str) -> None:
    template, call = _CALLS[name]
    gpu = device("h200")
    launch = template.build(call, gpu).launches[-1]
    (binary,) = compile_all([request_of(call, launch, launch.regimes[-1].variants[0])], gpu)
    head = binary.assembly.split(".entry")[1].split(")")[0]
    assert re.findall(r"\.param \.(\w+)", head) == [*map(_word, passed(launch)), "u64", "u64"]


def _word(argument: Argument) -> str:
    if isinstance(argument, Real):
        return "f32"
    return "u32" if isinstance(argument, Number) and not argument.wide else "u64"


def test_kernels_that_need_memory_of_triton_at_a_launch_are_refused() -> None:
    gpu = device("h200")
    (request, *_) = _requests("f16", gpu)
    kernel = SimpleNamespace(metadata=SimpleNamespace(global_scratch_size=128))
    with pytest.raises(BuildError, match="gemm needs memory that Triton allocates at a launch"):
        _binary(kernel, request, "cuda", 0.0)


def test_a_process_of_the_compiler_that_ends_is_an_error_with_its_usual_reasons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(compiler, "_workers", cache(lambda: SimpleNamespace(map=ended)))
    with pytest.raises(BuildError, match=r"is there memory enough.* needs `if __name__ == '__main__':`"):
        compile_all([], device("h200"))
