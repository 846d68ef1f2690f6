"""What an artifact says of its generation: the section `generation` of manifest.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from planish.runtime.fields import Field, Json


@dataclass(frozen=True, slots=True)
class Settings:
    """How much an artifact generates: tokens of a row in `context`, of one prefill in `chunk`, rows in `batch`.

    `vocabulary` is the number of token ids, `end` those that end a text, `cache` the dtype of keys and values (f32,
    f16, i8 or i4), `special` the tokens that a chat template names, such as `bos_token`.
    """

    context: int
    chunk: int
    batch: int
    vocabulary: int
    end: tuple[int, ...]
    cache: str
    special: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        return {**asdict(self), "end": list(self.end), "special": dict(self.special)}

    @classmethod
    def from_json(cls, given: Field) -> "Settings":
        """The settings that `to_json` wrote; raises ArtifactError with the path of what is wrong."""
        members = given.object("context", "chunk", "batch", "vocabulary", "end", "cache", "special")
        context, chunk, batch, vocabulary = (
            members[name].integer(1) for name in ("context", "chunk", "batch", "vocabulary")
        )
        return cls(
            context,
            chunk,
            batch,
            vocabulary,
            members["end"].each(lambda token: token.integer()),
            members["cache"].text("f32", "f16", "i8", "i4"),
            {name: text.text() for name, text in members["special"].members().items()},
        )
