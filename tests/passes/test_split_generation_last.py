"""split-generation of models that return the logits of their last token alone."""

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.ops import add, input_, relu
from planish.compiler.types import DType, symbol
from planish.errors import PassError
from planish.passes.split_generation import SplitGeneration
from planish.passes.split_generation_last import of_all_tokens
from tests.generation import architectures
from tests.generation.stepping import Stepper, expected, imported, split


class Last(nn.Module):
    """A language model that cuts the last token out of its logits, or out of what they are computed of."""

    def __init__(self, model: nn.Module, form: str) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        kept = 1 if self.form == "kept" else 0
        logits: Tensor = self.model(input_ids, use_cache=use_cache, logits_to_keep=kept).logits
        cuts = {"kept": logits, "sliced": logits[:, -1:], "selected": logits[:, -1, :] / 2.0, "first": logits[:, 0]}
        return cuts[self.form]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("form", "factor"), [("kept", 1.0), ("sliced", 1.0), ("selected", 0.5)])
def test_the_last_logits_are_enough(form: str, factor: float, batch: int) -> None:
    model = architectures.gemma2(layers=1) if form == "kept" else architectures.qwen3()
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(3, 90, (batch, 12), generator=generator).tolist()
    program = split(imported(Last(model, form).eval(), batch=batch), SplitGeneration(context=32, chunk=5, batch=batch))
    stepper = Stepper(program, batch)
    wanted = [expected(model, row) * factor for row in rows]
    for row, logits, whole in zip(rows, stepper.read([row[:9] for row in rows], 5), wanted, strict=True):
        torch.testing.assert_close(logits, whole[8], rtol=1e-4, atol=1e-4, msg=str(row))
    for i in range(9, 12):
        logits = stepper.step("decode", [[row[i]] for row in rows])
        torch.testing.assert_close(logits, torch.stack([whole[i] for whole in wanted]), rtol=1e-4, atol=1e-4)


def test_the_logits_of_another_token_are_refused() -> None:
    program = imported(Last(architectures.qwen3(), "first").eval())
    with pytest.raises(PassError, match=r"slice .*mixes tokens: it takes some of them"):
        split(program, SplitGeneration(context=32, chunk=5, batch=2))


def test_a_deep_model_is_looked_through_once() -> None:
    x = input_(name="x", shape=(2, symbol("S"), 4), dtype=DType.f32)
    for _ in range(200):
        x = add(x, relu(x))
    assert of_all_tokens(x, symbol("S")) is None
