"""Artifacts: what is written, what is checked at load, and what is refused, by its words."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.errors import ArtifactError
from planish.runtime.artifact import copy, write
from planish.runtime.golden import Golden
from planish.runtime.inspection import inspect
from planish.runtime.loading import load
from planish.runtime.manifest import Manifest, Target, Tolerance
from planish.runtime.plan import Plan
from planish.runtime.storage import read_manifest
from tests.runtime.small import TRIPLE, affine_contents, expected

X = np.arange(8, dtype=np.float32).reshape(2, 4)
FILES = {
    "golden.safetensors", "kernels/model.so", "kernels/sources/model.c", "plan.json", "planish.h", "program.txt",
    "report.json", "report.txt", "weights.safetensors",
}  # fmt: skip


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], None], *, resign: bool = True) -> None:
    """Change the manifest's JSON; `resign` keeps its digest true."""
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    if resign:
        body = {key: value for key, value in data.items() if key != "digest"}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        data["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(data))


def test_a_folder_holds_the_files_that_the_manifest_lists(folder: Path) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == FILES | {"manifest.json"}
    assert set(read_manifest(folder).files) == FILES
    assert "int32_t planish_main_0();" in (folder / "planish.h").read_text()


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_an_artifact_loads_and_runs(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    np.testing.assert_array_equal(load(path)(X).y, expected(X))
    np.testing.assert_array_equal(load(str(path), verify=False)(X).y, expected(X))


def test_a_zip_leaves_nothing_behind_and_outlives_its_file(archive: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    run = load(archive)
    archive.unlink()
    assert list((tmp_path / "temporary").iterdir()) == []
    np.testing.assert_array_equal(run(X).y, expected(X))


def test_the_bytes_depend_on_the_contents_alone(library: Path, tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        write(tmp_path / name, affine_contents(library))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_a_copy_of_a_copy_through_a_zip_is_the_same(folder: Path, tmp_path: Path) -> None:
    copy(folder, tmp_path / "a.zip")
    copy(tmp_path / "a.zip", tmp_path / "again")
    for name in FILES | {"manifest.json"}:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_refuses_to_copy_a_damaged_artifact(folder: Path, tmp_path: Path) -> None:
    (folder / "program.txt").write_text("main(y: f32[B, 4])\n")
    with pytest.raises(ArtifactError, match=r"'program\.txt' is damaged"):
        copy(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_byte_in_any_file_is_refused_by_name(folder: Path, name: str) -> None:
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(ArtifactError, match=f"'{name}' is damaged: its hash is not the recorded one"):
        load(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_truncated_file_is_refused_by_name_and_sizes(folder: Path, name: str) -> None:
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[:-1])
    with pytest.raises(ArtifactError, match=f"'{name}' has {len(raw) - 1} bytes, not {len(raw)}"):
        load(folder, verify=False)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"'{name}' is missing from the artifact"):
        load(folder, verify=False)


def test_an_extra_file_is_refused_by_name(folder: Path) -> None:
    (folder / "kernels" / "more.so").write_text("")
    with pytest.raises(ArtifactError, match=r"'kernels/more\.so' is in the artifact but not in its manifest"):
        load(folder, verify=False)


def test_a_link_in_place_of_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "program.txt", tmp_path / "program.txt")
    (folder / "program.txt").symlink_to(tmp_path / "program.txt")
    with pytest.raises(ArtifactError, match=r"'program\.txt' is a link or a device"):
        load(folder)


def test_a_changed_byte_in_any_file_of_a_zip_is_refused(archive: Path) -> None:
    intact = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        names = {member.filename: (member.header_offset, member.file_size) for member in file.infolist()}
    for name, (offset, size) in names.items():
        raw = bytearray(intact)
        raw[offset + 30 + len(name) + size // 2] ^= 1
        archive.write_bytes(raw)
        with pytest.raises(ArtifactError, match=r"damaged|no intact zip"):
            load(archive)


@pytest.mark.parametrize("length", [0, 10, 1000, -1, -30])
def test_a_truncated_zip_is_refused(archive: Path, length: int) -> None:
    archive.write_bytes(archive.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="is no intact zip"):
        load(archive)


def test_refuses_a_path_without_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no artifact at"):
        load(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"is no artifact: it has no manifest\.json"):
        load(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ArtifactError, match="is no intact zip"):
        load(tmp_path / "text")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme", "hello")
    with pytest.raises(ArtifactError, match=r"is no artifact: it has no manifest\.json"):
        load(tmp_path / "other.zip")


class TestManifest:
    def test_it_round_trips(self, folder: Path) -> None:
        raw = (folder / "manifest.json").read_bytes()
        assert Manifest.from_bytes(raw).to_bytes() == raw

    def test_a_newer_format_is_refused_before_anything_else(self, folder: Path) -> None:
        def newer(data: dict[str, Any]) -> None:
            data.update(format=3, planish="9.0", files="elsewhere", surprise=1)

        rewrite_manifest(folder, newer, resign=False)
        (folder / "plan.json").unlink()
        words = "the artifact has format 3, written by planish 9.0; this version reads up to format 2: upgrade planish"
        with pytest.raises(ArtifactError, match=words):
            load(folder)

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("format", 0, "manifest.json: format should be an integer of at least 1, not 0"),
            ("target", "host", "manifest.json: target should be an object"),
            ("recipe", [1], r"manifest.json: recipe\[0\] should be a string, not 1"),
            ("golden", {"main": {"rtol": -1, "atol": 0}}, "golden.main.rtol should be a number of at least 0, not -1"),
            ("files", {"../x": {"sha256": "", "bytes": 0}}, r"lists the file '../x', which has an empty part, '.' or"),
            ("files", {"/x": {"sha256": "", "bytes": 0}}, "lists the file '/x', which is not a relative path"),
            ("files", {"a\\x": {"sha256": "", "bytes": 0}}, "which is not a relative path"),
            ("more", 1, "manifest.json has the unknown key 'more'"),
        ],
    )
    def test_refuses_a_wrong_entry_by_its_path(self, folder: Path, key: str, value: Any, words: str) -> None:
        rewrite_manifest(folder, lambda data: data.update({key: value}))
        with pytest.raises(ArtifactError, match=words):
            load(folder)

    def test_an_altered_manifest_is_refused(self, folder: Path) -> None:
        rewrite_manifest(folder, lambda data: data["golden"]["main"].update(atol=100.0), resign=False)
        with pytest.raises(ArtifactError, match=r"manifest\.json was altered after it was written"):
            load(folder)

    @pytest.mark.parametrize("text", [b"", b"{", b"\xff{}", b'{"format": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000])
    def test_text_that_is_no_json_is_refused(self, folder: Path, text: bytes) -> None:
        (folder / "manifest.json").write_bytes(text)
        with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
            load(folder)

    def test_another_json_file_is_no_manifest(self, folder: Path) -> None:
        (folder / "manifest.json").write_text("{}")
        with pytest.raises(
            ArtifactError, match=r"manifest\.json has no format version; this is no artifact of planish"
        ):
            load(folder)

    def test_a_huge_manifest_is_not_read(self, folder: Path) -> None:
        with (folder / "manifest.json").open("ab") as file:
            file.truncate(1 << 40)
        with pytest.raises(ArtifactError, match=r"'manifest\.json' is over the 16 MiB"):
            load(folder)


class TestTarget:
    def test_another_instruction_set_is_refused(self, library: Path, tmp_path: Path) -> None:
        foreign = "x86_64-linux-gnu" if TRIPLE.startswith("aarch64") else "aarch64-linux-gnu"
        target = Target("neoverse-v2", foreign, (), "")
        write(tmp_path / "a", affine_contents(library, target=target))
        words = rf"the artifact is for neoverse-v2 \({foreign}\) and cannot run here: .*; compile the model for this"
        with pytest.raises(ArtifactError, match=words):
            load(tmp_path / "a", verify=False)

    def test_a_feature_that_the_processor_lacks_is_named(self, library: Path, tmp_path: Path) -> None:
        write(tmp_path / "a", affine_contents(library, target=Target("host", TRIPLE, ("warp-drive",), "")))
        with pytest.raises(ArtifactError, match="cannot run here: it needs warp-drive"):
            load(tmp_path / "a")

    def test_a_file_that_the_system_cannot_load_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "text.so").write_text("not a library")
        write(tmp_path / "a", affine_contents(tmp_path / "text.so"))
        with pytest.raises(ArtifactError, match=r"the system cannot load '.*model\.so': .*; compile the model on this"):
            load(tmp_path / "a")


class TestGolden:
    def write(self, library: Path, path: Path, outputs: np.ndarray, tolerance: Tolerance) -> Path:
        write(path, affine_contents(library, golden={"main": Golden((X,), (outputs,), tolerance)}))
        return path

    def test_another_result_is_refused_with_its_place(self, library: Path, tmp_path: Path) -> None:
        recorded = expected(X)
        recorded[1, 2] += 0.5
        path = self.write(library, tmp_path / "a", recorded, Tolerance(1e-6, 0.1))
        words = r"golden check: output 0 of main is 19.0 at \[1, 2\], recorded 19.5 \(rtol 1e-06, atol 0.1\)"
        with pytest.raises(ArtifactError, match=words):
            load(path)
        np.testing.assert_array_equal(load(path, verify=False)(X).y, expected(X))

    def test_the_largest_error_is_told_whatever_block_it_lies_in(
        self, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = np.ones((1000, 4), np.float32)
        recorded = expected(x)
        recorded[3, 1] += 0.5
        recorded[900, 2] += 2.0
        golden = {"main": Golden((x,), (recorded,), Tolerance(1e-6, 0.1))}
        write(tmp_path / "a", affine_contents(library, golden=golden))
        monkeypatch.setattr("planish.runtime.golden._BLOCK", 256)
        with pytest.raises(ArtifactError, match=r"is 4.0 at \[900, 2\], recorded 6.0"):
            load(tmp_path / "a")

    def test_what_was_just_written_is_checked_by_its_result_alone(self, folder: Path, tmp_path: Path) -> None:
        np.testing.assert_array_equal(load(folder, fresh=True)(X).y, expected(X))
        (folder / "program.txt").write_text("main(y: f32[B, 4])\n"[: (folder / "program.txt").stat().st_size])
        with pytest.raises(ArtifactError, match=r"'program\.txt'"):
            load(folder)

    def test_a_wrong_result_of_what_was_just_written_is_refused(self, library: Path, tmp_path: Path) -> None:
        path = self.write(library, tmp_path / "a", expected(X) + 0.5, Tolerance(1e-6, 0.1))
        with pytest.raises(ArtifactError, match=r"golden check: output 0 of main"):
            load(path, fresh=True)

    def test_a_result_within_the_tolerance_is_accepted(self, library: Path, tmp_path: Path) -> None:
        load(self.write(library, tmp_path / "a", expected(X) + 0.5, Tolerance(0, 0.6)))
        load(self.write(library, tmp_path / "b", expected(X) * 1.25, Tolerance(0.21, 0)))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_number_is_never_close_to_nan_or_infinity(self, library: Path, tmp_path: Path, value: float) -> None:
        recorded = expected(X)
        recorded[0, 1] = value
        with pytest.raises(ArtifactError, match=r"golden check: output 0 of main is 3.0 at \[0, 1\], recorded"):
            load(self.write(library, tmp_path / "a", recorded, Tolerance(1, 1)))

    def test_a_result_of_another_shape_is_refused(self, library: Path, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"output 0 of main has shape \[2, 4\], recorded \[1, 4\]"):
            load(self.write(library, tmp_path / "a", expected(X)[:1], Tolerance(1, 1)))

    def test_refuses_to_record_another_dtype(self, library: Path, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="golden output 0 of main is float64, the plan says f32"):
            self.write(library, tmp_path / "a", expected(X).astype(np.float64), Tolerance(1, 1))

    def test_a_record_of_an_unknown_function_is_refused(self, folder: Path) -> None:
        rewrite_manifest(folder, lambda data: data["golden"].update(decode={"rtol": 0, "atol": 0}))
        with pytest.raises(ArtifactError, match="the manifest records results of 'decode', which the plan lacks"):
            load(folder)


class TestWriting:
    def test_an_artifact_is_replaced_and_anything_else_is_not(
        self, library: Path, folder: Path, tmp_path: Path
    ) -> None:
        write(folder, affine_contents(library, recipe=("second",)))
        assert inspect(folder).recipe == ("second",)
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").write_text("cat")
        (tmp_path / "notes.zip").write_text("notes")
        for name in ("photos", "notes.zip"):
            with pytest.raises(ArtifactError, match=f"{name}' exists and is no artifact; give another path, or overw"):
                write(tmp_path / name, affine_contents(library))
        assert (tmp_path / "photos" / "cat.jpg").read_text() == "cat"
        for name in ("photos", "notes.zip"):
            write(tmp_path / name, affine_contents(library), overwrite=True)
            np.testing.assert_array_equal(load(tmp_path / name)(X).y, expected(X))

    def test_a_folder_replaces_a_zip_and_a_zip_a_zip(self, library: Path, folder: Path, archive: Path) -> None:
        archive.rename(archive.with_suffix(".planish2"))
        write(archive.with_suffix(".planish2"), affine_contents(library))
        assert archive.with_suffix(".planish2").is_dir()
        copy(folder, archive)
        copy(folder, archive)
        load(archive)

    def test_only_the_artifact_is_left_beside_it(self, library: Path, folder: Path) -> None:
        write(folder, affine_contents(library))
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    @pytest.mark.parametrize("parent", ["missing", "file", "/proc"])
    def test_a_place_that_cannot_be_written_is_an_error(self, library: Path, tmp_path: Path, parent: str) -> None:
        (tmp_path / "file").write_text("")
        path = tmp_path / parent / "a.planish"
        with pytest.raises(ArtifactError, match=r"cannot save '.*a\.planish': .*; nothing was changed there"):
            write(path, affine_contents(library))

    def test_refuses_parts_that_do_not_fit(self, library: Path, tmp_path: Path) -> None:
        with pytest.raises(
            ArtifactError, match=r"the plan names the library kernels/model\.so, the contents give None"
        ):
            write(tmp_path / "a", affine_contents(None))
        with pytest.raises(ArtifactError, match=r"'kernels/sources/\.\./\.\./\.\./x' would be written outside"):
            write(tmp_path / "a", affine_contents(library, sources={"../../../x": "text"}))
        with pytest.raises(ArtifactError, match="a plan needs at least one function"):
            write(tmp_path / "a", affine_contents(library, plan=Plan(None, {}, {})))
        assert list(tmp_path.iterdir()) == []


def test_inspect_reads_a_folder_and_a_zip_without_running_them(folder: Path, archive: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ctypes.CDLL", None)
    info = inspect(folder)
    assert info.functions["main"].inputs == ("x: f32[B, 4]",)
    assert info.functions["main"].sizes == ("B in 1..1000",)
    assert dict(info.functions["main"].kernels) == {"copy": 1, "affine": 1}
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert info.total_bytes == sum(sizes) - (folder / "manifest.json").stat().st_size
    assert info.report_text == "nothing was changed\n"
    assert json.loads(json.dumps(info.to_json()))["target"]["triple"] == TRIPLE
    assert {**inspect(archive).to_json(), "path": ""} == {**info.to_json(), "path": ""}
    assert "main(x: f32[B, 4]) -> f32[B, 4]" in str(info)
    (folder / "plan.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"'plan\.json' is damaged"):
        inspect(folder)
    with pytest.raises(ArtifactError, match="there is no artifact at"):
        inspect(folder / "nothing")
