"""`jevons plan`: what is said of a plan, and of one that cannot be."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("highspy", reason="plans need HiGHS: pip install 'jevons[plan]'")

from jevons.base.errors import ConfigError
from jevons.cli import jevons
from jevons.cli.pictures.plan import wait_pictures
from jevons.cli.plans import read_plan
from jevons.cli.wait import answered
from jevons.config.calibration import as_toml, read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.prices import read_range
from jevons.config.wants import read_wants, shipped_wants
from jevons.econ.purchase import Excess
from jevons.twin.planned import Plan

USUAL = ["plan", "--model", "llama-3.1-8b", "--traffic", "rag", "--rate", "30", "--requests", "500", "--finalists", "2"]


def run(*more: str) -> Result:
    return CliRunner().invoke(jevons, [*USUAL, *more], catch_exceptions=False)


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of H100s and H200s, as --json writes it."""
    path = tmp_path_factory.mktemp("plans") / "former.json"
    path.write_text(run("--chips", "h100,h200", "--json").stdout)
    return path


def test_the_fleet_that_is_written_is_rehearsed_as_planned(former: Path, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    told = run("--chips", "h100,h200", "--out", str(fleet)).stdout
    plan = msgspec.json.decode(former.read_bytes(), type=Plan)
    assert plan.best is not None
    assert plan.best.name in told.replace("\n", " ")
    report = CliRunner().invoke(jevons, ["simulate", str(fleet), "--json"], catch_exceptions=False).stdout
    assert msgspec.json.decode(report)["met_slo"] == pytest.approx(plan.best.met)


def test_weights_that_would_do_are_named_and_what_the_others_would_cost() -> None:
    told = run("--chips", "h100", "--weights", "bf16, fp8", "--tpot", "0.006").stdout

    assert "llama-3.1-8b in fp8, " in told
    assert " in bf16: $" in told


def test_a_plan_rehearses_by_a_calibration_of_ones_own(former: Path, tmp_path: Path) -> None:
    own = read_calibration()
    effects = {
        name: msgspec.structs.replace(each, bandwidth=each.bandwidth / 1.2, compute=each.compute / 1.2)
        for name, each in own.effects.items()
    }
    mine = tmp_path / "mine.toml"
    mine.write_text(as_toml(msgspec.structs.replace(own, effects=effects)))

    slow = msgspec.json.decode(run("--chips", "h100,h200", "--json", "--calibration", str(mine)).stdout, type=Plan)

    usual = msgspec.json.decode(former.read_bytes(), type=Plan)
    assert usual.best is not None
    assert slow.best is not None
    assert slow.best.usd_per_hour > usual.best.usd_per_hour
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read"):
        run("--calibration", str(tmp_path / "none.toml"))


@pytest.mark.parametrize("at", ["2026-13", "2026-00", "2026-02-32"])
def test_a_month_that_is_none_is_refused(at: str) -> None:
    with pytest.raises(ConfigError, match=f"at: must be .*, got '{at}'"):
        run("--at", at)


def test_a_plan_without_a_chip_says_why_it_is_another_one(former: Path) -> None:
    plan = msgspec.json.decode(former.read_bytes(), type=Plan)
    assert plan.best is not None
    gone = next(iter(plan.best.chips))
    told = run("--chips", "h100,h200", "--without", gone, "--against", str(former)).stdout
    assert f"because {gone} is not there now: excluded" in told
    assert "× the dollars a token" in told


def test_a_limit_that_binds_is_named_with_what_is_needed_and_what_could_be_promised(former: Path) -> None:
    told = run("--chips", "h100,h200", "--mw", "0.0028", "--half-power", "--tpot", "0.01", "--without", "h200").stdout
    assert "Nothing keeps the promise" in told
    assert "power_w: needs" in told
    assert "has 1.4 kW" in told


def test_a_limit_on_what_is_not_known_of_a_chip_is_told_as_that(tmp_path: Path) -> None:
    """Nobody published what a TPU v6e draws with all around it."""
    asked = ["--chips", "tpu-v6e", "--basis", "rent", "--mw", "1"]
    told = run(*asked).stdout
    assert "power_w: has 1 MW, and what the fleet takes is not known" in told
    path = tmp_path / "plan.json"
    path.write_text(run(*asked, "--json").stdout)
    assert read_plan(path).short_of == [Excess("power_w", 1e6, None)]


def test_a_page_without_a_fleet_says_why(tmp_path: Path) -> None:
    html = tmp_path / "plan.html"
    told = run("--chips", "h100", "--mw", "0.0001", "--html", str(html)).stdout
    page = " ".join(html.read_text().split())

    assert "Nothing keeps the promise (90% of requests within 2 s and 50.0 ms a token) within these limits." in page
    binds = next(line.strip() for line in told.splitlines() if "power_w: needs" in line)
    assert binds in page


@pytest.mark.parametrize(
    ("option", "field"), [("--mw", "limits.power_w"), ("--budget-usd-per-hour", "limits.usd_per_hour")]
)
def test_a_limit_of_nothing_is_an_error_and_not_no_limit(option: str, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: must be float > 0.0, got 0.0"):
        run(option, "0")


def test_a_seed_of_zero_counts_where_the_file_has_another(tmp_path: Path) -> None:
    file = tmp_path / "wants.toml"
    file.write_text('model = "llama-3.1-8b"\nchips = ["h100"]\nroles = ["both"]\nseed = 1\n[traffic]\nkind = "rag"\n')
    args = ["plan", str(file), "--requests", "300", "--rate", "10", "--finalists", "1", "--json"]
    loads = [
        msgspec.json.decode(CliRunner().invoke(jevons, [*args, *seed]).stdout)["load"] for seed in ([], ["--seed", "0"])
    ]
    assert loads[0] != loads[1]


def test_half_of_no_limit_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--half-power: there is no limit on power"):
        run("--half-power")


def test_a_file_that_is_no_plan_is_not_compared_with(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is not a plan as `jevons plan --json` writes it"):
        run("--against", str(path))


def test_two_plans_tell_whether_to_wait(former: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.json"
    later.write_text(run("--chips", "b200", "--json").stdout)
    html = tmp_path / "wait.html"
    args = ["wait", str(former), str(later), "--delay", "3:6:12", "--months", "24", "--html", str(html)]
    told = CliRunner().invoke(jevons, args, catch_exceptions=False).stdout
    assert "24 months; the later chips come after 6.0 (3.0 to 12.0)" in told
    assert "buy now" in told
    assert "rent, then buy" in told
    assert "Fleets of now and of later" in html.read_text()


def test_a_plan_of_rents_tells_nothing_of_buying(former: Path, tmp_path: Path) -> None:
    rented = tmp_path / "rented.json"
    rented.write_text(run("--chips", "h100", "--basis", "rent", "--json").stdout)
    for plans, which in (((rented, former), "now"), ((former, rented), "later")):
        with pytest.raises(
            ConfigError, match=f"wait: the plan for {which} must be of owned hours, .* got basis 'rent'"
        ):
            CliRunner().invoke(jevons, ["wait", *map(str, plans), "--delay", "6"], catch_exceptions=False)


def test_a_plan_that_was_priced_otherwise_is_told(former: Path, tmp_path: Path) -> None:
    catalog, plan = tmp_path / "mine.toml", msgspec.json.decode(former.read_bytes(), type=Plan)
    catalog.write_text('[economics]\nusd_per_kwh = { value = 0.16, source = "x", confidence = "assumed" }\n')
    args = ["wait", str(former), str(former), "--delay", "6"]
    assert CliRunner().invoke(jevons, args, catch_exceptions=False).stderr == ""
    told = CliRunner().invoke(jevons, [*args, "--catalog", str(catalog)], catch_exceptions=False).stderr
    assert plan.best is not None
    assert f"the plan for now was made at ${plan.best.usd_per_hour:,.2f} an hour, and with these prices it is $" in told


def test_plans_for_different_traffic_cannot_be_compared(former: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(run("--chips", "h100", "--rate", "10", "--json").stdout)
    with pytest.raises(ConfigError, match="both plans must serve the same model and traffic"):
        CliRunner().invoke(jevons, ["wait", str(former), str(other), "--delay", "6"], catch_exceptions=False)


def test_shipped_plans_can_be_read() -> None:
    folder = shipped_wants("today").parent
    for file in sorted(folder.glob("*.toml")):
        assert read_wants(file).model in read_catalog().models


def test_a_plan_that_is_no_more_says_which_limit_took_it(former: Path) -> None:
    told = run("--chips", "h100,h200", "--mw", "0.001", "--against", str(former)).stdout
    assert "now: nothing" in told
    assert "because power_w is limited to 1 kW: the former fleet needs" in told


def test_a_price_that_is_given_counts_and_goes_along_with_the_plan(tmp_path: Path) -> None:
    quick = ["--model", "gpt-oss-20b", "--chips", "h100,lpu3", "--tpot", "0.01"]  # in bits that an LPU computes
    quick += ["--usd-per-hour", "lpu3=0.005:0.01:0.02"]
    told = " ".join(run(*quick).stdout.split())
    assert "lpu3 decode" in told
    assert "trust: lpu3: guessed shares of its data sheet; nothing of this kind was ever measured" in told
    path = tmp_path / "plan.json"
    path.write_text(run(*quick, "--json").stdout)
    args = ["wait", str(path), str(path), "--delay", "6"]
    assert "buy now" in CliRunner().invoke(jevons, args, catch_exceptions=False).stdout
    other = tmp_path / "other.json"
    other.write_bytes(path.read_bytes().replace(b'"high":0.02', b'"high":0.03'))
    args[2] = str(other)
    with pytest.raises(ConfigError, match="wait: both plans must have been given the same price of lpu3"):
        CliRunner().invoke(jevons, args, catch_exceptions=False)


def test_a_price_of_a_chip_that_is_unknown_is_an_error() -> None:
    with pytest.raises(ConfigError, match="plan: 'lpu9' is not in the catalog"):
        run("--usd-per-hour", "lpu9=0.4")


def test_a_fleet_that_cannot_be_written_is_an_error_before_anything_is_rehearsed(tmp_path: Path) -> None:
    asked = [*USUAL, "--chips", "h100", "--out"]
    for out, why in ((tmp_path / "nowhere" / "fleet.toml", "there is no folder"), (tmp_path, "is a directory")):
        ended = CliRunner().invoke(jevons, [*asked, str(out)])
        assert "rehearsed" not in ended.stderr
        assert why in f"{ended.exception} {ended.stderr}"


def test_a_fleet_that_was_not_found_is_not_written_and_that_is_said(tmp_path: Path) -> None:
    out = tmp_path / "fleet.toml"
    out.write_text("# of before\n")
    ended = CliRunner().invoke(jevons, [*USUAL, "--chips", "h100", "--mw", "0.0001", "--out", str(out)])
    assert f"--out {out}: not written: nothing keeps the promise" in ended.stderr
    assert out.read_text() == "# of before\n"


def test_a_plan_for_answers_of_one_token_can_be_drawn(tmp_path: Path) -> None:
    """A token after the first there is none, so nobody has a speed."""
    trace, html = tmp_path / "trace.jsonl", tmp_path / "plan.html"
    rows = ({"timestamp": 100 * i, "input_length": 600, "output_length": 1, "hash_ids": [2 * i]} for i in range(200))
    trace.write_bytes(b"\n".join(msgspec.json.encode(row) for row in rows))
    args = ["plan", "--model", "llama-3.1-8b", "--trace", str(trace), "--chips", "h100", "--finalists", "1"]
    told = CliRunner().invoke(jevons, [*args, "--html", str(html)], catch_exceptions=False).stdout

    assert "1 × 1 h100" in told
    assert "What fleets that keep the promise cost" in html.read_text()


def test_fleets_of_two_plans_with_one_title_are_both_drawn(former: Path) -> None:
    now = msgspec.structs.replace(msgspec.json.decode(former.read_bytes(), type=Plan), title="Chat")
    later = msgspec.json.decode(run("--chips", "b200", "--json").stdout, type=Plan)
    later = msgspec.structs.replace(later, title="Chat")
    found = answered((now, later), 24.0, read_range("--delay", "6"), read_catalog())

    drawn = str(wait_pictures(found, now, later)[1].data)
    for plan in (now, later):
        assert plan.best is not None
        assert f"${plan.best.usd_per_hour:,.2f}/h" in drawn
