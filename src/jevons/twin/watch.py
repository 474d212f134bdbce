"""A rehearsal under way, as a page draws it: the same view as a live server's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jevons.base.compiled import Ints, Records
from jevons.base.ids import RequestId, WorkerId
from jevons.config.catalog import Catalog
from jevons.config.scenario import Scenario
from jevons.control.columns import queue_ms
from jevons.control.watch import Slo, Watch
from jevons.facts.snapshot import Outcome
from jevons.facts.view import HEALTHS, View, Who, Workers
from jevons.perf.calibration import Calibration
from jevons.perf.measured import Prices
from jevons.policy.route import Placement, prompt_load
from jevons.twin.account import chips_of
from jevons.twin.jumps import itl_s
from jevons.twin.report import Report
from jevons.twin.run import OnResults, Run

VERSION = 0  # workers stay the same


class Watched:
    """Runs a scenario piece by piece, and tells what it is like in between.

    Raises:
        ConfigError: see `twin.run.simulate`.
    """

    def __init__(
        self,
        scenario: Scenario,
        catalog: Catalog,
        calibration: Calibration,
        *,
        exact: bool = False,
        on_results: OnResults | None = None,
    ) -> None:
        self._scenario, self._on_results = scenario, on_results
        self._run = Run(scenario, catalog, calibration, exact=exact, on_results=self._take)
        self._watch = Watch(0.0, Slo(scenario.slo.ttft_s, scenario.slo.tpot_s))
        self._now_s, self._is_over = 0.0, False
        self._gaps = self._run.hub["itl"].copy()
        self._brought: dict[str, int] = {}
        made = self._run.made
        counts = [m.group.instances for m in made]
        self._group_of: Ints = np.repeat(np.arange(len(made)), counts)
        self._at: Ints = np.argsort(self._run.numbers)  # by number in the scenario, where it is in the hub
        self._chips = [chips_of(m) for m in made]
        self._each = [sum(found.values()) // n for found, n in zip(self._chips, counts, strict=True)]
        self._who = self._told()

    def going(self, pause_s: float) -> Iterator[float]:
        """See `Run.going`. Raises NoWorker as that does."""
        for now_s in self._run.going(pause_s):
            self._pass(now_s)
            yield now_s
        self._pass(max(self._now_s, float(self._run.hub.number("now_s"))))
        self._is_over = True

    def report(self, wall_s: float, cpu_s: float) -> Report:
        return self._run.report(wall_s, cpu_s)

    def view(self, seen: int | None = None) -> View:
        watch, now_s = self._watch, self._now_s
        engines = self._run.hub["engines"]
        open_now = int(engines["running"].sum() + engines["waiting"].sum())
        return View(
            source="twin",
            title=self._scenario.title or self._scenario.model,
            began="twin",
            now_s=now_s,
            is_over=self._is_over,
            policy=self._scenario.router,
            workers=self._workers(seen),
            requests=watch.requests(),
            scatter=watch.scatter(),
            ttft=watch.ttft.times(now_s, watch.slo.ttft_s),
            itl=watch.itl.times(now_s, watch.slo.tpot_s),
            rates=watch.rates(now_s),
            reuse=watch.reuse(self._brought),
            placed=watch.finished + open_now,
            under_way=open_now,
            finished=watch.finished,
            chip_s=self._chip_s(),
            saved_chip_s=watch.saved_chip_s(),
        )

    def _chip_s(self) -> dict[str, float]:
        """Paid until now, by kind."""
        paid_s, found = self._run.paid_s(self._now_s)[self._at], dict[str, float]()
        for group, chips in enumerate(self._chips):
            share = float(paid_s[self._group_of[self._at] == group].mean())
            for chip, number in chips.items():
                found[chip] = found.get(chip, 0.0) + number * share
        return found

    def _workers(self, seen: int | None) -> Workers:
        engines, pools = self._run.hub["engines"][self._at], self._run.hub["pools"][self._at]
        return Workers(
            version=VERSION,
            who=None if seen == VERSION else self._who,
            health=np.where(engines["up"] > 0, HEALTHS.index("up"), HEALTHS.index("down")).tolist(),
            running=engines["running"].tolist(),
            waiting=engines["waiting"].tolist(),
            queue_ms=queue_ms(self._run.hub["workers"][self._at]),
            held=(pools["blocks"] - pools["blank"]).tolist(),
        )

    def _told(self) -> Who:
        made = self._run.made
        groups = self._group_of[self._at].tolist()
        return Who(
            ids=[str(number) for number in range(len(groups))],
            models=[self._scenario.model or "model of given step times"] * len(groups),
            roles=[made[g].group.role for g in groups],
            chips=[made[g].group.chip for g in groups],
            chip_counts=[self._each[g] for g in groups],
            blocks=[made[g].blocks for g in groups],
        )

    def _take(self, results: Records) -> None:
        """Requests that are done, in the order they were."""
        if self._on_results is not None:
            self._on_results(results)
        for row in results:
            number, at = int(row["worker"]), self._at[int(row["worker"])]
            tier = self._run.made[self._group_of[at]].group.tier
            brought = int(row["brought"])
            if tier is not None and brought:
                self._brought[tier.name] = self._brought.get(tier.name, 0) + brought
            id, placement = RequestId(str(int(row["request"]))), _placement(row, self._scenario.router)
            self._watch.placed(id, placement, int(row["prompt"]), float(row["at_s"]))
            self._watch.first(id, float(row["first_s"]))
            self._watch.done(self._outcome(id, number, row), int(row["output"]), float(row["done_s"]))

    def _outcome(self, id: RequestId, number: int, row: Records) -> Outcome:
        at = self._at[number]
        w, group = self._run.hub["workers"][at], self._group_of[at]
        prices = Prices(*(float(w[name]) for name in Prices.__struct_fields__))
        prompt, cached = int(row["prompt"]), int(row["cached"])
        saved_s = prices.seconds(prompt_load(prompt, 0)) - prices.seconds(prompt_load(prompt, cached))
        return Outcome(
            id=id,
            worker=WorkerId(str(number)),
            prompt_tokens=prompt,
            predicted_ttft_s=float(row["predicted_s"]),
            ttft_s=float(row["first_s"] - row["at_s"]),
            predicted_cached_tokens=int(row["predicted_cached"]),
            cached_tokens=cached,
            device_s=0.0,
            saved_s=saved_s * self._each[group],
            chip=self._run.made[group].group.chip,
        )

    def _pass(self, now_s: float) -> None:
        """So late is it now: count the gaps since the last time."""
        self._now_s = now_s
        gaps = self._run.hub["itl"]
        new = gaps - self._gaps
        for at in np.flatnonzero(new).tolist():
            self._watch.itl.add(itl_s(at), now_s, int(new[at]))
        self._gaps = gaps.copy()


def _placement(row: Records, policy: str) -> Placement:
    cached, prompt, predicted_s = int(row["predicted_cached"]), int(row["prompt"]), float(row["predicted_s"])
    reason = f"{cached} of {prompt} tokens believed cached: first token predicted in {predicted_s:.3f} s"
    decode = None if row["decode_on"] < 0 else WorkerId(str(int(row["decode_on"])))
    if decode is not None:
        reason += f", the rest on {decode}"
    return Placement(WorkerId(str(int(row["worker"]))), policy, predicted_s, cached, reason, decode)
