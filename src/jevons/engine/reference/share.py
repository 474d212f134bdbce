"""Which part of a model each rank of an engine computes: whole kv heads with their queries, and a part of the MLP.

Attention and the MLP each end in a sum over the ranks, so each is split as evenly as can be by itself: who has fewer
heads would only wait if it had more of the MLP instead. Every rank has the embedding, and the first alone the head, so
that layers need nothing but those two sums and drawing needs nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from jevons.base.errors import ConfigError
from jevons.facts.model import ModelShape

WIDE_UNIT = 64  # numbers of the MLP that stay together: oneDNN and FBGEMM pack weights in groups of 16 to 64


@dataclass(frozen=True)
class Share:
    """One rank's part: ranges of heads and of the MLP's numbers, and of the rows (or columns) of the weights."""

    whole: ModelShape
    rank: int
    kv_heads: range
    wide: range

    @property
    def part(self) -> ModelShape:
        """The shape of what this rank computes: `whole` with its own heads and its own MLP."""
        heads = len(self.kv_heads) * self._group
        return replace(self.whole, heads=heads, kv_heads=len(self.kv_heads), intermediate=len(self.wide))

    @property
    def q_rows(self) -> slice:
        dim = self._group * self.whole.head_dim
        return slice(self.kv_heads.start * dim, self.kv_heads.stop * dim)

    @property
    def kv_rows(self) -> slice:
        dim = self.whole.head_dim
        return slice(self.kv_heads.start * dim, self.kv_heads.stop * dim)

    @property
    def wide_rows(self) -> slice:
        return slice(self.wide.start, self.wide.stop)

    @property
    def has_head(self) -> bool:
        """Whether this rank turns the last layer's result into logits."""
        return self.rank == 0

    @property
    def _group(self) -> int:
        """Query heads of one kv head."""
        return self.whole.heads // self.whole.kv_heads


def share_of(whole: ModelShape, rank: int, ranks: int) -> Share:
    """The part of rank `rank`, 0 to `ranks` - 1; the first have the larger ones.

    Raises:
        ConfigError: there are more ranks than kv heads.
    """
    if ranks > whole.kv_heads:
        raise ConfigError(
            f"tensor_parallel: must be at most {whole.kv_heads}, this model's kv heads, got {ranks}; lower it"
        )
    unit = WIDE_UNIT if whole.intermediate >= ranks * WIDE_UNIT else 1
    heads, wide = cuts(whole.kv_heads, ranks), cuts(whole.intermediate, ranks, unit)
    return Share(whole, rank, range(*heads[rank : rank + 2]), range(*wide[rank : rank + 2]))


def cuts(total: int, ranks: int, unit: int = 1) -> list[int]:
    """Where to cut `total` things into `ranks` parts, ends included: as even as whole `unit`s allow."""
    units = -(-total // unit)
    return [min(total, -(-units * rank // ranks) * unit) for rank in range(ranks + 1)]
