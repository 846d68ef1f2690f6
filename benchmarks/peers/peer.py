"""What a peer is: a way to run a zoo model, with its version, prepared as its own users would for speed."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from benchmarks.zoo import Call, Inputs, ZooModel


class PeerError(RuntimeError):
    """A peer is not installed, or cannot run a model; the reason goes into the results."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A runtime to compare: `build(model, module, inputs, threads)` gives a callable of the module's signature.

    The callable takes the tensors of `inputs` by position and returns the module's outputs, or a tuple of them.
    It computes in fp32 on `threads` threads, or in bf16 where its name ends so. It may be specialised to the shapes of
    `inputs`; `shapes` says so.
    """

    name: str
    package: str
    shapes: str
    build: Callable[[ZooModel, nn.Module, Inputs, int], Call]

    def version(self) -> str:
        """The version of the package; PeerError with the command that installs it where it is absent."""
        try:
            return version(self.package)
        except PackageNotFoundError as error:
            raise PeerError(f"{self.name} is not installed; run 'pip install {self.package}'") from error

    def prepare(self, model: ZooModel, module: nn.Module, inputs: Inputs, threads: int) -> Call:
        """A callable that has run `inputs` once; PeerError with the reason where the peer cannot."""
        self.version()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call = self.build(model, module, inputs, threads)
                call(*inputs.values())
        except Exception as error:
            raise PeerError(f"{self.name} cannot run {model.name}: {type(error).__name__}: {error}") from error
        return call
