"""Profiles by name: the built-in TOMLs, a user's own file, or the machine at hand."""

from functools import lru_cache
from pathlib import Path

from planish.errors import ProfileError, nearest
from planish.hardware_profiles.detection import detect
from planish.hardware_profiles.profile import Profile

_FOLDER = Path(__file__).parent


def profile_names() -> tuple[str, ...]:
    """The names of the built-in profiles, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_profile(name_or_path: str | Path) -> Profile:
    """The built-in profile of that name, the one in the .toml file of that path, or, for "cpu", `detect()`.

    Raises ProfileError for an unknown name, with the nearest known one, and for a bad file, with all its problems.
    """
    name = str(name_or_path)
    if name.endswith(".toml"):
        return Profile.from_toml(name)
    if name == "cpu":
        return detect()
    known = profile_names()
    if name not in known:
        hint = nearest(name, [*known, "cpu"])
        raise ProfileError(f"no profile is called '{name}' (one of your own is a path ending in .toml){hint}")
    return _built_in(name)


@lru_cache
def _built_in(name: str) -> Profile:
    return Profile.from_toml(_FOLDER / f"{name}.toml")
