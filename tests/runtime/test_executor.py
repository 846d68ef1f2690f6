"""Running a loaded artifact: numpy and torch in and out, refusals, threads, torch steps, profiles."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planish.errors import ArtifactError, InputError
from planish.runtime.artifact import write
from planish.runtime.executor import Executable
from planish.runtime.library import NativeLibrary
from planish.runtime.loading import load
from planish.runtime.plan import InputSpec, NativeStep, Plan, TensorSpec, TorchStep
from planish.runtime.tensors import TensorFile
from planish.runtime.values import ValueId
from tests.runtime.small import affine_contents, affine_plan, build_library, expected, topk_plan, torch_plan


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4), np.float32)


@pytest.fixture
def run(folder: Path) -> Executable:
    return load(folder)


def test_numpy_in_gives_numpy_out(run: Executable) -> None:
    result = run(rows(5))
    assert isinstance(result.y, np.ndarray)
    np.testing.assert_array_equal(result.y, expected(rows(5)))
    assert result.z is None


def test_torch_in_gives_torch_out(run: Executable) -> None:
    result = run(x=torch.from_numpy(rows(5)).requires_grad_())
    assert isinstance(result["y"], torch.Tensor)
    np.testing.assert_array_equal(result[0].numpy(), expected(rows(5)))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: np.asfortranarray(x),
        lambda x: np.broadcast_to(x[:1], (6, 4)),
        lambda x: torch.from_numpy(x)[1::3],
        lambda x: torch.from_numpy(x).t().contiguous().t(),
        lambda x: torch.from_numpy(x)[:1].expand(7, 4),
        lambda x: torch.complex(torch.zeros(6, 4), torch.from_numpy(x)).conj().imag,
        lambda x: torch.nn.Parameter(torch.from_numpy(x)),
        lambda x: np.frombuffer(b"\1" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(6, 4),
    ],
)
def test_inputs_need_not_be_contiguous(run: Executable, view: Any) -> None:
    x = view(rows(6))
    plain = x.detach().resolve_neg().numpy() if isinstance(x, torch.Tensor) else x
    np.testing.assert_array_equal(np.asarray(run(x).y), expected(plain))


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, r"input 'x' is missing; it takes f32\[B, 4\]"),
        (
            (np.zeros((2, 4)),),
            {},
            r"input 'x' takes f32\[B, 4\], was given f64\[2, 4\]; convert it with .astype\('float32'\)",
        ),
        (
            (torch.zeros(2, 4, dtype=torch.int64),),
            {},
            r"takes f32\[B, 4\], was given i64\[2, 4\]; .*\.to\(torch.float32\)",
        ),
        ((np.zeros((2, 4), ">f4"),), {}, r"input 'x' takes f32\[B, 4\], was given >f4\[2, 4\]"),
        (([[1.0, 2.0, 3.0, 4.0]],), {}, r"'x' takes f32\[B, 4\] as a torch tensor or a numpy array, was given a list"),
        ((torch.zeros(2, 4, device="meta"),), {}, r"input 'x' is on device meta; this artifact runs on the cpu"),
        ((torch.zeros(2, 4).to_sparse(),), {}, r"input 'x' has layout torch.sparse_coo; give a dense tensor"),
        ((np.zeros((2, 5), np.float32),), {}, r"dimension 1 of input 'x' is 5, expected 4"),
        ((np.zeros(4, np.float32),), {}, r"input 'x' needs 2 dimensions \[B, 4\], was given 1 \[4\]"),
        ((np.zeros((1001, 4), np.float32),), {}, r"size B of input 'x' is 1001, outside the declared 1..1000"),
        ((np.zeros((0, 4), np.float32),), {}, r"size B of input 'x' is 0, outside the declared 1..1000"),
        ((rows(1), rows(1)), {}, r"2 inputs were given by place, 1 can be"),
        ((), {"X": rows(1)}, r"no input is called 'X'"),
    ],
)
def test_refuses_a_wrong_input_by_name_expected_and_given(run: Executable, args: Any, kwargs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(*args, **kwargs)


def test_eight_threads_at_once_get_their_own_results(run: Executable) -> None:
    inputs = [rows(1 + 37 * i, seed=i) for i in range(8)]

    def work(i: int) -> bool:
        wanted = expected(inputs[i])
        return all(np.array_equal(run(inputs[i]).y, wanted) for _ in range(30))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_results_stay_valid_after_the_next_call(run: Executable) -> None:
    first = run(rows(3)).y
    run(rows(3, seed=1))
    np.testing.assert_array_equal(first, expected(rows(3)))


def test_the_number_of_threads_is_the_libraries_or_the_callers(folder: Path) -> None:
    assert load(folder).threads == 3
    assert load(folder, threads=2).threads == 2
    assert load(folder, threads=99).threads == 3, "threads that share a core wait for one another"
    with pytest.raises(InputError, match="threads is 0; a call needs at least one"):
        load(folder, threads=0)


def test_a_call_that_the_library_fails_is_an_error(folder: Path) -> None:
    run = load(folder)
    with pytest.raises(ArtifactError, match=r"planish_main_0 of main failed with code 5 on sizes \{'B': 99\}"):
        run(rows(99))


def test_a_profile_has_a_row_for_every_kernel_by_scope(run: Executable) -> None:
    profile = run.profile(rows(900), repeat=3)
    assert [(row.label, row.op, row.template) for row in profile.rows] == [
        ("load_0", "identity", "copy"),
        ("scale_1", "add", "affine"),
    ]
    assert all(row.ms > 0 for row in profile.rows)
    assert sum(row.ms for row in profile.rows) <= profile.wall_ms
    (scope,) = profile.by_scope(depth=3)
    assert (scope.scope, scope.calls) == ("encoder.layer.0", 2)
    assert scope.ms == pytest.approx(sum(row.ms for row in profile.rows))
    assert len(profile.by_scope(depth=4)) == 2
    assert "encoder.layer.0.scale" in str(profile)
    with pytest.raises(InputError, match="repeat is 0"):
        run.profile(rows(1), repeat=0)


def test_an_unknown_function_is_named_with_the_nearest(run: Executable) -> None:
    assert run.function("main") is run.main
    with pytest.raises(InputError, match="the artifact has no function 'mian'; did you mean 'main'"):
        run.function("mian")


def test_printing_shows_the_functions_and_their_types(run: Executable) -> None:
    assert repr(run) == "Executable(main(x: f32[B, 4]) -> f32[B, 4]; 3 threads)"


class TestTorchSteps:
    @pytest.fixture
    def topk(self, library: Path, tmp_path: Path) -> Executable:
        write(tmp_path / "topk", affine_contents(library, plan=topk_plan(), golden={}))
        return load(tmp_path / "topk")

    @pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
    def test_a_native_step_feeds_a_torch_step(self, topk: Executable, convert: Any) -> None:
        values, indices = topk(convert(rows(6)))
        wanted = torch.topk(torch.from_numpy(expected(rows(6))), 2)
        assert type(values) is type(convert(rows(6)))
        np.testing.assert_array_equal(np.asarray(values), wanted.values.numpy())
        np.testing.assert_array_equal(np.asarray(indices), wanted.indices.numpy())

    def test_profiles_time_torch_steps_and_unlisted_entries(self, topk: Executable) -> None:
        labels = [(row.label, row.template, row.scope) for row in topk.profile(rows(6), repeat=2).rows]
        assert labels == [("planish_main_0", "native", ""), ("aten.topk.default", "torch", "head.topk")]

    def run_step(self, step: TorchStep, output: TensorSpec, tmp_path: Path, **weights: np.ndarray) -> Executable:
        types = {name: TensorSpec.of("f32", array.shape) for name, array in weights.items()}
        plan = torch_plan(step, output, types)
        write(tmp_path / "step", affine_contents(None, plan=plan, golden={}, weights=weights))
        return load(tmp_path / "step")

    def test_arguments_may_be_weights_sizes_and_dtypes(self, tmp_path: Path) -> None:
        weight = rows(4, seed=3)
        step = TorchStep(
            "aten.addmm.default",
            ({"value": ["weight", "b"]}, {"value": ["input", 0]}, {"value": ["weight", "w"]}),
            (ValueId("output", 0),),
            {"beta": 2, "alpha": 0.5},
        )
        run = self.run_step(step, TensorSpec.of("f32", ["B", 4]), tmp_path, w=weight, b=np.arange(4, dtype=np.float32))
        wanted = 2 * np.arange(4, dtype=np.float32) + 0.5 * rows(3) @ weight
        np.testing.assert_allclose(run(rows(3)), wanted, rtol=1e-5, atol=1e-6)

    def test_a_view_of_the_input_is_copied_out(self, tmp_path: Path) -> None:
        step = TorchStep("aten.view.default", ({"value": ["input", 0]}, [{"dim": "4*B"}]), (ValueId("output", 0),), {})
        run = self.run_step(step, TensorSpec.of("f32", ["4*B"]), tmp_path)
        x = torch.from_numpy(rows(3))
        result = run(x)
        assert result.data_ptr() != x.data_ptr()
        assert torch.equal(result, x.view(12))

    def test_a_bf16_result_widens_for_numpy(self, tmp_path: Path) -> None:
        step = TorchStep(
            "aten._to_copy.default", ({"value": ["input", 0]},), (ValueId("output", 0),), {"dtype": {"dtype": "bf16"}}
        )
        run = self.run_step(step, TensorSpec.of("bf16", ["B", 4]), tmp_path)
        wanted = torch.from_numpy(rows(3)).to(torch.bfloat16)
        assert torch.equal(run(torch.from_numpy(rows(3))), wanted)
        np.testing.assert_array_equal(run(rows(3)), wanted.float().numpy())

    def test_a_bf16_input_is_a_torch_tensor_or_its_bits(self, tmp_path: Path) -> None:
        step = TorchStep(
            "aten._to_copy.default", ({"value": ["input", 0]},), (ValueId("output", 0),), {"dtype": {"dtype": "f32"}}
        )
        plan = torch_plan(step, TensorSpec.of("f32", ["B", 4]))
        inputs = (InputSpec("x", TensorSpec.of("bf16", ["B", 4])),)
        plan = replace(plan, functions={"main": replace(plan.functions["main"], inputs=inputs)})
        write(tmp_path / "step", affine_contents(None, plan=plan, golden={}, weights={}))
        run = load(tmp_path / "step")
        x = torch.from_numpy(rows(3)).to(torch.bfloat16)
        assert torch.equal(run(x), x.float())
        np.testing.assert_array_equal(run(x.view(torch.int16).numpy().view(np.uint16)), x.float().numpy())
        with pytest.raises(InputError, match=r"'x' takes bf16\[B, 4\], was given f32\[3, 4\]"):
            run(rows(3))

    @pytest.mark.parametrize(
        ("target", "arguments", "words"),
        [
            ("aten.relu_.default", [{"value": ["input", 0]}], "changes its arguments; an artifact runs functional ops"),
            ("aten.nothing.default", [{"value": ["input", 0]}], "has no aten.nothing.default"),
            ("aten.view.default", [{"value": ["input", 0]}, [5]], "failed in torch"),
            ("aten.isnan.default", [{"value": ["input", 0]}], r"gave bool\[3, 4\], the plan says f32\[B, 4\]"),
            ("aten.sum.default", [{"value": ["input", 0]}], r"gave float32\[\], the plan says"),
            ("aten.max.dim", [{"value": ["input", 0]}, 1], "gave 2 results, the plan names 1"),
        ],
    )
    def test_refuses_what_is_not_as_planned(self, target: str, arguments: Any, words: str, tmp_path: Path) -> None:
        step = TorchStep(target, tuple(arguments), (ValueId("output", 0),), {}, "head")
        run = self.run_step(step, TensorSpec.of("f32", ["B", 4]), tmp_path)
        with pytest.raises(ArtifactError, match=words):
            run(rows(3))


def test_a_library_without_an_entry_of_the_plan_is_refused(library: Path, folder: Path) -> None:
    main = affine_plan().functions["main"]
    step = NativeStep("planish_other_0", main.steps[0].reads(), main.steps[0].writes())
    plan = Plan("kernels/model.so", {"main": replace(main, steps=(step,))}, {})
    with pytest.raises(ArtifactError, match=r"has no function 'planish_other_0'; the artifact is inconsistent"):
        Executable(plan, NativeLibrary(library), TensorFile(folder / "weights.safetensors"))


def test_an_artifact_saved_again_in_its_place_runs_its_new_code(library: Path, folder: Path, tmp_path: Path) -> None:
    before = load(folder)
    write(folder, affine_contents(build_library(tmp_path, offset=10), golden={}))
    after = load(folder)
    np.testing.assert_array_equal(before(rows(2)).y, expected(rows(2)))
    np.testing.assert_allclose(after(rows(2)).y, expected(rows(2)) + 10, rtol=1e-6)


CHILD = """
import sys, time
start = time.perf_counter()
import numpy as np
from planish.runtime.loading import load
run = load(sys.argv[1])
result = run(np.ones((2, 4), np.float32)).y
seconds = time.perf_counter() - start
foreign = {"torch", "sympy", "pydantic", "tvm", "networkx", "scipy"} & set(sys.modules)
assert not foreign, foreign
ours = {name.split(".")[1] for name in sys.modules if name.startswith("planish.")}
assert ours <= {"runtime", "errors", "hardware_profiles"}, ours
print(result[0, 3], seconds)
"""


def test_loading_and_running_with_numpy_imports_neither_torch_nor_the_compiler(folder: Path) -> None:
    child = subprocess.run([sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    number, seconds = map(float, child.stdout.split())
    assert number == 5.0
    assert seconds < 5, "a soft limit: 0.2 s on an idle machine"
