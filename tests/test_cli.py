"""The command line: every command as text and as JSON, and every mistake by its words."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from planish import __version__, cli
from planish.hardware_profiles import Profile, profile_names

MODULE = '''
"""A model as a user of the command line writes it."""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(6, 4)

    def forward(self, x):
        hidden = self.dense(x).relu()
        return {"hidden": hidden, "total": hidden.sum(-1)}

def make():
    return Net().eval(), (torch.ones(2, 6),), {"x": {0: ("B", 1, 8)}}

def number():
    return 3

def raises():
    raise ValueError("no such checkpoint")

def dotted():
    return Net().eval(), {"y": torch.ones(2, 6)}
'''

Planish = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user works: a module with a model, and its artifact."""
    path = tmp_path_factory.mktemp("work")
    (path / "cli_nets.py").write_text(MODULE)
    return path


@pytest.fixture
def planish(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Planish:
    """Runs a command in `folder`: what it prints, or, where it fails, its status and message."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*words: object) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["planish", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return printed.out if not stop.value.code else f"{stop.value.code} {' '.join(printed.err.split())}"

    return call


@pytest.fixture
def artifact(folder: Path, planish: Planish) -> Path:
    path = folder / "net.planish"
    if not path.exists():
        assert f"wrote {path}" in planish("compile", "cli_nets:make", "-o", path)
    return path


def net(folder: Path, rows: int) -> dict[str, np.ndarray]:
    """The model's own results for rows 0, 1, 2, ..."""
    space: dict[str, Callable[[], tuple[nn.Module, object, object]]] = {}
    exec((folder / "cli_nets.py").read_text(), space)  # noqa: S102 - the text above
    with torch.no_grad():
        results = space["make"]()[0](torch.from_numpy(inputs(rows)))
    return {name: tensor.numpy() for name, tensor in results.items()}


def inputs(rows: int) -> np.ndarray:
    return np.arange(rows * 6, dtype=np.float32).reshape(rows, 6) / 10


def test_compile_prints_passes_kernels_and_where_the_artifact_is(planish: Planish, folder: Path) -> None:
    text = planish("compile", "cli_nets:make", "-o", "text.planish", "--workload", "B=4")
    assert "fold-constants" in text
    assert "kernel calls" in text
    assert text.endswith("wrote text.planish\n")
    assert (folder / "text.planish" / "manifest.json").exists()


def test_compile_reports_in_json_and_runs_the_passes_asked_for(planish: Planish) -> None:
    words = ("--pass", "fuse-bias", "--pass", "fold-constants{limit=9}")
    found = json.loads(planish("compile", "cli_nets:make", "-o", "json.zip", *words, "--json"))
    assert found["artifact"] == "json.zip"
    assert [row["name"] for row in found["report"]["passes"]["rows"]] == ["fuse-bias", "fold-constants{limit=9}"]


def test_compile_takes_an_onnx_file(planish: Planish, folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch_mlir")
    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", sides[:1], sides[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), folder / "relu.onnx")
    assert "wrote relu.planish" in planish("compile", "relu.onnx", "-o", "relu.planish")
    np.savez(folder / "x.npz", x=np.array([[-1, 2, -3], [4, -5, 6]], np.float32))
    planish("run", "relu.planish", "--inputs", "x.npz", "-o", "y.npz")
    with np.load(folder / "y.npz") as results:
        np.testing.assert_array_equal(results["result"], [[0, 2, 0], [4, 0, 6]])


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_run_writes_the_model_s_numbers_by_name(planish: Planish, artifact: Path, folder: Path, ending: str) -> None:
    from safetensors.numpy import save_file

    np.savez(folder / "x.npz", x=inputs(3))
    save_file({"x": inputs(3)}, folder / "x.safetensors")
    text = planish("run", artifact, "--inputs", f"x.{ending}", "-o", "results.npz")
    assert "hidden" in text
    assert "3 x 4" in text
    with np.load(folder / "results.npz") as results:
        for name, expected in net(folder, 3).items():
            np.testing.assert_allclose(results[name], expected, rtol=1e-5, atol=1e-6)


def test_run_makes_up_inputs_of_the_wanted_size(planish: Planish, artifact: Path) -> None:
    rows = json.loads(planish("run", artifact, "--size", "B=5", "--json"))
    assert [(row["output"], row["dtype"], row["shape"]) for row in rows] == [
        ("hidden", "float32", [5, 4]),
        ("total", "float32", [5]),
    ]


def test_bench_prints_a_spread_and_the_kernels(planish: Planish, artifact: Path) -> None:
    words = ("bench", artifact, "--seconds", "0.1", "--size", "B=2", "--threads", "1", "--profile")
    found = json.loads(planish(*words, "--json"))
    assert found["calls"] >= 10
    assert found["threads"] == 1
    assert 0 < found["best_ms"] <= found["p10_ms"] <= found["median_ms"]
    assert found["profile"]["rows"]
    text = planish(*words)
    assert re.match(r"calls \d+, threads 1, median_ms [\d.]+, p10_ms [\d.]+, best_ms [\d.]+\n", text)
    assert "dense" in text


def test_inspect_shows_types_sizes_and_files(planish: Planish, artifact: Path) -> None:
    text = planish("inspect", artifact)
    assert "main(x: f32[B, 6]) -> f32[B, 4], f32[B]" in text
    assert "size B in 1..8" in text
    found = json.loads(planish("inspect", artifact, "--json"))
    assert found["planish"] == __version__
    assert found["total_bytes"] == sum(found["files"].values())


def test_passes_lists_all_with_the_default_order(planish: Planish) -> None:
    text = planish("passes")
    found = json.loads(planish("passes", "--json"))
    assert {row["pass"] for row in found["passes"]} >= {text.split("{")[0] for text in found["default"]}
    for row in found["passes"]:
        assert row["pass"] in text
        assert row["does"] in text


def test_profiles_are_listed_and_shown(planish: Planish, folder: Path) -> None:
    text = planish("profiles", "list")
    assert all(name in text for name in profile_names())
    assert [row["name"] for row in json.loads(planish("profiles", "list", "--json"))] == list(profile_names())
    (folder / "mine.toml").write_text(planish("profiles", "show", "zen5"))
    assert Profile.from_toml(folder / "mine.toml").name == "zen5"
    assert json.loads(planish("profiles", "show", "mine.toml", "--json"))["name"] == "zen5"


def test_profiles_detect_prints_this_machine_as_a_profile(planish: Planish, folder: Path) -> None:
    (folder / "here.toml").write_text(planish("profiles", "detect"))
    found = json.loads(planish("profiles", "detect", "--json"))
    assert Profile.from_toml(folder / "here.toml").name == found["name"]
    assert Profile.from_toml(folder / "here.toml").cpu.triple == found["processor"]["triple"]


def test_help_and_version_are_there(planish: Planish) -> None:
    text = planish("--help")
    assert all(word in text for word in ("compile", "run", "bench", "inspect", "profiles", "passes", "--version"))
    assert "package.module:function" in planish("compile", "--help")
    assert planish("--version") == f"{__version__}\n"


MISTAKES = {
    "a target": ("compile cli_nets:make -o o --target zen55", "ProfileError: .*'zen55'.*did you mean 'zen5'"),
    "a target without code": (
        "compile cli_nets:make -o o --target alveo-u280",
        "ProfileError: 'alveo-u280' has the fpga",
    ),
    "a pass": ("compile cli_nets:make -o o --pass fold-constant", "PassError: .*did you mean 'fold-constants'"),
    "an option": ("compile cli_nets:make -o o --pass fold-constants{limt=3}", "PassError: .*did you mean 'limit'"),
    "a workload": ("compile cli_nets:make -o o --workload C=3", "InputError: workload: .*no size 'C'"),
    "a workload's form": ("compile cli_nets:make -o o --workload B", "InputError: a size is NAME=NUMBER.*not 'B'"),
    "a module": ("compile cli_netz:make -o o", "InputError: 'cli_netz:make': there is no module 'cli_netz'"),
    "a function": ("compile cli_nets:mak -o o", "InputError: .*no function 'mak'; did you mean 'make'"),
    "a result": ("compile cli_nets:number -o o", r"returned int; it must return \(model, inputs\[, dynamic\]\)"),
    "a raise": ("compile cli_nets:raises -o o", r"raised ValueError: no such checkpoint \(.*cli_nets.py, line 23\)"),
    "inputs": ("compile cli_nets:dotted -o o", "InputError: Net has no input 'y'; known: x"),
    "neither": ("compile model.pt -o o", "'model.pt' is neither an .onnx file nor package.module:function"),
    "no module": ("compile :make -o o", "':make' is neither an .onnx file nor package.module:function"),
    "an onnx file": ("compile no.onnx -o o", "ImportGraphError: 'no.onnx' is no ONNX model that can be read"),
    "an occupied place": ("compile cli_nets:make -o cli_nets.py", "ArtifactError: '.*' exists and is no artifact"),
    "a lost folder": ("compile cli_nets:make -o no/such/o", "ArtifactError: cannot save '.*no/such/o'"),
    "a lost artifact": ("run no.planish", "ArtifactError: there is no artifact at 'no.planish'"),
    "bench": ("bench no.planish", "ArtifactError: there is no artifact at 'no.planish'"),
    "inspect": ("inspect no.planish", "ArtifactError: there is no artifact at 'no.planish'"),
    "no artifact": ("run cli_nets.py", "ArtifactError: 'cli_nets.py' is no intact zip"),
    "an empty folder": ("inspect empty", "ArtifactError: 'empty' is no artifact: it has no manifest.json"),
    "a size": ("run net.planish --size C=3", "InputError: the artifact has no size 'C'"),
    "a range": ("run net.planish --size B=9", r"InputError: size B = 9 is outside 1\.\.8"),
    "bench's range": ("bench net.planish --size B=0", r"InputError: size B = 0 is outside 1\.\.8"),
    "two sources": ("run net.planish --size B=2 --inputs x.npz", "InputError: --size is for random inputs"),
    "a lost file": ("run net.planish --inputs no.npz", "InputError: there is no file 'no.npz'"),
    "a kind of file": (
        "run net.planish --inputs cli_nets.py",
        "come from a .npz or .safetensors file, not 'cli_nets.py'",
    ),
    "a torn npz": ("run net.planish --inputs torn.npz", "InputError: 'torn.npz' cannot be read"),
    "a single array": ("run net.planish --inputs single.npz", "'single.npz' cannot be read: it holds a single array"),
    "torn tensors": ("run net.planish --inputs torn.safetensors", "InputError: 'torn.safetensors' cannot be read"),
    "a name": ("run net.planish --inputs named.npz", "'named.npz' has no input 'x'; known: other"),
    "a shape": ("run net.planish --inputs shape.npz", "InputError: dimension 1 of input 'x' is 5, expected 6"),
    "a dtype": ("run net.planish --inputs dtype.npz", r"input 'x' takes f32\[B, 6\], was given f64\[2, 6\]"),
    "a results file": ("run net.planish -o results.txt", "results are written to a .npz file, not 'results.txt'"),
    "a results folder": ("run net.planish -o no/such.npz", "InputError: cannot write the results to 'no/such.npz'"),
    "a profile": ("profiles show zen55", "ProfileError: .*did you mean 'zen5'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_status_1_and_one_sentence(
    planish: Planish, artifact: Path, folder: Path, mistake: str
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    for name in ("torn.npz", "torn.safetensors"):
        (folder / name).write_bytes(b"not what it says")
    with (folder / "single.npz").open("wb") as file:
        np.save(file, inputs(2))
    np.savez(folder / "named.npz", other=inputs(2))
    np.savez(folder / "shape.npz", x=inputs(2)[:, :5])
    np.savez(folder / "dtype.npz", x=inputs(2).astype(np.float64))
    words, expected = MISTAKES[mistake]
    answer = planish(*words.split())
    assert answer.startswith("1 "), answer
    assert re.search(expected, answer), answer
    assert not (folder / "o").exists()


@pytest.mark.parametrize("words", ["compile cli_nets:make", "compile", "frobnicate", "bench net.planish --threads 0"])
def test_a_wrong_command_line_shows_its_usage(planish: Planish, words: str) -> None:
    assert planish(*words.split()).startswith("2 Usage: planish")


def test_a_missing_compiler_of_kernels_gives_the_command_that_installs_it(folder: Path) -> None:
    code = "import sys; sys.modules['tvm'] = None; from planish.cli import main; main()"
    words = [sys.executable, "-c", code, "compile", "cli_nets:make", "-o", "o"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "BackendMissing: the CPU target needs TVM: pip install 'planish[cpu]'"


@pytest.mark.parametrize("missing", ["onnx", "torch_mlir"])
def test_a_missing_reader_of_onnx_gives_the_command_that_installs_it(
    planish: Planish, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    wanted = f"1 BackendMissing: ONNX files need the package {missing}: pip install 'planish[onnx]'"
    assert planish("compile", "any.onnx", "-o", "o") == wanted


def test_a_machine_without_torch_runs_and_inspects_artifacts(artifact: Path, folder: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'tvm', 'sympy', 'networkx'): sys.modules[name] = None\n"
        "from planish.cli import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    for command in ("inspect", "run"):
        words = [sys.executable, "-c", code, command, str(artifact), "--json"]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)
