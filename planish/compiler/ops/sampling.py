"""The choice of the next token of rows of logits."""

import torch
from torch import Tensor

from planish.compiler.ir import op
from planish.compiler.ops.checks import check_float
from planish.compiler.types import DType, TensorType, same_dim
from planish.errors import TypeRuleError
from planish.runtime.generation.sampling import CONTROLS, chosen_by


def _greedy_tokens(logits: Tensor) -> Tensor:
    return _with_largest(logits, logits.argmax(1))


@op(_greedy_tokens)
def greedy_tokens(logits: TensorType) -> TensorType:
    """The tokens with the largest logits, the first among equals, beside those: logits [R, V] -> f64 [R, 2].

    Where a row has numbers that are undefined, these count as the largest.
    """
    return _chosen(logits)


def _sampled_tokens(logits: Tensor, seen: Tensor, controls: Tensor) -> Tensor:
    rows = zip(logits.float().cpu().numpy(), seen.bool().cpu().numpy(), controls.cpu().numpy(), strict=True)
    finite = logits.amax(1).isfinite().tolist()
    tokens = [chosen_by(*row) if fits else 0 for row, fits in zip(rows, finite, strict=True)]
    return _with_largest(logits, torch.tensor(tokens, device=logits.device))


@op(_sampled_tokens)
def sampled_tokens(logits: TensorType, seen: TensorType, controls: TensorType) -> TensorType:
    """The next token of each row by its own options, beside the largest logit: logits [R, V] -> f64 [R, 2].

    seen u8 [R, V] is not 0 for the tokens that the penalty is on, controls f64 [R, 6] are the numbers of
    `planish.runtime.generation.sampling.CONTROLS`; what they mean is what `Sampler` does with them. Where the largest
    logit is not finite, the token is any.
    """
    if seen.dtype is not DType.u8 or seen.rank != 2 or not all(map(same_dim, seen.shape, logits.shape)):
        raise TypeRuleError(f"{seen} are no bytes that mark the tokens of {logits}")
    wanted = TensorType((logits.shape[0], len(CONTROLS)), DType.f64)
    if controls.dtype is not wanted.dtype or controls.rank != 2 or not all(map(same_dim, controls.shape, wanted.shape)):
        raise TypeRuleError(f"{controls} are not the options {wanted} of {logits}")
    return _chosen(logits)


def _chosen(logits: TensorType) -> TensorType:
    check_float(logits)
    if logits.rank != 2:
        raise TypeRuleError(f"{logits} are no rows of logits")
    return TensorType((logits.shape[0], 2), DType.f64)


def _with_largest(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.stack((tokens.double(), logits.amax(1).double()), 1)
