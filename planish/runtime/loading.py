"""Loading an artifact: checked, assembled, and shown to compute what was recorded."""

from pathlib import Path
from typing import TYPE_CHECKING

from planish.errors import ArtifactError
from planish.hardware_profiles.host import host_supports
from planish.runtime.storage import checking, opened, read_manifest

if TYPE_CHECKING:
    from planish.runtime.executor import Executable


def load(path: str | Path, *, verify: bool = True, threads: int | None = None, fresh: bool = False) -> "Executable":
    """The artifact at `path`, ready to be called.

    Checked in this order: format version, list and sizes of files, their hashes (`verify`), this machine's
    instruction set, the library, and that the recorded inputs give the recorded outputs (`verify`). Raises
    ArtifactError with what is wrong. `threads` is how many a call uses; all cores of the process by default. What this
    process has written a moment ago is `fresh`: it is not hashed again, and the check keeps little of it in memory.
    """
    with opened(Path(path)) as folder:
        manifest = read_manifest(folder)
        with checking(folder, manifest.files, contents=verify and not fresh) as finish:
            # Hashing leaves the interpreter free: numpy and the executor are imported meanwhile.
            from planish.runtime.artifact import assembled

            finish()
        if why := host_supports(manifest.target.triple, manifest.target.features):
            raise ArtifactError(
                f"the artifact is for {manifest.target.profile} ({manifest.target.triple}) and cannot run here: {why}; "
                "compile the model for this machine"
            )
        return assembled(folder, manifest, threads, verify=verify, fresh=fresh)
