"""Workers that should be as fast as each other learn their prices together, until one shows to be different.

Learned each by itself, the prices of equal machines differ by what their last steps happened to be, and a new one
starts from a guess: decisions between equals are then decided by noise. Together they know more, sooner, and equals
stay equal. Whose steps take longer or shorter than those of the others goes by its own: one machine is throttled, or a
name stands for another chip.
"""

from __future__ import annotations

from math import exp, log, sqrt

from jevons.facts.block import Tier
from jevons.perf.measured import GUESS_MOVES, GUESS_PRICES, Load, MoveSeconds, Prices, StepSeconds

# A worker is different where its steps are off by more than this from those of the others, as a logarithm, and by what
# the noise of so many steps might be besides: by half after four steps, by a quarter in the long run.
_ALIKE, _NOISE = 0.15, 0.5
_WEIGHT = 0.05  # of a worker's last step in what its steps are off by: about forty count
_SETTLED = 10  # steps until the prices are good enough to be off from
_MOST_OFF = 1.5  # of one step: a hang says little of how fast a worker is
_LEAST = 0.01  # of a guess, where a price is 0: what is learned starts above
_OFTEN = 4  # steps of a worker before it is judged, and between two looks for the middle
_MOVED = 0.02  # workers are told of new prices once they predict so much else
_USUAL = (Load(steps=1, tokens=256, token_context=256 * 512), Load(steps=1, decodes=8))


class Kin:
    """What some workers learn together."""

    def __init__(self) -> None:
        self.prices = GUESS_PRICES  # as all of them were told
        self.members: set[WorkerSeconds] = set()
        self.middle = 0.0  # of what their steps are off by: half of them are slower
        self.loads = MoveSeconds(GUESS_MOVES[Tier.DRAM])  # of blocks that their engines keep in their hosts' memory
        self._learned = StepSeconds()
        self._until_middle = 0  # steps

    @property
    def is_settled(self) -> bool:
        return self._learned.samples >= _SETTLED

    @property
    def samples(self) -> int:
        return self._learned.samples

    def measured(self, load: Load, seconds: float) -> bool:
        """A step of one of them took so long. Returns whether `prices` are new."""
        self._learned.measured(load, seconds, 1 / len(self.members))
        latest = self._learned.prices
        if not any(_is_moved(self.prices, latest, usual) for usual in (load, *_USUAL)):
            return False
        self.prices = latest
        return True

    def counted(self) -> None:
        """One more step is off by something. The middle is found anew once all had a step, on average."""
        self._until_middle -= 1
        if self._until_middle <= 0:
            self._until_middle = max(_OFTEN, len(self.members))
            offs = sorted(member.off for member in self.members if member.is_counted)
            self.middle = offs[(len(offs) - 1) // 2]


class WorkerSeconds:
    """How long the steps of one worker take: as those of its kin, or by itself."""

    def __init__(self, kin: Kin) -> None:
        self.kin = kin
        self.off = 0.0  # its steps from what its kin's prices say, the mean logarithm of the last forty or so
        self._own: StepSeconds | None = None
        self._counted = 0
        kin.members.add(self)

    @property
    def prices(self) -> Prices:
        return self.kin.prices if self._own is None else self._own.prices

    @property
    def samples(self) -> int:
        """Steps its prices were learned from."""
        return self.kin.samples if self._own is None else self._own.samples

    @property
    def is_alike(self) -> bool:
        return self._own is None

    @property
    def is_counted(self) -> bool:
        return self._counted > 0

    def measured(self, load: Load, seconds: float) -> bool:
        """A step of it took so long; passed over unless both are above 0. Returns whether its kin's prices are new."""
        if seconds <= 0 or not (load.steps or load.tokens or load.token_context or load.decodes):
            return False
        expected_s = self.kin.prices.seconds(load)
        if self.kin.is_settled and expected_s > 0:  # else all its parts are believed to take nothing
            self._count(log(seconds / expected_s))
            self._judge()
        if self._own is None:
            return self.kin.measured(load, seconds)
        self._own.measured(load, seconds)
        return False

    def leave(self) -> None:
        """The worker is gone."""
        self.kin.members.discard(self)

    def _count(self, off: float) -> None:
        self._counted += 1
        weight = max(_WEIGHT, 1 / self._counted)
        self.off += weight * (min(max(off, -_MOST_OFF), _MOST_OFF) - self.off)
        self.kin.counted()

    def _judge(self) -> None:
        apart, most = abs(self.off - self.kin.middle), _ALIKE + _NOISE / sqrt(min(self._counted, 2 / _WEIGHT))
        if self._own is None and apart > most and self._counted >= _OFTEN:
            self._own = StepSeconds(_prior(self.kin.prices, exp(self.off)))
        elif self._own is not None and apart < most / 2:
            self._own = None


def _prior(prices: Prices, times: float) -> Prices:
    """So many times these, all above 0."""

    def some(price: float, guess: float) -> float:
        return times * (price or _LEAST * guess)

    g = GUESS_PRICES
    return Prices(
        some(prices.per_step_s, g.per_step_s),
        some(prices.per_token_s, g.per_token_s),
        some(prices.per_token_context_s, g.per_token_context_s),
        some(prices.per_decode_s, g.per_decode_s),
    )


def _is_moved(told: Prices, latest: Prices, load: Load) -> bool:
    before_s = told.seconds(load)
    return abs(latest.seconds(load) - before_s) > _MOVED * before_s
