"""Text from the runtime of devices, on kernels in Triton's interpreter, against transformers."""

from pathlib import Path

import torch
import transformers

from planish.generation import Generation
from tests.generation import architectures
from tests.runtime.device.interpreted import language_executable


def test_greedy_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    sizes = {**architectures._GATED, "vocab_size": 64}
    net = architectures.build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes))
    prompt = [5, 9, 11, 3, 17]
    run = language_executable(net, torch.tensor([prompt]), tmp_path, Generation(context=16, chunk=4))
    found = [token.id for token in run.generate(prompt, max_new_tokens=4)]
    given = torch.tensor([prompt])
    wanted = net.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=4, do_sample=False)
    assert found == wanted[0, len(prompt) :].tolist()
