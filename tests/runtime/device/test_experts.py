"""Mixtures of experts from the runtime of devices, on kernels in Triton's interpreter, against transformers and torch."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from planish.generation import Generation
from planish.passes.quantize_weights import QuantizeWeights
from tests.generation import architectures
from tests.runtime.device.interpreted import executable, language_executable

BATCH = torch.export.Dim("batch", max=64)


def test_greedy_tokens_of_mixtral_are_those_of_transformers(tmp_path: Path) -> None:
    sizes = {**architectures._GATED, "vocab_size": 40, "num_hidden_layers": 1}
    config = transformers.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, sliding_window=None, **sizes)
    net = architectures.build(transformers.MixtralForCausalLM, config)
    prompt = [5, 9, 11, 3, 17, 2, 8, 30, 31, 7]
    run = language_executable(net, torch.tensor([prompt]), tmp_path, Generation(context=16, chunk=16))
    assert "grouped-linear" in {call.template for call in run.plan.functions["decode"].calls}
    found = [token.id for token in run.generate(prompt, max_new_tokens=2)]
    given = torch.tensor([prompt])
    wanted = net.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=2, do_sample=False)
    assert found == wanted[0, len(prompt) :].tolist()


class _Experts(nn.Module):
    """Two of four experts a token, whose weights 4 bits in groups of 32 hold exactly."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randint(-7, 8, (4, 25, 64), generator=torch.Generator().manual_seed(0)) / 64
        weight[:, :, ::32] = -8 / 64
        self.gate, self.up = nn.Linear(64, 4, bias=False), nn.Parameter(weight[:, 1:].half())
        self.gate.weight.data = weight[:, 0].half()

    def forward(self, x: Tensor) -> Tensor:
        shares, index = torch.topk(torch.softmax(self.gate(x).float(), -1), 2)
        rows = self.up[index.reshape(-1)] @ x[:, None].expand(-1, 2, -1).reshape(-1, 64, 1)
        return (rows.reshape(-1, 2, 24) * shares[..., None].half()).sum(1)


@pytest.mark.parametrize("tokens", [3, 20])
def test_experts_of_four_bits_are_read_as_codes(tokens: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = _Experts(), torch.randn(tokens, 64).half()
    lossy = (QuantizeWeights(bits=4, group=32),)
    lean = executable(net, (x,), tmp_path, dynamic={"x": {0: BATCH}}, profile="mi300x", lossy=lossy)
    assert any("grouped_quantized_linear" in name for name in lean.plan.kernels)
    torch.testing.assert_close(lean(x), net(x), rtol=1e-2, atol=1e-2)
