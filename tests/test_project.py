"""The repository keeps its own rules: links, import order, complete registries, every pass and template tested."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from planish.codegen.tvm.templates import TEMPLATES
from planish.compiler.ir import Op
from planish.compiler.ops import OPS
from planish.passes import ALL

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "passes", "codegen", "hardware_profiles", "autotune", "runtime")
ALLOWED = {
    "errors": set(),
    "hardware_profiles": {"errors"},
    "runtime": {"errors", "hardware_profiles"},
    "compiler": {"errors", "hardware_profiles", "runtime"},
    "passes": {"errors", "hardware_profiles", "runtime", "compiler"},
    "codegen": {"errors", "hardware_profiles", "runtime", "compiler", "passes"},
    "autotune": {"errors", "hardware_profiles", "runtime", "compiler", "passes", "codegen"},
}


def _modules(folder: str) -> Iterator[Path]:
    yield from sorted((ROOT / "planish" / folder).rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (
                [f"planish.{alias.name}" for alias in node.names] if node.module == "planish" else [node.module]
            )


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_top_level_folder_is_a_link_into_the_package(folder: str) -> None:
    assert (ROOT / folder).is_symlink()
    assert (ROOT / folder).resolve() == ROOT / "planish" / folder


@pytest.mark.parametrize("folder", [f for f in ALLOWED if f != "errors"])
def test_a_folder_imports_only_from_those_left_of_it(folder: str) -> None:
    for path in _modules(folder):
        for name in _imports(path):
            parts = name.split(".")
            if parts[0] == "planish" and len(parts) > 1 and parts[1] != folder:
                assert parts[1] in ALLOWED[folder], f"{path.relative_to(ROOT)} imports {name}"


def test_every_op_that_is_declared_is_in_the_table() -> None:
    declared = set()
    for path in _modules("compiler/ops"):
        module = __import__(f"planish.compiler.ops.{path.stem}".removesuffix(".__init__"), fromlist=["x"])
        declared |= {value for value in vars(module).values() if isinstance(value, Op)}
    assert declared == set(OPS)
    assert len({op.name for op in OPS}) == len(OPS)


def test_every_pass_has_its_file_its_table_entry_its_test_and_its_docs() -> None:
    files = {path.stem for path in _modules("passes")} - {"__init__"}
    names = {each.name for each in ALL}
    assert {name.replace("-", "_") for name in names} <= files
    docs = (ROOT / "docs" / "passes.md").read_text()
    for name in names:
        stem = name.replace("-", "_")
        assert (ROOT / "tests" / "passes" / f"test_{stem}.py").exists(), stem
        assert f"## {name}" in docs, f"docs/passes.md has no section for {name}"


def test_every_template_is_tested() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "codegen").glob("test_*.py"))
    for template in TEMPLATES:
        assert type(template).__name__ in tests, f"no test names {type(template).__name__}"


def test_no_source_file_is_longer_than_400_lines() -> None:
    long = {
        p.relative_to(ROOT): n for p in (ROOT / "planish").rglob("*.py") if (n := len(p.read_text().splitlines())) > 400
    }
    assert not long


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("planish", ("torch", "tvm", "triton", "torch_mlir", "transformers", "sympy")),
        ("planish.runtime", ("torch", "tvm", "sympy", "pydantic", "planish.compiler", "planish.codegen")),
    ],
)
def test_importing_leaves_the_heavy_packages_alone(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
