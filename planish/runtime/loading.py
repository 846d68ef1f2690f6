"""Loading an artifact: checked, assembled, and shown to compute what was recorded."""

from pathlib import Path
from typing import TYPE_CHECKING

from planish.errors import ArtifactError
from planish.hardware_profiles.host import host_supports
from planish.runtime.manifest import WEIGHTS
from planish.runtime.storage import checking, opened, read_manifest

if TYPE_CHECKING:
    from planish.runtime.artifact import Loaded
    from planish.runtime.intake import Intake
    from planish.runtime.manifest import Manifest, Target


def load(path: str | Path, *, verify: bool = True, threads: int | None = None, fresh: bool = False) -> "Loaded":
    """The artifact at `path`, ready to be called.

    Checked in this order: format version, list and sizes of files, their hashes (`verify`), this machine's
    instruction set or GPU, the library, and that the recorded inputs give the recorded outputs (`verify`). A GPU's
    weights are hashed on their way there. Raises ArtifactError with what is wrong. `threads` is how many a call uses;
    all cores of the process by default. What this process has written a moment ago is `fresh`: it is not hashed again,
    and the check keeps little of it in memory.
    """
    with opened(Path(path)) as folder:
        manifest = read_manifest(folder)
        with checking(folder, manifest.files, contents=verify and not fresh) as intake:
            weights = _begun(intake, manifest)
            # Hashing leaves the interpreter free: numpy and the executor are imported meanwhile.
            from planish.runtime.artifact import assembled

            intake.finish()
            if why := cannot_run(manifest.target):
                target = manifest.target
                raise ArtifactError(
                    f"the artifact is for {target.profile} ({target.device or target.triple}) and cannot run here: "
                    f"{why}; compile the model for this machine"
                )
            return assembled(folder, manifest, intake, weights, threads, verify=verify, fresh=fresh)


def _begun(intake: "Intake", manifest: "Manifest") -> memoryview | None:
    """Begin to take all files in, but the weights of a device; the memory that will hold the weights if any does."""
    read = WEIGHTS in manifest.files and (manifest.generation is not None or bool(manifest.target.device))
    # Each token reads all weights, at the speed of memory: in huge pages a fifth faster than from a mapped file.
    weights = intake.into_memory(WEIGHTS) if read and not manifest.target.device else None
    intake.check(manifest.files.keys() - ({WEIGHTS} if read else set()))
    return weights


def cannot_run(target: "Target") -> str | None:
    """Why an artifact for the target does not run on this machine, or None."""
    if not target.device:
        return host_supports(target.triple, target.features)
    from planish.runtime.device.load import device_absent

    return device_absent(target.device)
