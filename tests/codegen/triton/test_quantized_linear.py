"""Linear layers with weights of 8 and 4 bits on GPUs against a formula in torch: forms, odd sizes, rows, epilogues."""

from collections.abc import Callable

import numpy
import pytest
import torch
from torch.nn import functional

from planish.codegen.triton.kernel import Kernel
from planish.codegen.triton.packed_weight import pack_codes
from planish.codegen.triton.quantized_linear import QuantizedLinear
from planish.codegen.triton.unpacking import Unpacking
from planish.compiler import ops
from planish.compiler.ir import Graph, Value
from planish.compiler.types import DType, symbol
from planish.passes.weight_codes import NF4
from tests.codegen.coded import EVERY_FORM, F8, FORMS, Form, Tensors, close, linear, tensors, wanted
from tests.codegen.harness import call_of
from tests.codegen.triton.harness import device, run_call
from tests.codegen.triton.ptx import run_ptx

_PLAIN = "mi300x"  # assembly of NVIDIA does not run in the interpreter; the layout of weights is the same


def check(
    t: Tensors,
    group: int,
    form: Form,
    expected: torch.Tensor,
    *,
    after: Callable[[Value], Value] = lambda y: y,
    dtype: DType = DType.f16,
    tolerance: float = 2e-3,
) -> None:
    shape = tuple(t["x"].shape[:-1])
    x, y = linear((symbol("m"), *shape[1:]), t, group, form, dtype)
    call = call_of(Graph("main", (x,), (after(y),)), ops.linear)
    for found in run_call(QuantizedLinear(), call, t, sizes={"m": shape[0]}, on=_PLAIN):
        close(found, expected, tolerance)


@EVERY_FORM
@pytest.mark.parametrize(("rows", "columns", "depth", "group"), [(1, 40, 576, 128), (11, 70, 96, 96)])
def test_few_rows(rows: int, columns: int, depth: int, group: int, form: Form) -> None:
    t = tensors((rows,), columns, depth, group, form, torch.float16)
    check(t, group, form, wanted(t, group, form))


@EVERY_FORM
@pytest.mark.parametrize("rows", [20, 70])
def test_many_rows(rows: int, form: Form) -> None:
    t = tensors((rows,), 20, 100, 100, form, torch.float16)
    check(t, 100, form, wanted(t, 100, form))


@pytest.mark.parametrize("rows", [3, 20, 70])
def test_weights_of_f8(rows: int) -> None:
    t = tensors((rows,), 40, 300, 300, F8, torch.float16)
    check(t, 300, F8, wanted(t, 300, F8))


@pytest.mark.parametrize(("group", "name"), [(32, "int4 with zeros"), (32, "nf4"), (16, "int8"), (192, "int4")])
def test_groups_of_half_a_unit_or_several(group: int, name: str) -> None:
    t = tensors((3,), 24, 400, group, FORMS[name], torch.float16)
    check(t, group, FORMS[name], wanted(t, group, FORMS[name]))


@pytest.mark.parametrize("rows", [1, 20])
def test_rows_in_single_precision_are_exact(rows: int) -> None:
    t = tensors((rows,), 40, 160, 64, FORMS["int4"])
    check(t, 64, FORMS["int4"], wanted(t, 64, FORMS["int4"]), dtype=DType.f32, tolerance=2e-6)


def test_activation_and_residual_join_the_product() -> None:
    form = FORMS["int4"]
    t = tensors((2, 5), 70, 96, 32, form, torch.float16)
    r = ops.input_(name="r", shape=(symbol("m"), 5, 70), dtype=DType.f16)
    expected = functional.gelu(wanted(t, 32, form)) + t["r"].double()
    check(t, 32, form, expected, after=lambda y: ops.add(ops.gelu(y), r))


def test_threads_of_a_warp_find_the_codes_of_their_operands_in_order() -> None:
    """Thread t of row g holds, of each half of a unit, the columns g and g + 8 at depths 2t and 2t + 1 (PTX ISA,
    mma.m16n8k16, matrix A)."""
    codes = (torch.arange(16)[:, None] * 64 + torch.arange(64)) % 13
    words = pack_codes(codes.to(torch.uint8).numpy(), 4, 0).view(numpy.uint16).reshape(8, 4, 2, 2, 2)
    for g, t, c, r, p in ((0, 0, 0, 0, 0), (3, 1, 1, 0, 1), (7, 3, 0, 1, 0), (5, 2, 1, 1, 1)):
        for i in range(4):
            assert words[g, t, c, r, p] >> (4 * i) & 15 == codes[g + 8 * r, 32 * c + 8 * i + 2 * t + p]


@pytest.mark.parametrize("dtype", [DType.f16, DType.bf16])
@pytest.mark.parametrize(("codes", "codebook"), [(4, ()), (2, ()), (4, NF4)], ids=["nibbles", "bytes", "codebook"])
def test_assembly_computes_the_numbers(codes: int, codebook: tuple[float, ...], dtype: DType) -> None:
    """Interpreted instruction by instruction, for words of all codes."""
    torch_dtype = torch.float16 if dtype is DType.f16 else torch.bfloat16
    unpacking = Unpacking(codes, dtype, codebook, scaled=True, assembly=True)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 1 << 32, (400,), generator=generator).numpy().astype(numpy.uint32)
    offset = torch.tensor([3.0, 5.0]).to(torch_dtype) + unpacking.magic
    scale = torch.tensor([0.37, 0.011]).to(torch_dtype)
    given = [
        words,
        *(numpy.full(400, pair.view(torch.int32).numpy().view(numpy.uint32)[0]) for pair in (offset, scale)),
    ]
    bits = 16 // codes
    for i, result in enumerate(run_ptx(unpacking.text(), codes, given, torch_dtype)):
        for half in range(2):
            code = torch.from_numpy((words >> (16 * half + bits * i) & ((1 << bits) - 1)).astype(numpy.int64))
            level = (
                torch.tensor(codebook)[code].to(torch_dtype) if codebook else code - (offset - unpacking.magic)[half]
            )
            expected = (level.float() * scale[half].float()).to(torch_dtype)
            assert torch.equal(result[:, half], expected)


@pytest.mark.parametrize(("dtype", "converts"), [(DType.f16, True), (DType.f16, False), (DType.bf16, False)])
def test_assembly_unpacks_every_f8(dtype: DType, converts: bool) -> None:
    torch_dtype = torch.float16 if dtype is DType.f16 else torch.bfloat16
    unpacking = Unpacking(2, dtype, (), scaled=False, assembly=True, f8=True, converts=converts)
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0  # not-a-number, which no weight is
    words = codes.numpy().view(numpy.uint32)
    numbers = codes.view(torch.float8_e4m3fn).to(torch_dtype).reshape(64, 2, 2)
    for i, result in enumerate(run_ptx(unpacking.text(), 2, [words, words, words], torch_dtype)):
        assert torch.equal(result, numbers[:, :, i])


def test_unpacking_four_bits_takes_less_than_two_instructions_a_code() -> None:
    assert 1.5 < Unpacking(4, DType.f16, (), scaled=True, assembly=True).instructions <= 2.0


def test_refuses_what_it_cannot_pack() -> None:
    t = tensors((3,), 24, 96, 48, FORMS["int4"])
    x, y = linear((3,), t, 48, FORMS["int4"])
    call = call_of(Graph("main", (x,), (y,)), ops.linear)
    why = "groups of 48 are neither 32 nor a multiple of 64 columns"
    assert QuantizedLinear().refuse(call, device()) == why


def test_refuses_a_codebook_of_more_levels_than_a_permutation_picks_from() -> None:
    form = Form(8, codebook=tuple(range(256)))
    x, y = linear((3,), tensors((3,), 24, 96, 96, form), 96, form)
    call = call_of(Graph("main", (x,), (y,)), ops.linear)
    assert QuantizedLinear().refuse(call, device()) == "its codebook has 256 levels; it takes 16"


def test_half_of_the_bytes_are_stored() -> None:
    x, y = linear((3,), tensors((3,), 32, 128, 64, FORMS["int4"]), 64, FORMS["int4"])
    call = call_of(Graph("main", (x,), (y,)), ops.linear)
    kernel: Kernel = QuantizedLinear().build(call, device())
    packed = kernel.packings[y.node.operands[1].node.operands[0]].pack(numpy.zeros((32, 128), numpy.uint8))
    assert packed.nbytes == 32 * 128 // 2
