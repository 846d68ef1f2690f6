"""The section `generation` of manifest.json, written, read and damaged."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from planish.errors import ArtifactError
from planish.runtime.fields import Field
from planish.runtime.generation.settings import Settings
from planish.runtime.manifest import Manifest

_SETTINGS = Settings(2048, 512, 4, 49152, (0, 2), "i8", {"bos_token": "<s>"})


def test_settings_are_read_as_they_were_written() -> None:
    assert Settings.from_json(Field(json.loads(json.dumps(_SETTINGS.to_json())), "manifest.json")) == _SETTINGS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"context": 0}, "manifest.json: context should be an integer of at least 1, not 0"),
        ({"batch": "2"}, "manifest.json: batch should be an integer of at least 1, not '2'"),
        ({"end": [-1]}, r"manifest.json: end\[0\] should be an integer of at least 0, not -1"),
        ({"cache": "f64"}, "manifest.json: cache should be one of f32, f16, i8, i4, not 'f64'"),
        ({"special": {"bos_token": 3}}, "manifest.json: special.bos_token should be a string, not 3"),
        ({"more": 1}, "manifest.json has the unknown key 'more'"),
    ],
)
def test_damaged_settings_are_refused_by_their_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        Settings.from_json(Field({**_SETTINGS.to_json(), **change}, "manifest.json"))


def test_a_manifest_holds_the_section_only_for_language_models(folder: Path) -> None:
    raw = (folder / "manifest.json").read_bytes()
    manifest = Manifest.from_bytes(raw)
    assert manifest.generation is None
    assert "generation" not in json.loads(raw)
    spoken = dataclasses.replace(manifest, generation=_SETTINGS)
    assert Manifest.from_bytes(spoken.to_bytes()) == spoken
