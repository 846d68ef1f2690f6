"""What transformers makes of logits for options of sampling."""

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from planish.runtime.generation.sampling import Sampling


def processed(logits: Tensor, options: Sampling, seen: list[int]) -> Tensor:
    """Logits [V] after the processors of the options, -inf for the tokens that they drop; `seen` were there before."""
    processors = LogitsProcessorList()
    if options.repetition_penalty is not None:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    processors.append(TemperatureLogitsWarper(float(options.used_temperature)))
    if options.top_k is not None:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p is not None:
        processors.append(TopPLogitsWarper(options.top_p))
    if options.min_p is not None:
        processors.append(MinPLogitsWarper(options.min_p))
    scores: Tensor = processors(torch.tensor([seen]), logits[None])[0]
    return scores
