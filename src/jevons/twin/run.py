"""Rehearse a scenario: drive the kernel, make room, let things happen, and say what came of it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jevons.base.compiled import Ints, Places, Reals, Records
from jevons.base.errors import ConfigError, NoWorker
from jevons.config.catalog import Catalog
from jevons.config.scenario import Event, Scenario
from jevons.control import board
from jevons.facts.usage import GroupUsage
from jevons.perf.calibration import Calibration
from jevons.policy.route import KV, check_policy, stream_weight
from jevons.twin import kernel
from jevons.twin.account import account, chips_of
from jevons.twin.arrivals import Piece, arrivals
from jevons.twin.fleet import Made, change_power, decoders_first, make_groups, make_hub
from jevons.twin.instances import Instances
from jevons.twin.report import Report, gaps, joules, trust
from jevons.twin.room import make_move_room, make_room
from jevons.twin.spread import Distribution

_MOST_INT = (1 << 63) - 1
OnResults = Callable[[Records], None]


def simulate(
    scenario: Scenario,
    catalog: Catalog,
    calibration: Calibration,
    *,
    exact: bool = False,
    on_results: OnResults | None = None,
) -> Report:
    """Run a scenario to its end.

    Args:
        exact: step through every iteration instead of jumping over those that are alike.
        on_results: called with each piece of results, `kernel.RESULT`, in the order of completion.

    Raises:
        ConfigError: see `make_groups` and `arrivals`; there is no such router.
        NoWorker: a request arrives and no instance is up.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    run = Run(scenario, catalog, calibration, exact=exact, on_results=on_results)
    run.go()
    return run.report(time.perf_counter() - began, time.process_time() - cpu_began)


class Run:
    """A rehearsal under way; see `simulate`."""

    def __init__(
        self,
        scenario: Scenario,
        catalog: Catalog,
        calibration: Calibration,
        *,
        exact: bool = False,
        on_results: OnResults | None = None,
    ) -> None:
        scenario, self._numbers = decoders_first(scenario)
        self._made = made = make_groups(scenario, catalog, calibration)
        self._scenario, self._on_results = scenario, on_results
        policy = check_policy(scenario.router, "router")
        self._later = self._made_later()
        self.hub = hub = make_hub(made, list(self._later.values()), catalog, policy)
        sizes = {m.group.block_size for m in made}
        if len(sizes) > 1:
            raise ConfigError(f"fleet: block_size must be the same everywhere, got {sorted(sizes)}")
        block = sizes.pop()
        splits = any(m.group.role == "prefill" for m in made)
        if splits and policy != KV:
            raise ConfigError(f"router: prefill instances need 'kv', got {scenario.router!r}")
        hub.set("exact", int(exact))
        hub.set("uses_index", int(policy == KV))
        hub.set("lag_s", scenario.event_lag_s)
        hub.set("loss", scenario.event_loss)
        hub.set("replays", int(scenario.event_replay and scenario.event_loss > 0))
        hub.set("stream_weight", stream_weight(scenario.slo.ttft_s, scenario.slo.tpot_s))
        hub.set("heard", (scenario.seed << 32) & _MOST_INT)  # however many bits a seed has
        hub.set("block", block)
        margin = max(m.blocks for m in made) + 64
        margin *= 2 if hub.number("has_tiers") else 1  # what is computed is kept in two places
        hub.set("margin", margin)
        hub.put("scratch", np.zeros(margin, np.int64))
        hub.put("matched", np.zeros(margin, np.int32))
        self._seen = {name: Distribution() for name in ("ttft", "tpot", "queue")}  # seconds
        self._met, self._last_s = 0, 0.0
        self._sums = dict.fromkeys(("requests", "prompt", "output", "cached", "predicted_cached"), 0)
        self._tier_names = [m.group.tier.name if m.group.tier else "" for m in made for _ in range(m.group.instances)]
        self._brought = {name: 0 for name in self._tier_names if name}  # tokens, by tier
        self._block, self._most_named = block, 1
        self._arrival_numbers: Ints | None = None
        self._instances = Instances(scenario, made, hub, lambda: make_room(hub))

    def go(self) -> None:
        for _ in self.going():
            pass

    def going(self, pause_s: float = np.inf) -> Iterator[float]:
        """Run to the end. Yields the time after every `pause_s` of it, when all results so far have been told."""
        waiting, due_s, instances = list(self._happenings()), pause_s, self._instances
        pieces = self._checked(arrivals(self._scenario.traffic, self._scenario.seed))
        piece, following = next(pieces), next(pieces, None)
        self._give(piece, 0)
        base = 0
        while True:
            until_s = min(due_s, instances.next_s, waiting[0][0].at_s if waiting else np.inf)
            why = kernel.run(self.hub.record, until_s, following is None)
            if why == kernel.GROW:
                make_room(self.hub)
            elif why == kernel.FULL:
                self._take_results()
            elif why == kernel.TIME and until_s == due_s:
                self._take_results()
                yield due_s
                due_s = np.inf if following is None and self._is_quiet() else due_s + pause_s
            elif why == kernel.TIME and until_s == instances.next_s:
                instances.go_on(is_over=following is None and self._is_quiet())
            elif why == kernel.TIME:
                self._happens(*waiting.pop(0))
            elif why == kernel.REFUSED:
                raise self._no_worker("arrives")
            elif following is None:
                break
            else:
                base += len(piece.requests)
                piece, following = following, next(pieces, None)
                self._give(piece, base)
        self._take_results()
        assert self.hub.number("slots_spare") == self.hub.number("slots_used"), "whoever came was answered"

    def _is_quiet(self) -> bool:
        """Whether nothing is left to happen by itself."""
        number, idle = self.hub.number, self.hub["due"][1] == np.inf
        return bool(idle and number("next") >= len(self.hub["arrivals"]) and number("moves_end") == 0)

    def _give(self, piece: Piece, base: int) -> None:
        self.hub.put("arrivals", np.ascontiguousarray(piece.requests))
        self.hub.put("ids", piece.ids)
        self.hub.put("afters", piece.afters)
        self.hub.put("followers", piece.followers)
        self.hub.set("trace_block", piece.id_tokens)
        self._arrival_numbers = piece.numbers
        make_move_room(self.hub)
        self.hub.set("next", 0)
        self.hub.set("base", base)

    def _happenings(self) -> Iterator[tuple[Event, Places]]:
        """What, and to whom."""
        first, found = 0, [(event, self._whom(event)) for event in self._scenario.events]
        for m in self._made:
            if m.group.up_after_s > 0 and self._scenario.scaling is None:
                up = Event(m.group.up_after_s, "up", 0)
                found.append((up, np.arange(first, first + m.group.instances, dtype=np.int32)))
            first += m.group.instances
        yield from sorted(found, key=lambda each: each[0].at_s)

    def _whom(self, event: Event) -> Places:
        """Numbers here of those it happens to."""
        places = np.argsort(self._numbers).astype(np.int32)
        return places[event.first : event.first + event.count]

    def _made_later(self) -> dict[tuple[int, float], Made]:
        """Groups as they are when their chips may draw other watts, by their number and those."""
        kinds = np.repeat(np.arange(len(self._made)), [m.group.instances for m in self._made])
        found: dict[tuple[int, float], Made] = {}
        for event in self._scenario.events:
            for kind in set(kinds[self._whom(event)].tolist()) if event.power_w is not None else ():
                assert event.power_w is not None, "asked of those that name watts"
                found[kind, event.power_w] = change_power(kind, self._made[kind], event.power_w)
        return found

    def _checked(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Prompts that no instance could ever hold are an error now, not a stall later."""
        most = min(m.blocks for m in self._made) * self._block
        for piece in pieces:
            behind = piece.id_tokens
            if behind % self._block and self._block % behind:
                raise ConfigError(f"fleet: block_size must divide {behind} or be a multiple of it, got {self._block}")
            longest = int((piece.requests["prompt"] + piece.requests["output"]).max())
            if longest > most:
                raise ConfigError(
                    f"traffic: a request of {longest:,} tokens with its answer; an instance holds {most:,}: "
                    f"give it more chips or fewer bits, or cut the workload"
                )
            self._most_named = max(self._most_named, longest // self._block)
            # A table may have room for twice what is needed, and so many may be admitted at once.
            each = 2 * -(-longest // self._block)
            tables = max(each * min(m.group.max_running, m.group.step_tokens) for m in self._made)
            self.hub.set("tables_margin", max(tables, int(self.hub.number("tables_margin"))))
            yield piece

    def _happens(self, event: Event, whom: Places) -> None:
        at_s, what = event.at_s, event.what
        workers = whom.tolist()  # kernels are compiled for Python's integers
        if what == "cap":
            for worker in workers:
                self._change_power(worker, event)
            return
        for worker in workers:
            board.set_up(self.hub.record, worker, what == "up")
            if what == "up":
                self.hub["engines"]["up"][worker] = 1
        for worker in workers if what == "fail" else ():
            engine = self.hub["engines"][worker]
            make_room(self.hub, int(engine["waiting"] + engine["running"]) * self._most_named)
            if not kernel.fail(self.hub.record, worker, at_s):
                raise self._no_worker("must be computed anew")

    def _change_power(self, worker: int, event: Event) -> None:
        """Its chips may draw other watts from now on. The router has the new prices at once; live it learns them."""
        w = self.hub["workers"][worker]
        kind = int(w["kind"])
        made, pace = self._made[kind], kind
        if event.power_w is not None:
            made = self._later[kind, event.power_w]
            pace = len(self._made) + list(self._later).index((kind, event.power_w))
        for name in ("per_step_s", "per_token_s", "per_token_context_s", "per_decode_s"):
            w[name] = getattr(made.prices, name)
        kernel.change_pace(self.hub.record, worker, pace, event.at_s)

    def _no_worker(self, what: str) -> NoWorker:
        return NoWorker(f"a request {what} at {self.hub.number('now_s'):.3f} s and no instance is up")

    @property
    def numbers(self) -> Places:
        """Of each instance in the hub its number in the scenario."""
        return self._numbers

    @property
    def made(self) -> Sequence[Made]:
        """Its groups, in the order of the hub."""
        return self._made

    def paid_s(self, until_s: float) -> Reals:
        """Of each instance in the hub, seconds for which it was paid. [instances]"""
        return self._instances.paid_s(until_s)

    def _take_results(self) -> None:
        count = int(self.hub.number("results_end"))
        results = self.hub["results"][:count]
        if self._arrival_numbers is not None:
            results["request"] = self._arrival_numbers[results["request"]]
        for name in self._brought:
            there = np.array([name == each for each in self._tier_names])
            self._brought[name] += int(results["brought"][there[results["worker"]]].sum())
        for name in ("worker", "decode_on"):
            results[name] = np.where(results[name] < 0, -1, self._numbers[results[name]])
        if self._on_results is not None and count:
            self._on_results(results)
        slo = self._scenario.slo
        ttft = results["first_s"] - results["at_s"]
        more = np.maximum(results["output"] - 1, 1)
        tpot = (results["done_s"] - results["first_s"]) / more
        self._seen["ttft"].add(ttft)
        self._seen["tpot"].add(tpot[results["output"] > 1])
        self._seen["queue"].add(results["admitted_s"] - results["at_s"])
        self._met += int(((ttft <= slo.ttft_s) & (tpot <= slo.tpot_s)).sum())
        self._last_s = max(self._last_s, float(results["done_s"].max(initial=0.0)))
        self._sums["requests"] += count
        for name in ("prompt", "output", "cached", "predicted_cached"):
            self._sums[name] += int(results[name].sum())
        self.hub.set("results_end", 0)

    def report(self, wall_s: float, cpu_s: float) -> Report:
        sums, engines = self._sums, self.hub["engines"]
        simulated_s, met = self._last_s, self._met
        paid_s = self.paid_s(simulated_s)
        groups = list(self._groups(simulated_s, paid_s))
        return Report(
            title=self._scenario.title,
            requests=sums["requests"],
            met=met,
            instances=len(engines),
            chips=sum(sum(chips_of(m).values()) for m in self._made),
            simulated_s=simulated_s,
            cpu_s=cpu_s,
            wall_s=wall_s,
            rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            ttft_s=self._seen["ttft"].spread(),
            tpot_s=self._seen["tpot"].spread(),
            itl_s=gaps(self.hub["itl"]),
            queue_s=self._seen["queue"].spread(),
            input_tokens=sums["prompt"],
            cached_tokens=sums["cached"],
            output_tokens=sums["output"],
            output_tokens_per_s=sums["output"] / simulated_s,
            goodput_per_s=met / simulated_s,
            met_slo=met / max(1, sums["requests"]),
            reuse_fraction=self._reuse(),
            predicted_reuse=sums["predicted_cached"] / max(1, sums["prompt"]),
            utilisation=float(engines["busy_s"].sum() / paid_s.sum()),
            preemptions=int(engines["preempted"].sum()),
            iterations=int(engines["iterations"].sum()),
            joules_per_output_token=joules(groups, sums["output"]),
            groups=groups,
            trust=[trust(m) for m in self._made],
            instance_hours=float(paid_s.sum()) / 3600.0,
            up=self._instances.counts,
            changes=self._instances.changes,
            lost=int(engines["lost"].sum()),
        )

    def _groups(self, simulated_s: float, paid_s: Reals) -> Iterator[GroupUsage]:
        first = 0
        for m in self._made:
            here = slice(first, first + m.group.instances)
            first += m.group.instances
            paid = float(paid_s[here].sum())
            yield account(m, self.hub["engines"][here], simulated_s, paid, bool(self._later))

    def _reuse(self) -> dict[str, float]:
        """Shares of prompt tokens."""
        prompt, below = max(1, self._sums["prompt"]), sum(self._brought.values())
        return {"hbm": (self._sums["cached"] - below) / prompt} | {n: b / prompt for n, b in self._brought.items()}
