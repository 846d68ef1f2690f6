"""The public calls: `compile` a model for a target, `load` an artifact."""

import shutil
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import ArtifactError, InputError, nearest
from planish.runtime.artifact import PROGRAM, copy
from planish.runtime.inspection import inspect
from planish.runtime.loading import cannot_run
from planish.runtime.loading import load as load_artifact
from planish.runtime.profile import CallProfile
from planish.runtime.storage import read_manifest, read_member
from planish.runtime.temporary import OwnedFolder, own_folder

if TYPE_CHECKING:
    from torch import nn

    from planish.compile_report import CompileReport
    from planish.compiler.importers import Imported
    from planish.compiler.ir import Workload
    from planish.compiler.pass_ import Pass
    from planish.generation import Generation
    from planish.hardware_profiles import Profile, Roofline
    from planish.runtime.artifact import Loaded

Progress = Callable[[str], None]


def compile(  # noqa: A001 - the name that users of torch and TVM know
    model: "nn.Module | str | Path",
    target: "str | Path | Profile" = "cpu",
    *,
    inputs: Any = None,
    dynamic: Any = None,
    workload: "Workload | Mapping[str, int] | None" = None,
    passes: "Sequence[Pass | str] | None" = None,
    generate: "Generation | None" = None,
    precision: str = "f32",
    threads: int | None = None,
    tune: int | None = None,
    progress: Progress | None = None,
) -> "CompiledModel":
    """Compile a model for one target; the result computes the same numbers, faster.

    model: an `nn.Module` in eval mode, or the path of an `.onnx` file.
    target: `"cpu"` or `"gpu"` for what is at hand, a profile's name (`planish profiles list`), a TOML's path, or a
        `Profile`. What is compiled for other hardware can be saved here, and runs there.
    inputs: example inputs, torch tensors: one tensor, a tuple of positional arguments, or a dict of keyword arguments.
        An ONNX file needs none; given ones, torch or numpy, set the usual sizes and are what is recorded.
    dynamic: axes whose size may differ from call to call, `{input: {axis: name}}`; a name alone takes any size from 1,
        `(name, low, high)` or a `Size` takes that range, and a `Size`'s hint is its usual value. Everything else is
        fixed to the example's size. In an ONNX file the axes that it names are dynamic already.
    workload: the sizes that calls will mostly have, by name; they steer memory planning and estimates.
    passes: objects or one-line texts such as `"fold-constants"`, in order; by default all exact passes. With
        `generate`, passes of which none is exact, such as `"quantize-weights{bits=4}"`, run after all exact ones.
    generate: for a language model: makes it generate text, and the result a `LanguageModel`. The batch and the tokens
        of its inputs are dynamic then without being declared.
    precision: what models of f32 multiply in. `"bf16"` runs the pass `compute-bf16` last: weights take half the
        bytes and products half the time where the processor has a dot product of bf16; the report says what stays in
        f32, and why. Inputs and outputs keep their dtypes.
    threads: how many threads a call uses; all cores of the process by default.
    tune: how many variants of each kernel of a GPU are measured on the one at hand, of which the fastest is taken. By
        default three where the target's GPU is here, those that a static model ranks first, and none elsewhere; 0
        measures none. Times on record count in any case, and what is measured is put on record (docs/gpu.md).
    progress: called with the name of each stage as it starts.

    Raises InputError (wrong example inputs), ImportGraphError (a model that cannot be captured), ProfileError (an
    unknown target), PassError (an unknown pass or option), TemplateError (an op without a kernel; on GPUs most such
    ops run as torch), BackendMissing (an extra that is not installed, with the pip command), ArtifactError (no room on
    the disk).
    """
    from planish.compilation import run

    say = progress or (lambda stage: None)
    folder = _new_folder(model)
    try:
        done = run(model, target, inputs, dynamic, workload, passes, folder.path, say, generate, precision, tune)
        say("checking against the model")
        compiled = _model(done.artifact, done.report, done.imported, threads=threads)
    except BaseException:
        folder.remove()
        raise
    weakref.finalize(compiled, folder.remove)
    return compiled


_HOW_TO_GENERATE = "give planish.compile a causal language model with generate=planish.Generation(...)"
_SPARE_BYTES = 32 << 20  # for objects, sources and the compilers' temporary files


def _new_folder(model: Any) -> OwnedFolder:
    """A temporary folder that has room for the artifact; LLVM ends the process when its disk is full."""
    try:
        folder = own_folder()
    except OSError as error:
        raise ArtifactError(f"no temporary folder can be made: {error}; set TMPDIR to another disk") from error
    needed, free = _SPARE_BYTES + _weight_bytes(model), shutil.disk_usage(folder.path).free
    if free < needed:
        folder.remove()
        where = folder.path.parent
        raise ArtifactError(
            f"'{where}' has {free >> 20} MiB free, compiling takes {needed >> 20}; set TMPDIR to another disk"
        )
    return folder


def _weight_bytes(model: Any) -> int:
    if isinstance(model, str | Path):
        return Path(model).stat().st_size if Path(model).is_file() else 0
    parameters: Callable[[], Iterable[Any]] = getattr(model, "parameters", tuple)
    return sum(tensor.numel() * tensor.element_size() for tensor in parameters())


def _model(path: Path, *known: Any, threads: int | None, verify: bool = True) -> "CompiledModel":
    if not path.exists() or read_manifest(path).generation is None:
        return CompiledModel(path, *known, threads=threads, verify=verify)
    from planish.language_model import LanguageModel

    return LanguageModel(path, *known, threads=threads, verify=verify)


def load(path: str | Path, *, verify: bool = True, threads: int | None = None) -> "CompiledModel":
    """Load an artifact, a folder or its zip, and check it.

    `verify` also checks the hash of every file and repeats the recorded call. Raises ArtifactError with what is wrong:
    damaged, made for another instruction set, or newer than this planish. The artifact of a language model gives a
    `LanguageModel`.
    """
    return _model(Path(path), threads=threads, verify=verify)


class CompiledModel:
    """A compiled model: called like the model that it was made from.

    Right after `compile` it returns the model's own types; loaded from an artifact, records such as `ModelOutput`
    become `planish.runtime.Output`, which reads the same. Calls take torch tensors or numpy arrays and may come from
    several threads at once.
    """

    def __init__(
        self,
        path: Path,
        report: "CompileReport | None" = None,
        imported: "Imported | None" = None,
        *,
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        self._path, self._imported, self._report = path, imported, report
        self._threads = threads
        self._loaded: Loaded | None = None
        if imported is None or runs_here(path):
            self._loaded = load_artifact(path, threads=threads, verify=verify, fresh=imported is not None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result. Raises InputError naming the input, what it takes and what was given."""
        main = self.executable.main
        if self._imported is None:
            return main(*args, **kwargs)
        return self._imported.rebuild(main.run(main.leaves(args, kwargs)))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """See `planish.LanguageModel.generate`. Raises InputError: only what was compiled for it generates."""
        raise InputError(f"this model was not compiled to generate; {_HOW_TO_GENERATE}")

    def chat(self, *args: Any, **kwargs: Any) -> Any:
        """See `planish.LanguageModel.chat`. Raises InputError: only what was compiled for it generates."""
        raise InputError(f"this model was not compiled to chat; {_HOW_TO_GENERATE}")

    @property
    def executable(self) -> "Loaded":
        """The runtime's object, with every entry function.

        Raises ArtifactError when the model was compiled for other hardware than this machine's.
        """
        return self._loaded or load_artifact(self._path, threads=self._threads)

    @property
    def report(self) -> "CompileReport | str":
        """What each pass did and refused and which kernel computes what; the stored text for a loaded artifact."""
        return inspect(self._path).report_text if self._report is None else self._report

    def roofline(self, **sizes: int) -> "Roofline":
        """The least time that this machine's measured rates allow for one call at the given sizes, else the usual ones.

        Counted are the operations of the compiled graph and one pass over weights, inputs and results.
        Raises InputError on a size that the model does not have.
        """
        return self._roofline("main", sizes)

    def _roofline(self, function: str, sizes: Mapping[str, int]) -> "Roofline":
        from planish.compiler.analysis import least_costs
        from planish.compiler.text import parse_program
        from planish.hardware_profiles import detect, limit

        text = read_member(self._path, PROGRAM, read_manifest(self._path).files[PROGRAM]).decode()
        graph = parse_program(text)[function]
        known = [size.name for size in graph.sizes]
        for name in sizes:
            if name not in known:
                raise InputError(f"roofline: the model has no size '{name}'{nearest(name, known)}")
        flops, moved = least_costs(graph, sizes)
        return limit(detect(), flops, moved, cores=self.executable.threads)

    def profile(self, *args: Any, repeat: int = 10, **kwargs: Any) -> CallProfile:
        """The time of each kernel by module scope: medians over `repeat` calls with these inputs."""
        return self.executable.profile(*args, repeat=repeat, **kwargs)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the artifact to a folder, or a zip where `path` ends in .zip, all at once or not at all.

        Raises ArtifactError when something else is in the way or the disk cannot be written.
        """
        if self._path.resolve() in Path(path).resolve().parents:
            raise ArtifactError(f"'{path}' lies inside the artifact that is saved; give another path")
        copy(self._path, path, overwrite=overwrite)

    def __reduce__(self) -> Any:
        raise InputError("a CompiledModel cannot be pickled or copied; save it and load the artifact instead")

    def __repr__(self) -> str:
        return f"CompiledModel({self._loaded!r})" if self._loaded else f"CompiledModel({inspect(self._path)})"


def runs_here(path: Path) -> bool:
    """Whether this machine has the hardware that the artifact is for."""
    return cannot_run(read_manifest(path).target) is None
