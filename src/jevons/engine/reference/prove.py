"""The last word on batch invariance: the model itself, before it serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jevons.base.errors import EngineError
from jevons.engine.reference.plan import Slice
from jevons.engine.reference.sampling import Sampled
from jevons.facts.request import Sampling

PROMPTS = (70, 33, 5, 48)  # tokens in each
CUTS = (1, 4, 32, 39)  # where prompts are cut when they are computed together
OUTPUTS = 3
WANTED = Sampling(temperature=0, logprobs=5)

Step = Callable[[Sequence[Slice]], list[Sampled | None]]


def blocks_needed(block_size: int) -> int:
    """Blocks of pages that `prove` writes to."""
    return len(PROMPTS) * _table_blocks(block_size)


def prove(step: Step, vocab: int, block_size: int) -> None:
    """Compute some sequences alone and whole, then together and in pieces. Takes the time of 300 prompt tokens.

    Raises:
        EngineError: a token or a log-probability differs in any bit.
    """
    prompts = [[(7919 * (i + 1) * (n + 3)) % vocab for n in range(count)] for i, count in enumerate(PROMPTS)]
    alone = [_answers(step, [prompt], (), block_size)[0] for prompt in prompts]
    if _answers(step, prompts, CUTS, block_size) != alone:
        raise EngineError(
            "batch-invariant mode: this model gives other bits in another batch on this machine; run without"
        )


def _answers(step: Step, prompts: list[list[int]], cuts: Sequence[int], block_size: int) -> list[list[Sampled]]:
    """What follows each prompt, all computed in the same steps."""
    texts, computed = [list(prompt) for prompt in prompts], [0] * len(prompts)
    drawn: list[list[Sampled]] = [[] for _ in prompts]
    while going := [i for i in range(len(prompts)) if len(drawn[i]) < OUTPUTS]:
        slices = []
        for i in going:
            end = min([c for c in cuts if computed[i] < c < len(prompts[i])], default=len(texts[i]))
            wanted = WANTED if end == len(texts[i]) else None
            slices.append(Slice(texts[i][computed[i] : end], computed[i], _table(i, block_size), wanted, len(drawn[i])))
            computed[i] = end
        for i, sampled in zip(going, step(slices), strict=True):
            if sampled is not None:
                drawn[i].append(sampled)
                texts[i].append(sampled.token)
    return drawn


def _table(number: int, block_size: int) -> range:
    count = _table_blocks(block_size)
    return range(number * count, (number + 1) * count)


def _table_blocks(block_size: int) -> int:
    return -(-(max(PROMPTS) + OUTPUTS) // block_size)
