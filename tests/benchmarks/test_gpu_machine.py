"""What the benchmark of GPUs needs of its machine: a few packages, named where they are missing, and no others."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_WITHOUT = """
import sys
from importlib.machinery import ModuleSpec

class Absent:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in ABSENT else None
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named '{spec.name}'", name=spec.name)

ABSENT = {"tvm", "tvm_ffi", "ziglang", "scipy", "onnx", "onnxruntime", "openvino", "torch_mlir", "PIL", "matplotlib"}
sys.meta_path.insert(0, Absent())
import benchmarks.__main__
import benchmarks.gpu.decode, benchmarks.gpu.hardware, benchmarks.gpu.measure, benchmarks.gpu.run
import planish.api, planish.autotune.tuner, planish.codegen.triton.build, planish.codegen.triton.templates
"""


def test_neither_tvm_nor_a_peer_is_needed_to_compile_and_measure_for_gpus() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_packages_are_named_with_what_to_install() -> None:
    # without the folders of installed packages
    command = [sys.executable, "-S", "-m", "benchmarks", "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: torch, numpy, ")
    assert done.stderr.strip().endswith(": pip install " + done.stderr[7:].partition(" cannot")[0].replace(",", ""))
    assert "triton transformers" in done.stderr
