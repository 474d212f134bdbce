"""What the tokens of a fleet cost, from what it did in a rehearsal.

Who pays. Every instance is paid every second, or where instances start and stop from its start until it is stopped. A
share of that is the price of memory (`memory_price_share` of a chip, times the part of its memory that holds what may
be asked again): all tokens pay it alike, for each leaves its keys and values there, and a cached input token pays
nothing else. So it is with all that memory below the chips' costs. The rest is paid by seconds of computing: input
tokens that were not cached pay those of prompts, at the prices by which the router places them, output tokens all
others. Seconds in which nothing was computed are paid by both in the same proportion. Bringing blocks from a tier below
goes on beside computing and takes none of these seconds; reading what was cached is part of the tokens that attend to
it.

How much is asked for. The rehearsal is the peak that the fleet is built for; over the year `utilisation` of it is asked
for. How busy instances are in the rehearsal is no factor on top: its tokens are counted over all of its seconds.

How sure. Steps may take longer than predicted, by the error of predictions on measurements held out; a group whose
steps take 1.3 × as long needs 1.3 × the instances for the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt

import msgspec

from jevons.econ.cost import HOURS_PER_YEAR, SECONDS_PER_HOUR, ChipHour
from jevons.econ.draws import Amount, Result
from jevons.econ.power import joules_per_token, tokens_per_s_per_mw
from jevons.econ.tiers import figures_of
from jevons.econ.tiers import usd_per_hour as tier_usd_per_hour
from jevons.facts.economics import Economics
from jevons.facts.hardware import Confidence, Figure
from jevons.facts.usage import GroupUsage, Usage

GUESS_UNMEASURED_ERROR = 2.0  # of throughput of what was never measured: within a factor of three
STEP_TIME = "step_time/"  # and the chip: measured over predicted step times
_WITHIN = 1.0 - sqrt(0.1)  # of a triangle's side, from its peak: nine of ten draws lie between both


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet did, and what its chips cost.

    Every method but `figures` takes values of those, by name, and gives dollars or watts for each of them.
    """

    usage: Usage
    hours: dict[str, ChipHour]  # of its chips, by kind
    economics: Economics
    power_w: dict[str, Figure]  # of a chip with all around it (of IT), where that is known

    def figures(self) -> dict[str, Figure]:
        """All that the results hang on."""
        found: dict[str, Figure] = {}
        for hour in self.hours.values():
            found |= hour.figures
        for name, power in self.power_w.items():
            found.setdefault(f"all_in_w/{name}", power)
        for group in self.usage.groups:
            if group.trust != "given":
                found[_steps(group)] = step_time(group.rate_p90_error)
        for tier in self.usage.tier_bytes:
            found |= figures_of(tier, self.economics)
        for name in ("utilisation", "memory_price_share", "pue"):
            found[name] = getattr(self.economics, name)
        return found

    def usd_per_hour(self, of: Mapping[str, Amount]) -> Amount:
        """All that is paid by the mean, as many instances as are needed if steps take as long as they may."""
        return self._chips(of, lambda group: 1.0) + self._tiers(of)

    def usd_per_year(self, of: Mapping[str, Amount]) -> Amount:
        return self.usd_per_hour(of) * HOURS_PER_YEAR

    def tier_usd_per_year(self, tier: str, of: Mapping[str, Amount]) -> Amount:
        """Of memory below the chips', as much as these instances have, while they are paid."""
        paid_bytes = sum(group.tier_bytes.get(tier, 0.0) * group.paid_share for group in self.usage.groups)
        return tier_usd_per_hour(tier, paid_bytes, of) * HOURS_PER_YEAR

    def usd_per_mtok(self, of: Mapping[str, Amount]) -> Amount:
        """Of output, which pays for everything: the definition of InferenceX."""
        return self._each(self.usd_per_hour(of), self.usage.output_tokens, of) * 1e6

    def usd_per_mtok_cached(self, of: Mapping[str, Amount]) -> Amount:
        """Of input that was not computed again: its place in memory."""
        usd = self._chips(of, lambda group: of["memory_price_share"] * group.cache_share) + self._tiers(of)
        return self._each(usd, self.usage.input_tokens + self.usage.output_tokens, of) * 1e6

    def usd_per_mtok_input(self, of: Mapping[str, Amount]) -> Amount:
        """Of what had to be computed; there was some."""
        usd = self._chips(of, lambda group: _compute(group, of) * _prompts(group))
        computed = self.usage.input_tokens - self.usage.cached_tokens
        return self.usd_per_mtok_cached(of) + self._each(usd, computed, of) * 1e6

    def usd_per_mtok_output(self, of: Mapping[str, Amount]) -> Amount:
        usd = self._chips(of, lambda group: _compute(group, of) * (1.0 - _prompts(group)))
        return self.usd_per_mtok_cached(of) + self._each(usd, self.usage.output_tokens, of) * 1e6

    def usd_per_request(self, of: Mapping[str, Amount]) -> Amount:
        return self._each(self.usd_per_hour(of), self.usage.requests, of)

    def usd_per_good_request(self, of: Mapping[str, Amount]) -> Amount:
        """Of those within their SLO, which pay for the others too."""
        return self._each(self.usd_per_hour(of), self.usage.met, of)

    def it_w(self, of: Mapping[str, Amount]) -> Amount:
        """At the power for which room is built: an upper bound of what is drawn."""
        return self._watts(of, lambda group: 1.0)

    def joules_per_output_token(self, of: Mapping[str, Amount]) -> Amount:
        """From the grid, cooling included; at the power for which room is built, of chips while they are paid."""
        power_w = self._watts(of, lambda group: group.paid_share)
        return joules_per_token(power_w=power_w * of["pue"], tokens_per_s=self._output_per_s)

    def tokens_per_s_per_mw(self, of: Mapping[str, Amount]) -> Amount:
        """Of output, of each megawatt of IT."""
        return tokens_per_s_per_mw(tokens_per_s=self._output_per_s, power_w=self.it_w(of))

    def fleets_within(self, site_w: float, of: Mapping[str, Amount]) -> Amount:
        """How many of these a site's connection feeds, cooling included; parts of one count."""
        return site_w / (self.it_w(of) * of["pue"])

    def break_even_usd_per_hour(self, chip: str, usd_per_mtok: Result, of: Mapping[str, Amount]) -> Amount:
        """For an hour of `chip`, so that a million output tokens cost `usd_per_mtok`; below 0 where others cost more.

        The chip itself need have no price.
        """
        asked = self.usage.output_tokens / self.usage.seconds * SECONDS_PER_HOUR * of["utilisation"]
        others = self._chips(of, lambda group: 1.0, without=chip) + self._tiers(of)
        needed = sum(
            group.chips.get(chip, 0) * group.paid_share * self._steps(group, of) for group in self.usage.groups
        )
        return (usd_per_mtok(of) / 1e6 * asked - others) / needed

    @property
    def _output_per_s(self) -> float:
        return self.usage.output_tokens / self.usage.seconds

    def _tiers(self, of: Mapping[str, Amount]) -> Amount:
        """Dollars an hour of memory below the chips', of as many instances as are needed."""
        return sum(
            tier_usd_per_hour(tier, size_bytes, of) * group.paid_share * self._steps(group, of)
            for group in self.usage.groups
            for tier, size_bytes in group.tier_bytes.items()
        )

    def _chips(self, of: Mapping[str, Amount], share: Callable[[GroupUsage], Amount], without: str = "") -> Amount:
        """Dollars an hour, of each group so much."""
        return sum(
            self.hours[name].usd(of) * count * group.paid_share * self._steps(group, of) * share(group)
            for group in self.usage.groups
            for name, count in group.chips.items()
            if name != without
        )

    def _watts(self, of: Mapping[str, Amount], share: Callable[[GroupUsage], float]) -> Amount:
        """Of IT, of each group so much."""
        return sum(
            of[f"all_in_w/{name}"] * count * self._steps(group, of) * share(group)
            for group in self.usage.groups
            for name, count in group.chips.items()
        )

    def _steps(self, group: GroupUsage, of: Mapping[str, Amount]) -> Amount:
        return of.get(_steps(group), 1.0)

    def _each(self, usd_per_hour: Amount, number: int, of: Mapping[str, Amount]) -> Amount:
        """Dollars for one of what there were `number` of in the rehearsal, > 0."""
        return usd_per_hour / (number / self.usage.seconds * SECONDS_PER_HOUR * of["utilisation"])


def step_time(p90_error: float | None) -> Figure:
    """Measured over predicted step times: nine of ten draws within the error of predictions, on both sides."""
    error = (GUESS_UNMEASURED_ERROR if p90_error is None else p90_error) / _WITHIN
    source = "nothing of its kind was measured" if p90_error is None else "predictions of measurements held out"
    confidence = Confidence.ASSUMED if p90_error is None else Confidence.DERIVED
    return Figure(value=1.0, low=1.0 / (1.0 + error), high=1.0 + error, source=source, confidence=confidence)


def _prompts(group: GroupUsage) -> float:
    """Share of computing that went to prompts."""
    return group.prompt_s / group.busy_s if group.busy_s else 0.0


def _compute(group: GroupUsage, of: Mapping[str, Amount]) -> Amount:
    """Share of its price that computing pays."""
    return 1.0 - of["memory_price_share"] * group.cache_share


def _steps(group: GroupUsage) -> str:
    """Groups whose predictions are as good share their error."""
    unlike = "" if group.rate_p90_error is not None else ", never measured"
    return f"{STEP_TIME}{'+'.join(group.chips)}{unlike}"
