"""Plans: what the bound proposes, rehearsals confirm; and who asks for too much is told by how much."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

pytest.importorskip("highspy", reason="plans need HiGHS: pip install 'jevons[plan]'")

from jevons.base.errors import ConfigError
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.prices import make_bill
from jevons.config.scenario import Group, make_scenario
from jevons.config.wants import Budget, OfferedTier, Promise, Wants, make_wants
from jevons.econ.cost import Basis, capital_recovery
from jevons.econ.draws import bases
from jevons.econ.purchase import Excess, Kind
from jevons.perf.calibration import Trust
from jevons.twin.offers import Candidate, load_of, offers_of, with_tier
from jevons.twin.plan import Search, plan
from jevons.twin.planned import Plan, Tried, front
from jevons.twin.run import simulate
from jevons.twin.sizing import both_within

CATALOG, CALIBRATION = read_catalog(), read_calibration()
RAG = {"kind": "rag", "rate": 30.0, "requests": 600}


def wants(**more: Any) -> Wants:
    table = {"model": "llama-3.1-8b", "traffic": RAG, "chips": ["h100", "h200"], "tensor": [1, 2], "finalists": 3}
    return make_wants(table | more, "of a test")


OFFERS = offers_of(wants(), CATALOG)[0]


def planned(wants: Wants) -> Plan:
    return plan(wants, CATALOG, CALIBRATION)


@pytest.fixture(scope="module")
def usual() -> Plan:
    return planned(wants())


def test_what_is_planned_keeps_the_promise_when_it_is_rehearsed_again(usual: Plan) -> None:
    import tomllib

    assert usual.best is not None
    again = simulate(make_scenario(tomllib.loads(usual.scenario), "of a plan"), CATALOG, CALIBRATION)
    assert again.met_slo == pytest.approx(usual.best.met)
    assert again.met_slo >= usual.slo.share


def test_the_best_is_the_cheapest_of_all_that_keep_the_promise(usual: Plan) -> None:
    assert usual.best is not None
    assert usual.best == usual.finalists[0]
    assert all(each.keeps and each.usd_per_hour >= usual.best.usd_per_hour for each in usual.finalists)
    assert usual.bound_usd_per_hour is not None
    assert usual.best.usd_per_hour >= usual.bound_usd_per_hour


def test_of_weights_that_would_do_as_well_those_are_taken_that_cost_least() -> None:
    asked = {"slo": {"ttft_s": 1.0, "tpot_s": 0.012}, "chips": ["h100"]}
    alone = {way: planned(wants(weights=way, **asked)) for way in ("bf16", "fp8")}
    either = planned(wants(or_weights=["fp8", "bf16"], **asked))  # bf16 is as released: not searched twice

    assert alone["fp8"].best is not None
    assert alone["bf16"].best is not None
    assert alone["fp8"].best.usd_per_hour < alone["bf16"].best.usd_per_hour
    assert either.best == alone["fp8"].best
    assert either.weights == "fp8"
    assert either.in_other_weights == {"bf16": alone["bf16"].best.usd_per_hour}
    assert either.rehearsals == alone["fp8"].rehearsals + alone["bf16"].rehearsals


def test_weights_in_which_nothing_keeps_the_promise_are_told() -> None:
    either = planned(wants(or_weights=["fp8"], slo={"ttft_s": 1.0, "tpot_s": 0.006}, chips=["h100"]))

    assert either.best is not None
    assert either.weights == "fp8"
    assert either.in_other_weights == {"bf16": None}


def test_a_million_tokens_cost_the_hours_of_all_chips(usual: Plan) -> None:
    best = usual.best
    assert best is not None
    hours = usual.load.span_s / 3600.0
    assert best.usd_per_million_output_tokens == pytest.approx(
        best.usd_per_hour * hours / usual.load.output_tokens * 1e6
    )


def test_a_chip_that_is_taken_away_is_not_in_the_new_plan(usual: Plan) -> None:
    assert usual.best is not None
    gone = next(iter(usual.best.chips))
    again = planned(wants(without=[gone]))
    assert again.best is not None
    assert gone not in again.best.chips
    assert again.why_not[gone] == "excluded"
    assert again.best.usd_per_hour >= usual.best.usd_per_hour


def test_kinds_are_looked_at_as_long_as_any_may_be_cheaper() -> None:
    code, slo = {"kind": "code", "rate": 10.0, "requests": 600}, {"ttft_s": 1.0, "tpot_s": 0.03}
    chips = ["h100", "h200", "b200", "mi355x", "tpu-v7"]
    asked = wants(chips=chips, tensor=[1, 2, 4], finalists=1, traffic=code, slo=slo)
    few, many = planned(asked).best, planned(replace(asked, finalists=16)).best
    assert few is not None
    assert many is not None
    assert few.usd_per_hour <= many.usd_per_hour
    for chip in few.chips:
        other = planned(replace(asked, without=[chip])).best
        assert other is not None
        assert few.usd_per_hour <= other.usd_per_hour


def test_kinds_of_a_pair_that_takes_many_are_looked_at_with_others_beside_them() -> None:
    """Prompts on single chips keep whoever decodes waiting: of these it takes ten times as many, beside pairs one."""
    asked = wants(
        model="llama-3.1-70b", traffic={"kind": "code", "rate": 5.0, "requests": 300}, chips=["tpu-v7", "mi355x"]
    )
    asked = replace(asked, tensor=(1, 2, 4), finalists=1, seed=2, slo=Promise(ttft_s=2.0, tpot_s=0.02, share=0.95))
    search = Search(asked, CATALOG, CALIBRATION, lambda tried: None)
    prefill, decode = (
        next(at for at, kind in enumerate(search.kinds) if (kind.role, kind.chips) == (role, {"tpu-v7": chips}))
        for role, chips in (("prefill", 2), ("decode", 4))
    )
    pairs, best = search.rehearse({prefill: 4, decode: 2}), search.plan().best

    assert pairs.keeps
    assert best is not None
    assert best.usd_per_hour <= pairs.usd_per_hour


def test_where_nobody_can_begin_answers_in_time_it_is_said_and_not_put_down_to_limits() -> None:
    """H100s, four to a model of 70 B, could decode within this promise, and none of them begins to answer."""
    asked = wants(model="llama-3.1-70b", traffic={"kind": "code", "rate": 2.0, "requests": 100}, chips=["h100"])
    asked = replace(asked, tensor=(1, 2, 4), slo=Promise(ttft_s=0.5, tpot_s=0.03, share=0.95))

    with pytest.raises(ConfigError, match=r"no instance of h100 with \(1, 2, 4\) chips .* or promise less"):
        planned(asked)


def test_power_that_does_not_do_is_told_with_what_would(usual: Plan) -> None:
    assert usual.best is not None
    assert usual.best.power_w is not None
    short = planned(wants(limits={"power_w": usual.best.power_w / 8}))
    assert short.best is None
    assert [each.limit for each in short.short_of] == ["power_w"]
    needs = short.short_of[0].needs
    assert needs is not None
    assert usual.best.power_w / 8 < needs <= usual.best.power_w
    enough = planned(replace(wants(), limits=Budget(power_w=needs)))
    assert enough.best is not None
    assert enough.best.power_w is not None
    assert enough.best.power_w <= needs


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_a_share_of_requests_is_within_both_times(share: float) -> None:
    draw = np.random.default_rng(1)
    ttft_s, tpot_s = draw.exponential(size=(2, 1_000))
    ttft_s[:50] = tpot_s[:50] = 9.0  # some are late in both

    for_first, for_next = both_within(ttft_s, tpot_s, share)

    assert ((ttft_s <= for_first) & (tpot_s <= for_next)).mean() >= share
    assert ((ttft_s < for_first) & (tpot_s < for_next)).mean() < share


def test_a_limit_that_the_best_fleet_is_within_finds_it_again(usual: Plan) -> None:
    assert usual.best is not None
    assert usual.best.power_w is not None
    within = planned(replace(wants(), limits=Budget(power_w=usual.best.power_w)))
    assert within.best is not None
    assert within.best.usd_per_hour <= usual.best.usd_per_hour
    assert within.best.power_w is not None
    assert within.best.power_w <= usual.best.power_w


def test_no_more_is_told_to_be_needed_than_a_fleet_that_was_found_takes(usual: Plan) -> None:
    assert usual.best is not None
    assert usual.best.power_w is not None
    short = planned(replace(wants(), limits=Budget(power_w=usual.best.power_w * 0.99)))
    assert short.best is None
    assert [(each.limit, each.needs) for each in short.short_of] == [("power_w", usual.best.power_w)]


@pytest.mark.parametrize("name", ["power_w", "usd_per_hour"])
def test_a_limit_that_forbids_the_cheapest_fleet_finds_no_cheaper_one(name: str) -> None:
    asked: dict[str, Any] = {"chips": ["h100", "h200", "b200"], "tensor": [1, 2, 4], "finalists": 2}
    free = planned(wants(**asked)).best
    assert free is not None
    less = planned(wants(**asked, limits={name: getattr(free, name) * 0.999}))
    assert less.best is None or less.best.usd_per_hour >= free.usd_per_hour
    assert all(each.needs and each.needs <= getattr(free, name) for each in less.short_of)


def test_as_much_is_told_to_be_needed_as_the_cheapest_fleet_takes_that_is_found_without_the_limit() -> None:
    asked: dict[str, Any] = {"chips": ["h100", "h200", "b200"], "tensor": [1, 2, 4], "finalists": 2}
    free = planned(wants(**asked)).best
    assert free is not None
    (short,) = planned(wants(**asked, limits={"usd_per_hour": free.usd_per_hour / 2})).short_of
    assert short == Excess("usd_per_hour", free.usd_per_hour / 2, free.usd_per_hour)


def test_chips_that_are_there_too_late_are_not_bought() -> None:
    late = wants(available=[{"chip": "h200", "since": "2027-06"}], at="2027-01")
    offers, why_not = offers_of(late, CATALOG)
    assert set(offers) == {"h100"}
    assert why_not["h200"] == "there from 2027-06 on"
    assert set(offers_of(replace(late, at="2027-06"), CATALOG)[0]) == {"h100", "h200"}


def test_owned_chips_are_used_up_before_others_are_bought() -> None:
    mine = planned(wants(owned={"h100": 16}))
    assert mine.best is not None
    assert mine.best.chips.get("h100", 0) <= 16
    assert mine.best.usd_per_hour < 16 * 0.25  # by hand: 1.37 kW × 1.2 × $0.08 = $0.13 each


def split(usd_per_hour: float, **more: Any) -> Wants:
    """Quick answers: attention and the rest on different chips are worth it where SRAM is cheap."""
    price = {"usd_per_hour": usd_per_hour, "low": usd_per_hour / 2, "high": 2 * usd_per_hour}
    asked: dict[str, Any] = {
        "traffic": RAG | {"requests": 300},
        "chips": ["h100", "lpu3"],
        "weights": "fp8",
        "slo": {"tpot_s": 0.008},
        "finalists": 2,
        "prices": {"lpu3": price},
    }
    return wants(**asked | more)


def test_experts_go_to_sram_where_its_given_price_is_low() -> None:
    found = planned(split(0.01))
    assert found.best is not None
    part = next(part for part in found.best.parts if part.ffn_chip)
    assert (part.role, part.ffn_chip) == ("decode", "lpu3")
    assert f" : {part.ffn_chips} lpu3 decode" in found.best.name
    assert found.best.chips["lpu3"] == part.instances * part.ffn_chips
    h100s = found.best.chips["h100"]
    assert found.best.usd_per_hour == pytest.approx(
        0.01 * found.best.chips["lpu3"] + OFFERS["h100"].usd_per_hour * h100s
    )
    assert found.best.power_w is None  # nobody published what one draws
    assert found.given["lpu3"].high == 0.02
    assert found.sureness is not None
    flip = next(flip for flip in found.sureness.flips if flip.figure == "given_usd_per_hour/lpu3")
    assert flip.at > 0.01
    assert "lpu3" not in flip.to
    assert 'ffn_chip = "lpu3"' in found.scenario


@pytest.mark.parametrize("lower", [0.02, 0.05])
def test_a_lower_price_of_a_chip_never_makes_a_plan_dearer(lower: float) -> None:
    cheap, dear = planned(split(lower)), planned(split(2 * lower))
    assert cheap.best is not None
    assert dear.best is not None
    assert cheap.best.usd_per_hour <= dear.best.usd_per_hour


def test_nothing_of_the_same_chips_and_roles_keeps_the_promise_for_less(usual: Plan) -> None:
    search = Search(wants(), CATALOG, CALIBRATION, lambda tried: None)
    best = search.plan().best
    assert best is not None
    counts = search._counts_of(best)
    assert not any(search.rehearse(fleet).keeps for fleet in search._instead(counts))


def test_experts_stay_where_the_given_price_is_high() -> None:
    found = planned(split(3.0))
    assert found.best is not None
    assert set(found.best.chips) == {"h100"}


def test_what_a_chip_draws_is_its_part_of_the_rack_where_nothing_else_is_known_as_in_a_bill() -> None:
    """A Helios of 72 draws 245 kW."""
    offer = offers_of(wants(chips=["mi455x"], prices={"mi455x": {"usd_per_hour": 4.0}}), CATALOG)[0]["mi455x"]
    assert offer.power_w == pytest.approx(245e3 / 72)
    owned = offers_of(wants(chips=["mi455x"], owned={"mi455x": 8}), CATALOG)[0]["mi455x"]
    assert owned.most == 8
    assert owned.usd_per_hour == pytest.approx(245 / 72 * 1.2 * 0.08)


def test_chips_whose_power_is_not_known_are_not_bought_under_a_limit_of_power() -> None:
    found = planned(split(0.01, limits={"power_w": 1e6}))
    assert found.best is not None
    assert set(found.best.chips) == {"h100"}


def test_no_more_chips_in_sram_than_there_are() -> None:
    few = planned(split(0.01, available=[{"chip": "lpu3", "chips": 14}]))  # 15 hold what is not attention
    assert few.best is not None
    assert set(few.best.chips) == {"h100"}


def test_without_a_price_nothing_is_proposed_and_the_plan_says_why() -> None:
    offers, why_not = offers_of(split(0.01, prices={}), CATALOG)
    assert "lpu3" not in offers
    assert why_not["lpu3"] == "no price (own) known"


def test_a_price_of_a_chip_that_may_not_be_bought_is_told() -> None:
    assert offers_of(split(0.01, chips=["h100"]), CATALOG)[1]["lpu3"] == (
        "priced, but not among the chips that may be bought"
    )


def test_a_price_of_an_unknown_chip_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"plan: 'lpu9' is not in the catalog; `jevons fleet list` shows what is"):
        offers_of(wants(prices={"lpu9": {"usd_per_hour": 0.4}}), CATALOG)


def test_a_price_beyond_its_own_bounds_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"prices.lpu3: usd_per_hour must be from low to high, got 0.4"):
        wants(prices={"lpu3": {"usd_per_hour": 0.4, "low": 0.5}})


def test_prompts_that_were_seen_are_not_counted_as_to_be_computed() -> None:
    load = load_of(wants().traffic, 0, 0.9)
    assert load.requests == 600
    assert 0 < load.demand.prompt_tokens < load.demand.input_tokens
    assert load.demand.long_tokens > load.demand.prompt_tokens


def test_a_model_that_no_instance_holds_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match=r"no instance of h100, h200 with .* holds deepseek-v3"):
        planned(wants(model="deepseek-v3"))


def test_the_front_has_nothing_that_is_worse_in_all(usual: Plan) -> None:
    def beats(a: Tried, b: Tried) -> bool:
        assert a.power_w is not None
        assert b.power_w is not None
        return a.usd_per_hour < b.usd_per_hour and a.tpot_s < b.tpot_s and a.power_w < b.power_w

    assert usual.front
    assert usual.best in usual.front or any(
        f.usd_per_hour == usual.best.usd_per_hour for f in usual.front if usual.best
    )
    assert not any(beats(a, b) for a in usual.front for b in usual.front)
    assert front(usual.front) == usual.front


def test_chips_to_be_had_for_less_than_owned_ones_draw_are_planned_with() -> None:
    """Two that are owned draw $0.13 an hour each, one more is to be had for $0.05: three do, for $0.15."""
    traffic = {"kind": "agents", "rate": 6.0, "requests": 400}
    asked = {"chips": ["h100"], "tensor": [1], "roles": ["both"], "finalists": 1, "traffic": traffic}
    found = planned(wants(**asked, owned={"h100": 2}, prices={"h100": {"usd_per_hour": 0.05}}))

    assert found.best is not None
    assert found.best.usd_per_hour == pytest.approx(0.05 * found.best.chips["h100"])


def test_a_tier_that_is_offered_without_a_price_costs_what_such_memory_does() -> None:
    """1 TB of DRAM at the catalog's price, paid back over a chip's life, for every two instances."""
    economics = read_catalog().economics
    group = Group(chip="h100", instances=1)
    kind = Kind(role="both", chips={"h100": 1}, requests_per_s=1.0)
    plain = Candidate(group=group, kind=kind, trust=Trust.MEASURED, rate_p90_error=None)
    offered = OfferedTier(name="dram", size_bytes=1e12, bytes_per_s=50e9, instances=2)
    payment = capital_recovery(economics.wacc.value, economics.life_years.value)

    ours, theirs = (with_tier(plain, each, economics) for each in (offered, replace(offered, usd_per_hour=0.5)))
    hour = economics.dram_usd_per_gb.value * 1e3 * payment / 8760
    assert [ours.kind.more_usd_per_hour(count) for count in (1, 2, 3)] == pytest.approx([hour, hour, 2 * hour])
    assert [theirs.kind.more_usd_per_hour(count) for count in (1, 2, 3)] == [0.5, 0.5, 1.0]
    assert ours.group.tier is not None
    assert ours.group.tier.size_bytes == 1e12


def test_a_tier_is_bought_where_it_saves_more_than_it_costs() -> None:
    node = {"size_bytes": 2e12, "bytes_per_s": 2e11, "instances": 8}
    asked: dict[str, Any] = {
        "model": "llama-3.1-70b",
        "traffic": {"kind": "agents", "rate": 30.0, "requests": 800},
        "chips": ["h100"],
        "tensor": [4],
        "roles": ["both"],
        "memory_share": 0.15,  # of what weights leave: little is found again without a tier
        "finalists": 1,
    }
    cheap = planned(wants(**asked, tiers=[node | {"usd_per_hour": 0.08}]))
    dear = planned(wants(**asked, tiers=[node | {"usd_per_hour": 800.0}]))
    best, without = cheap.finalists[:2]
    assert (best.parts[0].tier, without.parts[0].tier) == ("dram", "")
    assert best.reuse > without.reuse
    instances, hour = best.parts[0].instances, 4 * OFFERS["h100"].usd_per_hour
    assert best.usd_per_hour == pytest.approx(instances * hour + 0.08 * math.ceil(instances / 8))
    assert dear.best is not None
    assert dear.best.parts == without.parts


def test_a_tier_that_few_instances_share_costs_in_a_plan_what_it_costs_when_it_is_priced() -> None:
    """Few instances have all of what eight may share, so they pay all of it."""
    tier = {"size_bytes": 2e12, "bytes_per_s": 2e11, "instances": 8}
    traffic = {"kind": "agents", "rate": 4.0, "requests": 400}
    found = planned(wants(traffic=traffic, chips=["h100"], tensor=[1], roles=["both"], finalists=1, tiers=[tier]))
    tiered = next(each for each in found.finalists if each.parts[0].tier)
    group = {"instances": tiered.parts[0].instances, "chip": "h100", "tier": tier}
    scenario = make_scenario({"model": "llama-3.1-8b", "traffic": traffic, "fleet": [group]}, "of a test")
    bill = make_bill(simulate(scenario, CATALOG, CALIBRATION).usage, CATALOG, Basis.OWN, {})
    assert tiered.usd_per_hour == pytest.approx(float(bill.usd_per_hour(bases(bill.figures()))))


DAY = {"kind": "documents", "shape": "diurnal", "rate": 0.4, "seconds": 60_000.0}


def day(**more: Any) -> Wants:
    """A load that rises to several times what it is at night."""
    asked: dict[str, Any] = {
        "model": "llama-3.1-70b",
        "traffic": DAY,
        "chips": ["h100"],
        "tensor": [4],
        "roles": ["both"],
        "basis": "rent",
        "slo": {"ttft_s": 10.0, "tpot_s": 0.05},
        "finalists": 1,
    }
    return wants(**asked | more)


def test_where_hours_are_rented_a_day_costs_less_on_instances_that_stop() -> None:
    found = planned(day())
    assert found.best is not None
    assert found.scaled is not None
    assert found.scaled.pays, found.scaled.reason
    assert found.scaled.met >= found.slo.share
    assert found.scaled.usd_per_hour < found.best.usd_per_hour
    share = found.scaled.instance_hours / found.scaled.all_instance_hours
    each_usd = found.best.usd_per_hour / found.best.parts[0].instances
    most = found.scaled.all_instance_hours / (found.load.span_s / 3600)
    assert found.scaled.usd_per_hour == pytest.approx(each_usd * share * most, rel=0.01)
    assert "[scaling]" in found.scaled.scenario


def test_bought_chips_save_the_power_alone_that_they_do_not_draw() -> None:
    found = planned(day(basis="own"))
    assert found.best is not None
    assert found.scaled is not None
    saved = 1 - found.scaled.usd_per_hour / found.best.usd_per_hour
    assert 0.001 < saved < 0.03
    assert "power alone: chips are bought" in found.scaled.reason


def test_steady_work_has_nothing_to_start_and_stop(usual: Plan) -> None:
    assert usual.scaled is not None
    assert not usual.scaled.pays
    assert not usual.scaled.usd_per_hour
    assert "× the mean: what is there is needed" in usual.scaled.reason or "too short to tell" in usual.scaled.reason


TRACE = Path(__file__).parents[3] / "shared" / "data" / "traces" / "mooncake_conversation_trace.jsonl"


@pytest.mark.skipif(not TRACE.exists(), reason=f"the public Mooncake conversation trace is not at {TRACE}")
def test_a_plan_beats_a_pool_that_is_made_by_hand_by_a_fifth() -> None:
    """The same promise, trace and router: one pool of H200, four chips an instance, against what is free to choose."""
    asked = {
        "model": "llama-3.1-70b",
        "traffic": {"trace": str(TRACE), "requests": 1_000},
        "slo": {"ttft_s": 5.0, "tpot_s": 0.05, "share": 0.9},
    }
    by_hand = planned(wants(**asked, chips=["h200"], tensor=[4], roles=["both"], finalists=1))
    free = planned(wants(**asked, chips=["h200", "gb200"], tensor=[2, 4], finalists=2))
    assert by_hand.best is not None
    assert free.best is not None
    assert free.best.usd_per_million_output_tokens <= 0.8 * by_hand.best.usd_per_million_output_tokens
