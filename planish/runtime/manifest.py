"""manifest.json: what an artifact is, what it needs to run, and the size and hash of each of its files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Final

from planish.errors import ArtifactError
from planish.runtime.fields import Field, Json, parse_json
from planish.runtime.generation.settings import Settings

FORMAT: Final = 2
NAME: Final = "manifest.json"
WEIGHTS: Final = "weights.safetensors"
# Far more than any manifest: what a reader takes into memory before it knows what it reads.
MAXIMUM_BYTES: Final = 16 << 20
_PIECE_UNIT: Final = 1 << 20  # pieces begin at pages of any system, and are not too many


@dataclass(frozen=True, slots=True)
class Target:
    """The hardware that an artifact is for: the profile and its hash, and what it must have.

    That is an instruction set of a CPU, or a device, written as the driver and the architecture: "cuda:90".
    """

    profile: str
    triple: str
    features: tuple[str, ...]
    fingerprint: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an artifact.

    `sha256` is that of the file; where `piece_bytes` is given, that of the sha256 (32 bytes each) of its pieces of so
    many bytes, so that all cores can hash a large file.
    """

    sha256: str
    bytes: int
    piece_bytes: int = 0

    def to_json(self) -> Json:
        pieces: dict[str, Json] = {"piece_bytes": self.piece_bytes} if self.piece_bytes else {}
        return {"sha256": self.sha256, "bytes": self.bytes, **pieces}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a result may be from the recorded one: `|a - b| <= atol + rtol * |b|`."""

    rtol: float
    atol: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole of manifest.json. `functions` are signatures as text, `golden` is by function.

    `generation` is there for language models.
    """

    planish: str
    target: Target
    functions: Mapping[str, str]
    recipe: tuple[str, ...]
    created_with: Mapping[str, str]
    files: Mapping[str, FileEntry]
    golden: Mapping[str, Tolerance]
    generation: Settings | None = None

    def to_bytes(self) -> bytes:
        """The text of the file, with the format version and a digest of everything else in it."""
        body = {"format": FORMAT, **asdict(self), "files": {name: file.to_json() for name, file in self.files.items()}}
        del body["generation"]
        if self.generation is not None:
            body["generation"] = self.generation.to_json()
        return json.dumps({**body, "digest": _digest(body)}, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Manifest":
        """The checked manifest; raises ArtifactError on a newer format before it looks at anything else."""
        field = Field(parse_json(raw, NAME), NAME)
        _check_format(field.members())
        names = ("planish", "target", "functions", "recipe", "created_with", "files", "golden")
        members = field.object("format", "digest", *names, optional=("generation",))
        if (
            _digest({key: member.value for key, member in members.items() if key != "digest"})
            != members["digest"].value
        ):
            raise ArtifactError(f"{NAME} was altered after it was written; save or download the artifact again")
        return cls(
            members["planish"].text(),
            _read_target(members["target"]),
            {name: text.text() for name, text in members["functions"].members().items()},
            members["recipe"].each(lambda line: line.text()),
            {name: version.text() for name, version in members["created_with"].members().items()},
            {_checked_path(name): _read_file(entry) for name, entry in members["files"].members().items()},
            {name: _read_tolerance(entry) for name, entry in members["golden"].members().items()},
            Settings.from_json(members["generation"]) if "generation" in members else None,
        )


def unsafe_path(name: str) -> str | None:
    """Why a file of that name could land outside the artifact, or None."""
    parts = name.split("/")
    if PurePosixPath(name).is_absolute() or "\\" in name or ":" in name or "\0" in name:
        return "is not a relative path with forward slashes"
    return "has an empty part, '.' or '..'" if {"", ".", ".."} & set(parts) else None


def _check_format(members: Mapping[str, Field]) -> None:
    if "format" not in members:
        raise ArtifactError(f"{NAME} has no format version; this is no artifact of planish")
    version = members["format"].integer(1)
    if version > FORMAT:
        by = members["planish"].value if "planish" in members else "a later version"
        raise ArtifactError(
            f"the artifact has format {version}, written by planish {by}; this version reads up to format {FORMAT}: "
            "upgrade planish, or compile the model again with this one"
        )


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_target(field: Field) -> Target:
    members = field.object("profile", "triple", "features", "fingerprint", "device")
    features = members["features"].each(lambda feature: feature.text())
    profile, triple, fingerprint, device = (
        members[name].text() for name in ("profile", "triple", "fingerprint", "device")
    )
    return Target(profile, triple, features, fingerprint, device)


def _read_file(field: Field) -> FileEntry:
    members = field.object("sha256", "bytes", optional=("piece_bytes",))
    piece_bytes = members["piece_bytes"].integer(_PIECE_UNIT) if "piece_bytes" in members else 0
    if piece_bytes % _PIECE_UNIT:
        raise members["piece_bytes"].error(f"a multiple of {_PIECE_UNIT}")
    return FileEntry(members["sha256"].text(), members["bytes"].integer(), piece_bytes)


def _read_tolerance(field: Field) -> Tolerance:
    members = field.object("rtol", "atol")
    return Tolerance(members["rtol"].number(), members["atol"].number())


def _checked_path(name: str) -> str:
    if why := unsafe_path(name):
        raise ArtifactError(f"{NAME} lists the file {name!r}, which {why}")
    return name
