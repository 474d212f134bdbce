"""From logits to tokens: greedy or drawn, with a draw that depends on (seed, number of the output token) alone."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from jevons.facts.request import Sampling, TokenLogprob

# Lower ones draw the likeliest token as this one does; below 7e-46 a float32 knows them as 0.
LEAST_TEMPERATURE = 1e-30
NUCLEUS_TOKENS = 512  # likeliest tokens looked at first for top_p: sorting all 49,152 takes ms, this 0.2 ms


class Sampled(msgspec.Struct, frozen=True):
    """A drawn token; `logprob` only where the request wants it."""

    token: int
    logprob: TokenLogprob | None


def sample(logits: torch.Tensor, wanted: Sequence[Sampling], draws: Sequence[int]) -> list[Sampled]:
    """One token for each row of `logits` [n, vocab], bf16 or float32.

    Greedy rows take the likeliest token, the lowest id of equals. Log-probabilities are those of the raw logits, before
    temperature and filters, as OpenAI reports them. Same logits, `wanted` and `draws` give the same tokens anywhere.
    """
    if all(s.temperature == 0 for s in wanted):
        tokens = argmax(logits)
    else:
        tokens = [_token(row, s, d) for row, s, d in zip(logits, wanted, draws, strict=True)]
    return [
        Sampled(token, None if s.logprobs is None else token_logprob(row, token, s.logprobs))
        for row, token, s in zip(logits, tokens, wanted, strict=True)
    ]


def argmax(logits: torch.Tensor) -> list[int]:
    """Index of each row's largest value, the first of equals."""
    tokens: list[int] = logits.argmax(-1).tolist()
    return tokens


def uniform(seed: int, draw: int) -> float:
    """A number in [0, 1) with 53 random bits: the first output of Philox 4x64 under the key (seed, draw)."""
    philox = np.random.Philox(key=np.array([seed, draw], np.uint64))
    return (int(philox.random_raw()) >> 11) * 2.0**-53


def token_logprob(logits: torch.Tensor, token: int, top: int) -> TokenLogprob:
    """Natural log-probability of `token` under `logits` [vocab], and the `top` likeliest, of equals the lowest ids."""
    logprobs = torch.log_softmax(logits.float(), -1)
    if top == 0:
        return TokenLogprob(float(logprobs[token]))
    # topk picks any of equals at its edge, and bf16 logits are often equal: take all of them, then the lowest ids
    edge = logprobs.topk(min(top, len(logprobs))).values[-1]
    ids: list[int] = (logprobs >= edge).nonzero().flatten().tolist()
    ranked = sorted(((i, float(logprobs[i])) for i in ids), key=lambda pair: (-pair[1], pair[0]))
    return TokenLogprob(float(logprobs[token]), ranked[:top])


def _token(logits: torch.Tensor, sampling: Sampling, draw: int) -> int:
    """One token from `logits` [vocab], by the inverse of the distribution function over ids."""
    if sampling.temperature == 0:
        return argmax(logits[None])[0]
    scaled = (logits.float() - logits.max()) / max(sampling.temperature, LEAST_TEMPERATURE)
    probs = torch.softmax(filtered(scaled, sampling.top_k, sampling.top_p), -1, dtype=torch.float64)
    summed = probs.cumsum(-1)
    at = torch.searchsorted(summed, summed[-1] * uniform(sampling.seed, draw), right=True)
    return min(int(at), int(probs.nonzero()[-1]))  # rounding could step past the last token that has any chance


def filtered(scaled: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """`scaled` [vocab] with -inf for what top_k, then top_p over the rest, leave out.

    Tokens exactly as likely as the last one in are in too, so that the order among equals does not matter.
    """
    if 0 < top_k < len(scaled):
        scaled = _at_least(scaled, scaled.topk(top_k).values[-1])
    if top_p < 1:
        scaled = _at_least(scaled, _nucleus_edge(scaled, top_p))
    return scaled


def _at_least(scaled: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
    return scaled.masked_fill(scaled < edge, -torch.inf)


def _nucleus_edge(scaled: torch.Tensor, top_p: float) -> torch.Tensor:
    """Logit of the last token of the smallest set of likeliest tokens that together have `top_p` or more."""
    total = scaled.logsumexp(-1)
    for count in (NUCLEUS_TOKENS, len(scaled)):
        best = scaled.topk(min(count, len(scaled))).values
        reached = (best - total).exp().cumsum(-1) >= top_p
        if reached.any():
            return best[reached.nonzero()[0, 0]]
    return best[-1]  # rounding kept the sum of all just below top_p
