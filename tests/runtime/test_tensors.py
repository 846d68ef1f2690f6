"""Safetensors files: aligned for kernels, readable by the safetensors library, strict when read."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

from planish.errors import ArtifactError
from planish.runtime.storage import checking, describe_files
from planish.runtime.tensors import Deferred, TensorFile, weight_offsets, write_tensors, write_weights

RNG = np.random.default_rng(0)
WEIGHTS = {
    "odd": RNG.random(37, np.float32),
    "matrix": np.asfortranarray(RNG.random((5, 7))),
    "bytes": np.arange(64, dtype=np.int8),
    "empty": np.zeros(0, np.float32),
    "flags": np.array([True, False, True]),
}


def test_every_weight_starts_at_its_offset_from_an_aligned_base(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", WEIGHTS)
    raw = (tmp_path / "w.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    assert start % 64 == 0
    assert TensorFile(tmp_path / "w.safetensors", aligned=True).address % 64 == 0
    for name, offset in weight_offsets(WEIGHTS).items():
        assert offset % 64 == 0
        expected = np.ascontiguousarray(WEIGHTS[name]).tobytes()
        assert raw[start + offset : start + offset + len(expected)] == expected


def _resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile:"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_pages_that_were_read_sparingly_leave_the_memory_and_read_the_same_again(tmp_path: Path) -> None:
    array = RNG.random(8 << 20, np.float32)
    write_weights(tmp_path / "w.safetensors", {"a": array})
    file = TensorFile(tmp_path / "w.safetensors")
    before = _resident_file_bytes()
    np.testing.assert_array_equal(file.array("a", "f32", (array.size,)), array)
    assert _resident_file_bytes() - before > 24 << 20
    with file.sparing():
        np.testing.assert_array_equal(file.array("a", "f32", (array.size,)), array)
    assert _resident_file_bytes() - before < 8 << 20
    np.testing.assert_array_equal(file.array("a", "f32", (array.size,)), array)


def test_a_copy_keeps_what_is_read_sparingly(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", WEIGHTS)
    file = TensorFile(tmp_path / "w.safetensors", memory=memoryview((tmp_path / "w.safetensors").read_bytes()))
    with file.sparing():
        np.testing.assert_array_equal(file.array("odd", "f32", (37,)), WEIGHTS["odd"])
    np.testing.assert_array_equal(file.array("odd", "f32", (37,)), WEIGHTS["odd"])


def test_a_deferred_weight_is_written_part_by_part(tmp_path: Path) -> None:
    array = RNG.random(100, np.float32)
    deferred = Deferred(array.dtype, 100, lambda: (array[i : i + 30] for i in range(0, 100, 30)))
    write_weights(tmp_path / "whole", {"before": WEIGHTS["odd"], "w": array, "after": WEIGHTS["bytes"]})
    write_weights(tmp_path / "parts", {"before": WEIGHTS["odd"], "w": deferred, "after": WEIGHTS["bytes"]})
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_refuses_a_deferred_weight_of_another_size_than_announced(tmp_path: Path) -> None:
    deferred = Deferred(np.dtype(np.float32), 20, lambda: [np.zeros(19, np.float32)])
    with pytest.raises(ArtifactError, match="'w' has 76 bytes, 80 were announced"):
        write_weights(tmp_path / "w.safetensors", {"w": deferred})


def test_the_safetensors_library_reads_our_weights(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", WEIGHTS)
    for name, padded in load_file(tmp_path / "w.safetensors").items():
        assert padded.nbytes % 64 == 0
        np.testing.assert_array_equal(padded[: WEIGHTS[name].size], WEIGHTS[name].reshape(-1))


def test_the_safetensors_library_reads_our_bf16_and_f8(tmp_path: Path) -> None:
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    wide, narrow = values.to(torch.bfloat16), values.to(torch.float8_e4m3fn)
    written = {
        "x": ("bf16", wide.view(torch.int16).numpy().view(np.uint16)),
        "y": ("f8", narrow.view(torch.uint8).numpy()),
    }
    write_tensors(tmp_path / "t.safetensors", written)
    found = load_torch(tmp_path / "t.safetensors")
    assert torch.equal(found["x"], wide)
    assert torch.equal(found["y"].float(), narrow.float())


def test_weights_without_a_numpy_dtype_are_read_as_their_bits(tmp_path: Path) -> None:
    weights = {"x": np.arange(6, dtype=np.uint16), "y": np.arange(6, dtype=np.uint8)}
    write_weights(tmp_path / "w.safetensors", weights)
    file = TensorFile(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(file.array("x", "bf16", (2, 3)).reshape(-1), weights["x"])
    np.testing.assert_array_equal(file.array("y", "f8", (6,)), weights["y"])
    with pytest.raises(ArtifactError, match="needed as f16"):
        file.array("x", "f16", (6,))


def test_we_read_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    save_file({"a": WEIGHTS["odd"], "b": np.arange(6).reshape(2, 3)}, tmp_path / "t.safetensors", {"note": "kept"})
    file = TensorFile(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(file.array("a", "f32", (37,)), WEIGHTS["odd"])
    np.testing.assert_array_equal(file.array("b", "i64", (2, 3)), [[0, 1, 2], [3, 4, 5]])
    assert not file.array("b", "i64", (2, 3)).flags.writeable


def test_a_file_that_was_read_holds_the_same_in_memory_of_its_own(tmp_path: Path) -> None:
    weights = {**WEIGHTS, "large": RNG.integers(0, 256, 5_000_001, np.uint8)}
    write_weights(tmp_path / "w.safetensors", weights)
    with checking(tmp_path, describe_files(tmp_path), contents=True) as intake:
        memory = intake.into_memory("w.safetensors")
        intake.finish()
    file = TensorFile(tmp_path / "w.safetensors", aligned=True, memory=memory)
    (tmp_path / "w.safetensors").write_bytes(b"")
    assert file.address % (2 << 20) == 0
    for name, array in weights.items():
        found = file.array(
            name,
            {"int8": "i8", "bool": "bool", "uint8": "u8", "float64": "f64"}.get(array.dtype.name, "f32"),
            array.shape,
        )
        np.testing.assert_array_equal(found, array)
        assert not found.flags.writeable


def test_refuses_a_tensor_read_as_something_else(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", WEIGHTS)
    file = TensorFile(tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"'odd' is F32\[48\], needed as i64\[4\]"):
        file.array("odd", "i64", (4,))
    with pytest.raises(ArtifactError, match=r"'odd' is F32\[48\], needed as f32\[49\]"):
        file.array("odd", "f32", (49,))
    with pytest.raises(ArtifactError, match=r"w\.safetensors has no tensor 'even'"):
        file.array("even", "f32", (1,))


def test_refuses_to_store_a_dtype_that_kernels_do_not_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a weight of dtype complex64 cannot be stored"):
        write_weights(tmp_path / "w.safetensors", {"w": np.zeros(3, np.complex64)})


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry()}, 12, "holds 12 bytes of data, not 16"),
        ({"a": entry()}, 20, "holds 20 bytes of data, not 16"),
        ({"a": entry(), "b": entry(offsets=(8, 24))}, 24, "'b' starts at 8, not at 16"),
        ({"a": entry(offsets=(4, 20))}, 20, "'a' starts at 4, not at 0"),
        ({"a": entry(shape=(5,))}, 16, "a.data_offsets should be a range of 20 bytes"),
        ({"a": entry(offsets=(16, 0))}, 16, "a.data_offsets should be a range of 16 bytes"),
        ({"a": entry(offsets=(0, 16, 16))}, 16, "a.data_offsets should be a range"),
        ({"a": entry(shape=(-4,))}, 16, r"a.shape\[0\] should be an integer of at least 0, not -4"),
        ({"a": entry(dtype="F33")}, 16, "a.dtype should be one of"),
        ({"a": {"dtype": "F32"}}, 16, "a has no 'shape'"),
        ({"a": {**entry(), "more": 1}}, 16, "a has the unknown key 'more'"),
        ([], 16, r"should be an object, not \[\]"),
    ],
)
def test_refuses_a_header_that_the_format_does_not_allow(tmp_path: Path, header: Any, data: int, words: str) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    with pytest.raises(ArtifactError, match=words):
        TensorFile(tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"abc", "is truncated: 3 bytes hold no header"),
        (struct.pack("<Q", 1 << 60) + b"{}", "is truncated: its header of 1152921504606846976 bytes is longer"),
        (struct.pack("<Q", 2) + b"{]", "t.safetensors is damaged"),
        (struct.pack("<Q", 20) + b'{"a":{"a":1},"a":{}}', "an object repeats a key"),
        (b"", "cannot read"),
    ],
)
def test_refuses_a_file_that_is_cut_or_no_json(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "t.safetensors").write_bytes(raw)
    with pytest.raises(ArtifactError, match=words):
        TensorFile(tmp_path / "t.safetensors")


def test_refuses_weights_that_are_not_aligned(tmp_path: Path) -> None:
    text = json.dumps({"a": entry()}).encode()
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(ArtifactError, match=r"the data starts at .*, not at a multiple of 64"):
        TensorFile(tmp_path / "t.safetensors", aligned=True)
