"""Rehearsals: nothing is lost, nothing depends on how it was computed, and a published simulator is met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jevons.base.errors import ConfigError, NoWorker
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import make_scenario, read_scenario, shipped
from jevons.kv.cache import users_of
from jevons.policy.belief import confidence
from jevons.policy.route import POLICIES
from jevons.twin.arrivals import arrivals
from jevons.twin.jumps import ITL_BINS, itl_s
from jevons.twin.report import Report
from jevons.twin.run import Run, simulate

CATALOG, CALIBRATION = read_catalog(), read_calibration()
SHIPPED = sorted(file.stem for file in shipped("mocker").parent.glob("*.toml"))
# Step times of a published simulator, whose results on the Mooncake trace are known.
POLYNOMIAL = {"prompt_ms": [16.50142, 1.518344e-2, 4.209989e-7], "decode_ms": [5.74, 54.01, -25.74]}
MOCKER = {"instances": 8, "polynomial": POLYNOMIAL}
CHAT = {"kind": "chat", "rate": 8.0, "requests": 1_000}
H100S = {"chip": "h100", "tensor": 2, "instances": 2}


def scenario(fleet: list[dict[str, Any]] | None = None, traffic: dict[str, Any] | None = None, **more: Any) -> Any:
    table = {"fleet": fleet or [MOCKER], "traffic": traffic or CHAT, **more}
    return make_scenario(table, "of a test")


def rehearse(wanted: Any, *, exact: bool = False) -> tuple[Report, Any]:
    """What it came to, and the results of all requests in their order."""
    pieces: list[Any] = []
    keep = lambda results: pieces.append(results.copy())  # noqa: E731
    report = simulate(wanted, CATALOG, CALIBRATION, exact=exact, on_results=keep)
    results = np.concatenate(pieces)
    return report, results[np.argsort(results["request"])]


def asked(wanted: Any) -> Any:
    return np.concatenate([piece.requests for piece in arrivals(wanted.traffic, wanted.seed)])


def check_answered(wanted: Any, results: Any) -> None:
    """Each request once, with the tokens it wanted, at times in their order."""
    requests = asked(wanted)
    assert np.array_equal(results["request"], np.arange(len(requests)))
    for name in ("at_s", "prompt", "output"):
        assert np.array_equal(results[name], requests[name])
    assert (results["admitted_s"] >= results["at_s"]).all()
    assert (results["first_s"] > results["admitted_s"]).all()
    assert (results["done_s"] >= results["first_s"]).all()
    assert (results["done_s"] > results["first_s"])[results["output"] > 1].all()
    assert (results["cached"] >= 0).all()
    assert (results["cached"] < results["prompt"]).all()


class Kept:
    """A run whose hub can be looked at afterwards."""

    def __init__(self, wanted: Any) -> None:
        self.pieces: list[Any] = []
        self.run = Run(wanted, CATALOG, CALIBRATION, on_results=lambda results: self.pieces.append(results.copy()))
        self.hub = self.run.hub

    def go(self) -> Any:
        self.run.go()
        results = np.concatenate(self.pieces)
        # Each token but the first came a gap after the one before: all of them are what answers took.
        gaps, sizes = self.hub["itl"], np.array([itl_s(at) for at in range(ITL_BINS)])
        assert gaps.sum() == (results["output"] - 1).sum()
        assert (gaps * sizes).sum() == pytest.approx((results["done_s"] - results["first_s"]).sum(), rel=0.006)
        return results[np.argsort(results["request"])]

    def check_empty(self) -> None:
        """Nobody waits, runs or is promised anything; all blocks are free."""
        hub = self.hub
        for name in ("running", "waiting", "decodes", "context"):
            assert not hub["engines"][name].any(), name
        for name in ("requests", "decoding", "queued_tokens", "queued_context"):
            assert not hub["workers"][name].any(), name
        assert np.array_equal(hub["pools"]["blank"] + hub["pools"]["free"], hub["pools"]["blocks"])
        places = hub["places"][: hub.number("places_used")]
        assert not any(users_of(place) for place in places)
        assert hub.number("slots_spare") == hub.number("slots_used")
        assert hub.number("moves_end") == 0


@pytest.fixture
def conversations(shared: Path) -> Path:
    trace = shared / "data" / "traces" / "mooncake_conversation_trace.jsonl"
    if not trace.exists():
        pytest.skip(f"needs the Mooncake conversation trace at {trace}, which is not part of the project")
    return trace


def test_a_published_simulators_results_on_the_mooncake_trace_are_met(conversations: Path) -> None:
    wanted = scenario(traffic={"trace": str(conversations)}, router="round_robin")

    report, results = rehearse(wanted)

    check_answered(wanted, results)
    assert report.reuse_fraction["hbm"] == pytest.approx(0.08174, abs=0.001)
    assert report.ttft_s.mean == pytest.approx(0.3211, rel=0.02)
    assert report.ttft_s.p99 == pytest.approx(2.048, rel=0.05)
    assert report.itl_s.mean == pytest.approx(0.007588, rel=0.01)
    assert report.tpot_s.mean == pytest.approx(0.008101, rel=0.01)


def test_jumping_over_iterations_changes_nothing() -> None:
    wanted = scenario(router="round_robin")

    (jumped, some), (stepped, all) = rehearse(wanted), rehearse(wanted, exact=True)

    assert np.array_equal(some["worker"], all["worker"])
    assert np.array_equal(some["cached"], all["cached"])
    for name in ("ttft_s", "tpot_s", "itl_s"):
        assert getattr(jumped, name).mean == pytest.approx(getattr(stepped, name).mean, rel=1e-3)
    assert some["done_s"] == pytest.approx(all["done_s"], rel=1e-3)
    assert jumped.iterations == pytest.approx(stepped.iterations, rel=1e-3)


def test_the_same_seed_gives_the_same_and_another_gives_another() -> None:
    wanted = scenario([H100S], model="llama-3.1-70b", weights="fp8", seed=3)
    other = scenario([H100S], model="llama-3.1-70b", weights="fp8", seed=4)

    (first, results), (again, same) = rehearse(wanted), rehearse(wanted)

    assert np.array_equal(results, same)
    assert first.ttft_s == again.ttft_s
    assert not np.array_equal(results["at_s"], rehearse(other)[1]["at_s"])


def test_a_seed_may_have_as_many_bits_as_it_likes() -> None:
    traffic = {**CHAT, "requests": 50}
    seeds = (1_760_000_000_000, 2**63 - 1, 10**20)

    many = [rehearse(scenario(traffic=traffic, event_loss=0.1, seed=seed))[0] for seed in seeds]

    assert len({report.input_tokens for report in many}) == len(seeds)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_scenario_answers_everything(name: str) -> None:
    wanted = read_scenario(shipped(name), {"traffic.requests": 300})

    report, results = rehearse(wanted)

    check_answered(wanted, results)
    assert report.requests == 300
    assert report.instances == wanted.instances
    assert report.output_tokens == results["output"].sum()
    assert report.ttft_s.p50 <= report.ttft_s.p90 <= report.ttft_s.p99
    assert 0 < report.utilisation <= 1
    assert report.reuse_fraction["hbm"] == pytest.approx(results["cached"].sum() / results["prompt"].sum())
    assert len(report.trust) == len(wanted.fleet)


@pytest.mark.parametrize("router", POLICIES)
def test_every_router_answers_everything(router: str) -> None:
    wanted = scenario(router=router)
    kept = Kept(wanted)

    check_answered(wanted, kept.go())
    kept.check_empty()


def test_kv_routing_reuses_more_than_taking_turns() -> None:
    kv, turns = (rehearse(scenario(router=router))[0] for router in ("kv", "round_robin"))

    assert kv.reuse_fraction["hbm"] > turns.reuse_fraction["hbm"] + 0.1
    assert kv.ttft_s.mean < turns.ttft_s.mean


def split_fleet(**more: Any) -> Any:
    fleet = [{**H100S, "role": "prefill", "instances": 3}, {**H100S, "role": "decode"}]
    traffic = {"kind": "rag", "rate": 5.0, "requests": 600}
    return scenario(fleet, traffic, model="llama-3.1-70b", weights="fp8", kv_bits=8, **more)


def test_prompts_computed_apart_go_on_elsewhere() -> None:
    wanted = split_fleet()
    kept = Kept(wanted)

    results = kept.go()

    check_answered(wanted, results)
    kept.check_empty()
    handed = results[results["decode_on"] >= 0]
    assert len(handed) > 100
    assert set(handed["worker"]) == {0, 1, 2}
    assert set(handed["decode_on"]) == {3, 4}
    assert set(results["worker"][results["decode_on"] < 0]) <= {3, 4}
    assert kept.hub["itl"].sum() == (results["output"] - 1).sum()


def busy_at(results: Any, at_s: float) -> int:
    return int(((results["at_s"] < at_s) & (results["done_s"] > at_s)).sum())


@pytest.mark.parametrize("router", POLICIES)
def test_nothing_is_lost_when_instances_fail(router: str) -> None:
    events = [{"at_s": at, "what": "fail", "first": first, "count": 2} for at, first in ((20.0, 0), (25.5, 3))]
    events.append({"at_s": 40.0, "what": "up", "first": 0, "count": 2})
    wanted = scenario(router=router, events=events)
    kept = Kept(wanted)

    results = kept.go()

    check_answered(wanted, results)
    kept.check_empty()
    placed = results[(results["at_s"] > 25.5) & (results["at_s"] < 40.0)]
    assert not set(placed["worker"]) & {0, 1, 3, 4}
    assert set(results[results["at_s"] > 41.0]["worker"]) >= {0, 1}
    assert busy_at(rehearse(scenario(router=router))[1], 20.0) > 8
    report = rehearse(wanted)[0]
    assert report.lost > 8
    assert report.preemptions == 0, "who is lost with its instance did not give way to others"


def test_who_drains_is_given_nothing_more_and_ends_what_it_has() -> None:
    wanted = scenario(events=[{"at_s": 30.0, "what": "drain", "first": 2, "count": 3}])
    kept = Kept(wanted)

    results = kept.go()

    check_answered(wanted, results)
    kept.check_empty()
    assert not set(results[results["at_s"] > 30.0]["worker"]) & {2, 3, 4}
    assert kept.hub["engines"]["preempted"].sum() == 0


@pytest.mark.parametrize("first", [0, 1, 2, 3, 4])
def test_nothing_is_lost_when_one_of_a_split_fleet_fails(first: int) -> None:
    wanted = split_fleet(events=[{"at_s": 30.0, "what": "fail", "first": first}])
    kept = Kept(wanted)

    results = kept.go()

    check_answered(wanted, results)
    kept.check_empty()
    after = results[results["at_s"] > 30.0]
    assert first not in after["worker"]
    assert first not in after["decode_on"]
    inside = first + 2 if first < 3 else first - 3  # those that compute prompts alone are last there
    assert kept.hub["engines"]["busy_s"][inside] <= 30.0
    assert not kept.hub["engines"]["clock"][2:].any(), "who computes prompts alone decodes nothing"


def test_when_the_last_instance_fails_with_work_it_is_said() -> None:
    wanted = scenario(events=[{"at_s": 30.0, "what": "fail", "first": 0, "count": 8}])

    with pytest.raises(NoWorker, match=r"a request must be computed anew at 30\.000 s and no instance is up"):
        simulate(wanted, CATALOG, CALIBRATION)


def test_what_was_handed_over_and_preempted_gets_all_its_tokens() -> None:
    decode = {**H100S, "role": "decode", "instances": 1, "blocks": 200}
    fleet = [{**H100S, "role": "prefill"}, decode]
    traffic = {"kind": "rag", "rate": 3.0, "requests": 150}
    kept = Kept(scenario(fleet, traffic, model="llama-3.1-70b", weights="fp8", kv_bits=8))

    results = kept.go()

    kept.check_empty()
    assert kept.hub["engines"]["preempted"][0] > 10
    assert (results["decode_on"] >= 0).sum() > 10


def test_kv_on_its_way_to_an_instance_that_fails_is_computed_anew() -> None:
    events = []  # many, so that some are on their way at one of them
    for at in range(10, 100, 6):
        events += [{"at_s": at, "what": "fail", "first": 3}, {"at_s": at + 2.0, "what": "up", "first": 3}]
        events += [{"at_s": at + 3.0, "what": "fail", "first": 4}, {"at_s": at + 5.0, "what": "up", "first": 4}]
    wanted = split_fleet(events=events)
    kept = Kept(wanted)

    results = kept.go()

    check_answered(wanted, results)
    kept.check_empty()


def test_instances_that_start_later_are_given_nothing_before() -> None:
    late = {**MOCKER, "instances": 4, "up_after_s": 30.0}
    wanted = scenario([{**MOCKER, "instances": 4}, late])

    results = rehearse(wanted)[1]

    check_answered(wanted, results)
    assert results["worker"][results["at_s"] < 30.0].max() < 4
    assert set(results["worker"][results["at_s"] > 31.0]) == set(range(8))


def test_a_request_that_nobody_could_take_is_an_error() -> None:
    wanted = scenario([{**MOCKER, "up_after_s": 1_000.0}])

    with pytest.raises(NoWorker, match=r"a request arrives at \d+\.\d+ s and no instance is up"):
        simulate(wanted, CATALOG, CALIBRATION)


def test_pools_too_small_for_the_batch_preempt_and_finish() -> None:
    wanted = scenario([{**MOCKER, "instances": 2, "blocks": 200}], {**CHAT, "rate": 3.0}, router="round_robin")
    kept = Kept(wanted)

    results = kept.go()

    check_answered(wanted, results)
    kept.check_empty()
    assert kept.hub["engines"]["preempted"].sum() > 10


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 48), st.integers(1, 24)), min_size=2, max_size=12), st.data()
)
def test_any_requests_that_fit_alone_are_answered_together(
    tmp_path_factory: pytest.TempPathFactory, requests: list[tuple[int, int, int]], data: Any
) -> None:
    most = max(prompt + output for _, prompt, output in requests)
    block = data.draw(st.sampled_from([1, 2, 4]), "block size")
    engine = {
        "instances": 1,
        "polynomial": POLYNOMIAL,
        "block_size": block,
        "blocks": -(-most // block) + data.draw(st.integers(0, 6), "more blocks"),
        "step_tokens": data.draw(st.integers(2, 24), "step tokens"),
        "max_running": data.draw(st.integers(1, 6), "running"),
    }
    trace = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    line = '{{"timestamp": {}, "input_length": {}, "output_length": {}, "hash_ids": [{}]}}\n'
    trace.write_text("".join(line.format(20 * i * at, p, o, i) for i, (at, p, o) in enumerate(sorted(requests))))
    wanted = scenario([engine], {"trace": str(trace)})
    kept = Kept(wanted)

    check_answered(wanted, kept.go())
    kept.check_empty()


def test_events_that_come_late_make_predictions_wrong_and_nothing_else() -> None:
    prompt, late = rehearse(scenario(router="kv")), rehearse(scenario(router="kv", event_lag_s=30.0))

    check_answered(scenario(), late[1])
    assert prompt[0].predicted_reuse == pytest.approx(prompt[0].reuse_fraction["hbm"], abs=0.02)
    assert late[0].predicted_reuse < late[0].reuse_fraction["hbm"] - 0.02
    assert late[0].reuse_fraction["hbm"] < prompt[0].reuse_fraction["hbm"]


def test_events_that_are_lost_make_predictions_wrong_and_nothing_else() -> None:
    lost: dict[str, Any] = {"router": "kv", "event_loss": 0.3, "event_replay": False}
    told, lossy = rehearse(scenario(router="kv")), rehearse(scenario(**lost))
    wrong = [(results["cached"] != results["predicted_cached"]).mean() for _, results in (told, lossy)]

    check_answered(scenario(), lossy[1])
    assert wrong[0] < 0.1
    assert wrong[1] > wrong[0] + 0.1
    assert lossy[0].reuse_fraction["hbm"] < told[0].reuse_fraction["hbm"]
    assert np.array_equal(rehearse(scenario(**lost))[1], lossy[1])


@pytest.mark.parametrize("lag_s", [0.0, 0.2])
def test_what_was_lost_is_replayed_and_then_as_much_is_reused(lag_s: float) -> None:
    lost: dict[str, Any] = {"router": "kv", "event_lag_s": lag_s, "event_loss": 0.05}
    (told, _), (replayed, results) = (rehearse(scenario(**{**lost, **more})) for more in ({"event_loss": 0.0}, {}))
    never, _ = rehearse(scenario(**lost, event_replay=False))

    check_answered(scenario(), results)
    assert replayed.reuse_fraction["hbm"] == pytest.approx(told.reuse_fraction["hbm"], abs=0.005)
    assert never.reuse_fraction["hbm"] < told.reuse_fraction["hbm"] - 0.02


def test_what_an_index_that_hears_late_claims_is_believed_as_far_as_it_was_right() -> None:
    fleet = [{**MOCKER, "blocks": 700}]  # so few that blocks are evicted before that is heard
    honest, late = Kept(scenario(fleet, router="kv")), Kept(scenario(fleet, router="kv", event_lag_s=30.0))
    honest.go()
    late.go()
    told = [[float(confidence(w)) for w in kept.run.hub["workers"]] for kept in (honest, late)]

    assert min(told[0]) > 0.98
    assert max(told[1]) < 0.9


LLAMAS = {"model": "llama-3.1-70b", "weights": "fp8", "kv_bits": 8}


def test_a_cap_on_power_slows_prompts_down() -> None:
    documents = {"kind": "documents", "rate": 1.0, "requests": 200}
    reports = [rehearse(scenario([{**H100S, **more}], documents, **LLAMAS))[0] for more in ({}, {"power_w": 350.0})]

    assert reports[1].ttft_s.p50 / reports[0].ttft_s.p50 > 1.15
    assert reports[0].joules_per_output_token is not None
    assert reports[1].joules_per_output_token is not None
    assert reports[1].joules_per_output_token < reports[0].joules_per_output_token


def test_chips_are_capped_for_a_while_in_the_middle_of_work() -> None:
    documents = {"kind": "documents", "rate": 2.0, "requests": 400}
    caps = [{"at_s": 60.0, "what": "cap", "first": 0, "count": 2, "power_w": 250.0}]
    caps.append({"at_s": 120.0, "what": "cap", "first": 0, "count": 2})
    wanted = scenario([{**H100S, "instances": 4}], documents, events=caps, **LLAMAS)
    kept = Kept(wanted)

    results = kept.go()

    check_answered(wanted, results)
    kept.check_empty()
    _, free = rehearse(scenario([{**H100S, "instances": 4}], documents, **LLAMAS))
    before = results["done_s"] < 60.0
    assert np.array_equal(results[before], free[before])
    during = (results["at_s"] > 60.0) & (results["at_s"] < 115.0)
    here, there = ((each["worker"][during] < 2).mean() for each in (results, free))
    assert here < there  # work goes where it is done sooner
    assert rehearse(wanted)[0].joules_per_output_token is None  # what a chip drew is not known by its mean
    assert set(kept.hub["engines"]["pace"]) == {0}


def test_a_jump_under_way_ends_when_the_pace_changes() -> None:
    one = {"kind": "chat", "rate": 0.2, "requests": 1}
    caps = [{"at_s": 5.3, "what": "cap", "first": 0, "power_w": 200.0}]
    fleet = [{**H100S, "instances": 1}]
    jumped, exact = (
        rehearse(scenario(fleet, one, events=caps, **LLAMAS), exact=exact)[1]["done_s"] for exact in (False, True)
    )

    assert jumped == pytest.approx(exact, rel=1e-3)


def test_a_line_that_a_domain_shares_holds_handovers_up() -> None:
    fleet = [{**H100S, "role": "prefill", "instances": 3}, {**H100S, "role": "decode"}]
    traffic = {"kind": "rag", "rate": 5.0, "requests": 300}

    def gaps(rate: float | None) -> float:
        narrow = [{**group, "uplink_bytes_per_s": rate} for group in fleet]
        wanted = scenario(narrow, traffic, **LLAMAS)
        report, results = rehearse(wanted)
        check_answered(wanted, results)
        return report.tpot_s.mean

    free_s, wide_s, narrow_s = gaps(None), gaps(1e15), gaps(2e9)
    assert wide_s == free_s
    assert narrow_s > 1.2 * free_s


def test_guesses_of_a_drafter_make_answers_come_sooner() -> None:
    draft = {"model": "llama-3.1-8b", "chip": "h100", "tokens": 4, "accepted": 0.8, "weights": "fp8"}
    fleet = [{**H100S, "role": "prefill"}, {**H100S, "role": "decode"}]
    traffic = {"kind": "chat", "rate": 1.0, "requests": 200}
    speculating = scenario([fleet[0], {**fleet[1], "draft": draft}], traffic, **LLAMAS)

    plain, quick = rehearse(scenario(fleet, traffic, **LLAMAS))[0], rehearse(speculating)

    check_answered(speculating, quick[1])
    assert quick[0].tpot_s.p50 < 0.75 * plain.tpot_s.p50
    assert quick[0].chips == plain.chips + 2
    assert "speculation" in quick[0].trust[0].note

    heads = {"tokens": 2, "accepted": 0.6}
    itself = rehearse(scenario([fleet[0], {**fleet[1], "draft": heads}], traffic, **LLAMAS))[0]
    assert itself.chips == plain.chips
    assert itself.tpot_s.p50 < 0.75 * plain.tpot_s.p50


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"power_w": 50.0}, r"fleet\[0\].power_w: must be more than what the chip draws idle \(105 W\), got 50"),
        (
            {"chip": "lpu3", "tensor": 8, "pipeline": 32, "weights": "bf16"},
            "lpu3 does not compute bf16; set other weights",
        ),
        ({"chip": "lpu3", "tensor": 8, "power_w": 100.0}, "power_w: the TDP of the chip is not known"),
    ],
)
def test_chips_that_cannot_do_what_is_asked_are_refused(more: dict[str, Any], says: str) -> None:
    weights = more.pop("weights", "fp8")
    with pytest.raises(ConfigError, match=says):
        simulate(scenario([{**H100S, **more}], **{**LLAMAS, "weights": weights}), CATALOG, CALIBRATION)


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ({**MOCKER, "power_w": 300.0}, r"fleet\[0\].power_w: needs a chip, got polynomial"),
        (
            {**H100S, "draft": {"model": "llama-3.1-8b", "chip": "h100", "tokens": 4, "accepted": 0.8}},
            "draft: is for instances of role 'decode' on one kind of chip",
        ),
        (
            {**H100S, "role": "decode", "draft": {"model": "llama-3.1-8b", "tokens": 4, "accepted": 0.8}},
            "draft: must have both a model and a chip, or neither: heads of the model itself",
        ),
        (
            {**H100S, "draft": {"model": "llama-3.1-8b", "chip": "h100", "tokens": 4, "accepted": 1.0}},
            r"fleet\[0\].draft.accepted: must be float < 1.0, got 1.0",
        ),
    ],
)
def test_groups_that_mean_nothing_are_refused(group: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        scenario([group], model="llama-3.1-70b")


def test_watts_are_for_caps_alone() -> None:
    with pytest.raises(ConfigError, match="events: power_w is for 'cap' alone, got 'fail'"):
        scenario(events=[{"at_s": 1.0, "what": "fail", "first": 0, "power_w": 300.0}])


def test_memory_does_not_grow_with_the_number_of_requests() -> None:
    few, many = (Kept(scenario(traffic={**CHAT, "requests": count})) for count in (3_000, 12_000))
    sizes = []
    for kept in (few, many):
        kept.go()
        arrays = kept.hub._arrays
        sizes.append({name: array.nbytes for name, array in arrays.items() if name not in ("arrivals", "ids")})

    assert sizes[0] == sizes[1]
    assert many.hub.number("slots_used") < 200
    assert many.hub["stems_spare"][-1] < 100_000  # elements ever used
    assert many.hub["tables_spare"][-1] < 100_000


def test_a_request_that_no_instance_could_hold_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"a request of [\d,]+ tokens with its answer; an instance holds 640:"):
        simulate(scenario([{**MOCKER, "blocks": 10}]), CATALOG, CALIBRATION)


@pytest.mark.parametrize(
    ("fleet", "router", "says"),
    [
        ([MOCKER], "fastest", "router: must be one of kv, round_robin, least_loaded, random, got 'fastest'"),
        ([MOCKER, {**MOCKER, "block_size": 32}], "kv", r"block_size must be the same everywhere, got \[32, 64\]"),
        ([{**MOCKER, "block_size": 48}], "kv", "block_size must divide 512 or be a multiple of it, got 48"),
        ([{**MOCKER, "role": "prefill"}, MOCKER], "random", "prefill instances need 'kv', got 'random'"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(fleet: list[dict[str, Any]], router: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate(scenario(fleet, router=router), CATALOG, CALIBRATION)


@pytest.mark.parametrize("block", [16, 512, 1_024])
def test_blocks_may_be_smaller_or_larger_than_a_traces(block: int) -> None:
    wanted = scenario([{**MOCKER, "block_size": block, "blocks": 1_048_576 // block}])
    kept = Kept(wanted)

    check_answered(wanted, kept.go())
    kept.check_empty()
