"""What `jevons demand` asks perf and the twin: chips for one model, and one vendor's fleet beside a mixed one."""

from __future__ import annotations

from collections.abc import Mapping

from jevons.base.errors import ConfigError
from jevons.cli.scenarios import scenario_of, tell_of_compiling
from jevons.config.calibration import read_calibration
from jevons.config.catalog import Catalog
from jevons.config.prices import make_bill
from jevons.config.scenario import Scenario
from jevons.econ.bill import Bill
from jevons.econ.cost import Basis
from jevons.econ.curve import Served
from jevons.econ.draws import Amount, Draws, interval_of
from jevons.econ.switching import Fleet, Mixed
from jevons.facts.hardware import Figure
from jevons.facts.llm import Precision
from jevons.perf.calibration import Key, family_of, look_up
from jevons.twin.run import simulate

_MODEL = "deepseek-v3"  # for which chips are compared, and that dense models give way to
_WEIGHTS: tuple[Precision, ...] = ("fp4", "fp8")  # the better one for each chip


def compared(catalog: Catalog) -> Served:
    """The model for which chips are compared, with the shares of data sheets that all chips reach alike."""
    model = catalog.models[_MODEL]
    keys = {way: Key(engine="vllm", family=family_of(model), chip="", weights=way) for way in _WEIGHTS}
    return Served(model=model, shares={way: look_up(read_calibration(), key).shares for way, key in keys.items()})


def compare_fleets(names: tuple[str, str], catalog: Catalog, prices: Mapping[str, Figure], draws: Draws) -> Mixed:
    """One vendor's fleet and a mixed one, rehearsed and priced. Raises ConfigError: a chip has no price."""
    scenarios = [scenario_of(name, {}) for name in names]
    if scenarios[0].traffic != scenarios[1].traffic or scenarios[0].model != scenarios[1].model:
        raise ConfigError(f"--single and --mixed: {names[0]!r} and {names[1]!r} must have the same model and traffic")
    tell_of_compiling()
    reports = [simulate(scenario, catalog, read_calibration()) for scenario in scenarios]
    bills = [make_bill(report.usage, catalog, Basis.OWN, prices) for report in reports]
    figures = bills[0].figures() | bills[1].figures()

    def saved(of: Mapping[str, Amount]) -> Amount:
        return 1.0 - bills[1].usd_per_mtok(of) / bills[0].usd_per_mtok(of)

    single, mixed = (
        _fleet(scenario, bill, report.met_slo, catalog, draws)
        for scenario, bill, report in zip(scenarios, bills, reports, strict=True)
    )
    return Mixed(single=single, mixed=mixed, saved=interval_of(saved, figures, draws))


def _fleet(scenario: Scenario, bill: Bill, met_slo: float, catalog: Catalog, draws: Draws) -> Fleet:
    return Fleet(
        title=scenario.title,
        vendors=list(dict.fromkeys(catalog.chips[name].vendor for name in bill.usage.chips)),
        chips=bill.usage.chips,
        met_slo=met_slo,
        usd_per_mtok=interval_of(bill.usd_per_mtok, bill.figures(), draws),
    )
