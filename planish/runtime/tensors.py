"""Safetensors files: a writer that aligns the data for kernels and a strict reader on a map or a copy in memory."""

import json
import mmap
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from planish.errors import ArtifactError
from planish.runtime.dtypes import NUMPY, SAFETENSORS, DTypeName
from planish.runtime.fields import Field, parse_json

ALIGNMENT: Final = 64
_DROP_SECONDS: Final = 0.002  # at the bandwidth of memory a few dozen MB are read meanwhile
_NAMES: Final[dict[str, str]] = {NUMPY[name]: word for name, word in SAFETENSORS.items()} | {
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bfloat16": "BF16",
}  # fmt: skip
_ITEMSIZE: Final[dict[str, int]] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as a safetensors header describes it; offsets in bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Deferred:
    """A weight of known size whose arrays, one after another its elements, are made while it is written."""

    dtype: np.dtype[Any]
    size: int
    parts: Callable[[], Iterable[np.ndarray[Any, Any]]]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize


Weight = np.ndarray[Any, Any] | Deferred


def weight_offsets(weights: Mapping[str, Weight]) -> dict[str, int]:
    """Where `write_weights` puts each weight: bytes from the base pointer that kernels get, multiples of 64."""
    offsets, position = {}, 0
    for name, array in weights.items():
        offsets[name] = position
        position += _padded(array.nbytes)
    return offsets


def write_weights(path: Path, weights: Mapping[str, Weight]) -> None:
    """Write `weights` in their order, each flattened and padded with zeros to a multiple of 64 bytes.

    Of deferred weights one part at a time is in memory.
    """
    entries, offsets = {}, weight_offsets(weights)
    for name, weight in weights.items():
        size = _padded(weight.nbytes)
        entries[name] = Stored(_dtype_of(weight), (size // weight.itemsize,), offsets[name], offsets[name] + size)
    with path.open("wb") as file:
        file.write(_header(entries))
        for name, weight in weights.items():
            written = 0
            for part in weight.parts() if isinstance(weight, Deferred) else (weight,):
                _write_array(file, part)
                written += part.nbytes
            if written != weight.nbytes:
                raise ArtifactError(f"'{name}' has {written} bytes, {weight.nbytes} were announced; report this")
            file.write(bytes(_padded(written) - written))


def write_tensors(path: Path, tensors: Mapping[str, tuple[DTypeName, np.ndarray[Any, Any]]]) -> None:
    """Write tensors with their shapes and dtypes; bf16 is given as u16 bits."""
    entries, position = {}, 0
    for name, (dtype, array) in tensors.items():
        entries[name] = Stored(SAFETENSORS[dtype], array.shape, position, position + array.nbytes)
        position += array.nbytes
    with path.open("wb") as file:
        file.write(_header(entries))
        for _, array in tensors.values():
            _write_array(file, array)


class TensorFile:
    """A safetensors file in memory, read-only; the data starts at a multiple of 64 bytes where `aligned`.

    The file is mapped, unless all of its bytes are in `memory` already.
    Raises ArtifactError, naming the file and the tensor, on anything that the format does not allow:
    a header longer than the file, an unknown dtype, tensors that overlap, leave holes or end early.
    """

    def __init__(self, path: Path, *, aligned: bool = False, memory: memoryview | None = None) -> None:
        self._name = path.name
        self._all: memoryview | mmap.mmap = _mapped(path) if memory is None else memory
        self.start = self._data_start()
        """Where in the file the data begin."""
        self.tensors = _read_header(Field(parse_json(bytes(self._all[8 : self.start]), self._name), self._name))
        self._check_extent()
        if aligned and self.start % ALIGNMENT:
            raise ArtifactError(f"{self._name}: the data starts at {self.start}, not at a multiple of {ALIGNMENT}")
        self._bytes = np.frombuffer(self._all, np.uint8)[self.start :]

    @property
    def address(self) -> int:
        """The address of the first byte of data."""
        return int(self._bytes.ctypes.data)

    @property
    def data(self) -> np.ndarray[Any, Any]:
        """All data as bytes, read-only."""
        return self._bytes

    def array(self, name: str, dtype: DTypeName, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The first elements of a tensor, read-only, as `dtype` (bf16 and f8 as their bits) and `shape`."""
        stored = self.tensors.get(name)
        if stored is None:
            raise ArtifactError(f"{self._name} has no tensor '{name}'")
        count, numpy_type = prod(shape), np.dtype(NUMPY[dtype])
        if (
            stored.dtype not in (SAFETENSORS[dtype], _NAMES[NUMPY[dtype]])
            or stored.end - stored.begin < count * numpy_type.itemsize
        ):
            raise ArtifactError(
                f"{self._name}: '{name}' is {stored.dtype}{list(stored.shape)}, needed as {dtype}{list(shape)}"
            )
        data: np.ndarray[Any, Any] = self._bytes[stored.begin : stored.begin + count * numpy_type.itemsize]
        return data.view(numpy_type).reshape(shape)

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """While the block runs, pages that were read soon leave this process's memory again; not those of `memory`."""
        if not isinstance(mapped := self._all, mmap.mmap):
            yield
            return
        ended = threading.Event()

        def drop() -> None:
            while not ended.wait(_DROP_SECONDS):
                mapped.madvise(mmap.MADV_DONTNEED)

        thread = threading.Thread(target=drop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            mapped.madvise(mmap.MADV_DONTNEED)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a stored tensor; raises ArtifactError where there is none of that name."""
        if name not in self.tensors:
            raise ArtifactError(f"{self._name} has no tensor '{name}'")
        return self.tensors[name].shape

    def _data_start(self) -> int:
        if len(self._all) < 8:
            raise ArtifactError(f"{self._name} is truncated: {len(self._all)} bytes hold no header")
        (length,) = struct.unpack("<Q", self._all[:8])
        if length > len(self._all) - 8:
            raise ArtifactError(f"{self._name} is truncated: its header of {length} bytes is longer than the file")
        return 8 + int(length)

    def _check_extent(self) -> None:
        position = 0
        for name, stored in sorted(self.tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            if stored.begin != position:
                raise ArtifactError(f"{self._name}: '{name}' starts at {stored.begin}, not at {position}")
            position = stored.end
        if position != len(self._all) - self.start:
            found = len(self._all) - self.start
            raise ArtifactError(f"{self._name} is damaged: it holds {found} bytes of data, not {position}")


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read '{path}': {error}") from error


def _read_header(header: Field) -> dict[str, Stored]:
    members = {name: field for name, field in header.members().items() if name != "__metadata__"}
    return {name: _read_entry(field) for name, field in members.items()}


def _read_entry(field: Field) -> Stored:
    members = field.object("dtype", "shape", "data_offsets")
    dtype = members["dtype"].text(*_ITEMSIZE)
    shape = members["shape"].each(lambda item: item.integer())
    offsets = members["data_offsets"].each(lambda item: item.integer())
    if len(offsets) != 2 or offsets[1] - offsets[0] != prod(shape) * _ITEMSIZE[dtype]:
        raise members["data_offsets"].error(f"a range of {prod(shape) * _ITEMSIZE[dtype]} bytes")
    return Stored(dtype, shape, offsets[0], offsets[1])


def _header(entries: Mapping[str, Stored]) -> bytes:
    described = {
        name: {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [stored.begin, stored.end]}
        for name, stored in entries.items()
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (_padded(len(text) + 8) - len(text) - 8)
    return struct.pack("<Q", len(text)) + text


def _dtype_of(weight: Weight) -> str:
    if weight.dtype.name not in _NAMES or not weight.dtype.isnative:
        raise ArtifactError(f"a weight of dtype {weight.dtype} cannot be stored; known: {', '.join(_NAMES)}")
    return _NAMES[weight.dtype.name]


def _write_array(file: BinaryIO, array: np.ndarray[Any, Any]) -> None:
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
