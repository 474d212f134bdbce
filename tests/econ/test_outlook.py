"""The outlook: levers by hand, what each reading of Vera Rubin means, the same seed the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.config.catalog import read_catalog
from jevons.econ.curve import GUESS_INTERACTIVITY, Served, gains, tokens_per_s
from jevons.econ.draws import Draws, bases
from jevons.econ.levers import LEVERS, compression, hardware, other, small_models, sparsity, tiering
from jevons.econ.outlook import Reading, Setup, look_ahead, parameters, rehearse, sheet_gain
from jevons.facts.hardware import Figure
from jevons.perf.roofline import GUESS_SHARES

CATALOG = read_catalog()
SINCE = np.arange(5.0)[:, np.newaxis]
SERVED = Served(model=CATALOG.models["deepseek-v3"], shares={"fp4": GUESS_SHARES})
READINGS: tuple[Reading, ...] = ("between", "vendor")
KNOWN = {r: parameters(CATALOG.economics, CATALOG.demand, CATALOG.chips, SERVED, r) for r in READINGS}
SETUP = Setup(first=2026, last=2030, levers=LEVERS, limits=("chips", "power"))


def figures(reading: Reading = "between", **changed: float) -> dict[str, Figure]:
    found = dict(KNOWN[reading])
    one = found["price_elasticity"]
    for name, value in changed.items():
        found[name] = Figure(value=value, source=one.source, confidence=one.confidence)
    return found


def test_hardware_is_a_curve_in_interactivity() -> None:
    """70 % of spending at 2 times, 25 % at 10, 5 % at 30: 0.35 + 0.025 + 0.00167 of the energy in the end."""
    way = hardware(bases(figures("vendor")), SINCE)

    assert way.energy[:, 0] == pytest.approx(1 - np.arange(5) / 4 * (1 - 0.376667), abs=1e-5)
    # An hour is 3.61 / 2.31 as dear, a chip draws 3.3 / 2.12 as much: per dollar nearly what it is per watt.
    assert way.cost[-1, 0] == pytest.approx(0.376667 / (3.3 / 2.12) * (3.61 / 2.31), abs=1e-5)


def test_data_sheets_give_1_5_to_2_2_times_for_a_watt() -> None:
    gain = sheet_gain(CATALOG.chips["gb300"], CATALOG.chips["rubin"])

    watts = 3.3 / 2.12
    assert (gain.low, gain.value, gain.high) == pytest.approx((35 / 15 / watts, 22 / 8 / watts, 17.5 / 5 / watts))


def test_a_mixture_saves_arithmetic_alone() -> None:
    """40 % of cost is arithmetic, of which 5.5 % is left; 15 % of spending moves."""
    way = sparsity(bases(figures()), SINCE)

    assert way.cost[-1, 0] == pytest.approx(1 - 0.15 * 0.4 * (1 - 37 / 671), abs=1e-4)


def test_a_tier_saves_chips_and_is_paid() -> None:
    """It reaches 0.4 of spending by the last year: chips × 0.8, and with memory at a tenth of them cost × 0.88."""
    of = {"tiering_reach": 0.4, "tiering_chip_factor": 0.8, "tiering_memory_cost": 0.1}
    found = tiering(of, SINCE)

    assert found.chips[-1, 0] == pytest.approx(1 - 0.4 * 0.2)
    assert found.energy[-1, 0] == found.chips[-1, 0]
    assert found.cost[-1, 0] == pytest.approx(1 - 0.4 * 0.12)
    assert found.cost[0, 0] == found.chips[0, 0] == 1.0


def test_nobody_buys_memory_that_costs_more_than_the_chips_it_saves() -> None:
    """Chips × 0.8 with memory at 0.26 of them would be × 1.008."""
    found = tiering({"tiering_reach": 0.4, "tiering_chip_factor": 0.8, "tiering_memory_cost": 0.26}, SINCE)

    assert (found.cost == 1.0).all()
    assert (found.chips == 1.0).all()


@given(low=st.floats(0.001, 1.0), more=st.floats(1.0, 10.0), chips=st.floats(0.3, 1.1), reach=st.floats(0.01, 1.0))
def test_dearer_memory_makes_no_task_cheaper(low: float, more: float, chips: float, reach: float) -> None:
    of = {"tiering_reach": reach, "tiering_chip_factor": chips}
    cheap, dear = (tiering(of | {"tiering_memory_cost": usd}, SINCE) for usd in (low, low * more))

    assert (dear.cost >= cheap.cost).all()
    assert (dear.chips >= cheap.chips).all()
    assert (cheap.cost <= 1.0).all()


def test_compression_reaches_mathematics_alone_and_answers_alone() -> None:
    """5 % of answers, half of them hard: 0.5 · 0.435 + 0.5 · 0.275 = 35.5 % shorter; answers are half of the cost."""
    way = compression(bases(figures()), SINCE)

    assert way.tokens[-1, 0] == pytest.approx(1 - 0.05 * 0.355)
    assert way.cost[-1, 0] == pytest.approx(1 - 0.05 * 0.355 * 0.5)


def test_what_is_not_named_makes_up_the_published_fall_and_no_more() -> None:
    of = bases(figures())
    steep = bases(figures(small_model_reach=0.99, small_model_price=0.05, hardware_cost_decline_per_year=1.3))

    assert rehearse(of, SETUP).cost[:, 0] == pytest.approx(2.0 ** -np.arange(5))
    assert other(steep, SINCE).cost[-1, 0] == 1.0
    assert small_models(steep, SINCE).cost[-1, 0] == pytest.approx(1 - 0.99 * 0.95)


def test_at_the_published_fall_of_prices_demand_grows_as_published() -> None:
    assert rehearse(bases(figures()), SETUP).volume[-1, 0] == pytest.approx(2.2**4)


def test_the_first_year_is_one_whatever_is_drawn() -> None:
    found = look_ahead("", figures(), SETUP, Draws(500, 0))

    first = found.years[0]
    assert (first.tasks.low, first.tasks.high, first.spend.low, first.spend.high) == (1.0, 1.0, 1.0, 1.0)


def test_spend_flips_at_one_without_limits_and_not_at_all_where_power_does_not_grow() -> None:
    free = look_ahead("", figures(), SETUP, Draws(200, 0))
    short = look_ahead(
        "", figures(power_growth_per_year=1.0, token_demand_growth_per_year=8.0, most_markup=1.0), SETUP, Draws(200, 0)
    )

    assert free.flip == pytest.approx(1.0, abs=1e-6)
    assert short.flip == pytest.approx(1.0, abs=1e-6)
    assert short.flip_within_limits != pytest.approx(1.0, abs=0.01)
    assert short.years[-1].limited_by_power > 0.9


def test_limits_are_never_exceeded_in_any_draw() -> None:
    drawn = {name: Draws(500, 1).of(name, figure) for name, figure in figures().items()}
    done = rehearse(drawn, SETUP)

    reserve = np.maximum(1.0, drawn["most_utilisation"] / drawn["utilisation"])
    without = rehearse(drawn, Setup(first=2026, last=2030, levers=LEVERS, limits=()))
    assert (done.volume <= without.volume).all()
    assert (done.volume[0] <= reserve).all()


def test_the_same_seed_gives_the_same_numbers() -> None:
    one, two = (look_ahead("", figures(), SETUP, Draws(300, 7)) for _ in range(2))
    assert one == two


def test_the_faster_users_are_served_the_more_new_hardware_gives() -> None:
    """2.75 times the bandwidth gives 2 times or less to the patient: prompts and weights take their time too."""
    found = gains(SERVED, CATALOG.chips["rubin"], CATALOG.chips["gb300"])

    assert 1.0 < found["low"] < 2.75
    assert found["low"] < found["mid"] < found["high"]
    assert list(GUESS_INTERACTIVITY) == list(found)


def test_nobody_is_served_faster_than_a_chip_can() -> None:
    assert tokens_per_s(SERVED, CATALOG.chips["rubin"], 10_000.0) is None
