"""Kernels to object code, and object code to a shared library that needs libc alone."""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import tvm
from tvm import s_tir, tirx
from tvm.tirx import compilation_pipeline

from planish.codegen.tvm.isa import Isa
from planish.codegen.tvm.kernel import ir_module
from planish.errors import BackendMissing, BuildError

_PIPELINE = "planish_c"


def _expose(module: "tvm.IRModule", _: "tvm.transform.PassContext") -> "tvm.IRModule":
    """Give private functions external C symbols."""
    for symbol, function in list(module.functions.items()):
        if "global_symbol" in function.attrs:
            continue
        body = function.body
        # without a device on the stack LLVM code generation refuses local buffers ("Unknown device id")
        for key, value in (("device_type", 1), ("device_id", 0)):
            body = tirx.AttrStmt(tvm.ir.StringImm("default"), key, tirx.IntImm("int32", value), body)
        body = tirx.SeqStmt([body, tirx.stmt.Return(tirx.IntImm("int32", 0))])
        exposed = tirx.PrimFunc(function.params, body, tvm.ir.PrimType("int32"), function.attrs)
        module.update_func(symbol, exposed.with_attr("global_symbol", symbol.name_hint))
    return module


def _pipeline() -> tuple[object, object, object]:
    """What kernels over flat buffers need of TVM's default pipeline, whose other passes take most of its time."""
    passes = [
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        tvm.transform.module_pass(_expose, opt_level=0, name="planish.Expose"),
    ]
    _, host, device = s_tir.pipeline.default_s_tir_pipeline()
    return tvm.transform.Sequential(passes), host, device


def build_object(functions: Mapping[str, "tirx.PrimFunc"], isa: Isa, path: Path) -> None:
    """Compile kernels, by C symbol, to one object file for `isa`; needs no compiler but TVM's LLVM."""
    compilation_pipeline.PIPELINE_MAP[_PIPELINE] = _pipeline
    module = tirx.build(ir_module(functions), target=isa.target(), pipeline=_PIPELINE)
    module.write_to_file(str(path))


def c_compiler(isa: Isa) -> list[str]:
    """The command of a C compiler for `isa`: the system's own for the machine at hand, else ziglang's.

    Raises BackendMissing when neither is there.
    """
    import platform
    from importlib.util import find_spec

    native = isa.triple.split("-")[0] == platform.machine()
    system = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if native and system:
        return [system]
    if find_spec("ziglang"):
        architecture = isa.triple.split("-")[0]
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-gnu.2.28"]
    raise BackendMissing(f"no C compiler for {isa.triple}; pip install 'planish[cpu]' brings one (ziglang)")


def link(sources: Sequence[Path], objects: Sequence[Path], isa: Isa, library: Path) -> None:
    """Compile C sources and link everything to a shared library; raises BuildError with the compiler's words."""
    command = [*c_compiler(isa), "-O2", "-std=c11", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-Bsymbolic"]
    command += [*map(str, sources), *map(str, objects), "-o", str(library), "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"linking {library.name} failed: {done.stderr.strip()[-2000:]}")
