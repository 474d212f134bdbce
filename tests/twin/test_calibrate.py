"""Calibration: factors that made measurements are found again, as far as the measurements tell."""

from __future__ import annotations

import msgspec
import pytest

from jevons.base.errors import ConfigError
from jevons.base.stats import percentile
from jevons.config.catalog import read_catalog
from jevons.config.points import Point
from jevons.perf.calibration import FIELDS, NOTHING, Effect, Key, Trust, look_up
from jevons.twin.calibrate import calibrate, fit, samples_of
from jevons.twin.points import case_of, is_check
from jevons.twin.predict import Predictor
from jevons.twin.validate import validate

CATALOG = read_catalog()
TRUTH = {
    "all": Effect(rows=0, bandwidth=0.8, layer_s=2.0),
    "engine=vllm": Effect(rows=0, kv=1.3),
    "chip=h200": Effect(rows=0, bandwidth=1.2),
}


def made(system: str, users: int, tensor: int) -> Point:
    """A point whose measurement is what shares with `TRUTH` predict."""
    point = Point(
        id=f"{system} {users} {tensor}",
        system=system,
        model="meta-llama/Llama-3.1-70B",
        precision="fp8",
        parallelism=f"TP{tensor}",
        input_len="512",
        output_len="64",
        users=str(users),
        metric="TPOT",
        value=1.0,
        unit="ms",
        notes="; vllm 0.19",
    )
    case = case_of(point, CATALOG)
    shares = look_up(msgspec.structs.replace(NOTHING, effects=TRUTH), case.key).shares
    return msgspec.structs.replace(point, value=Predictor(CATALOG).value(case, shares))


POINTS = [made(system, users, tensor) for system in ("h100", "h200") for users in (1, 6, 24) for tensor in (2, 4, 8)]


def test_measurements_of_known_shares_are_predicted_after_a_fit() -> None:
    samples = samples_of(POINTS, CATALOG)
    effects = fit(samples, CATALOG, steps=3)
    found = msgspec.structs.replace(NOTHING, effects=effects)

    def off(calibration: object) -> list[float]:
        shares = [look_up(calibration, sample.case.key).shares for sample in samples]  # type: ignore[arg-type]
        values = [Predictor(CATALOG).value(s.case, each) for s, each in zip(samples, shares, strict=True)]
        return [abs(value / sample.measured - 1) for value, sample in zip(values, samples, strict=True)]

    assert max(off(found)) < 0.06
    assert max(off(NOTHING)) > 0.15
    assert effects["all"].layer_s > 1.2
    assert set(effects) == {
        "all",
        "weights=fp8",
        "chip=h100",
        "chip=h200",
        "engine=vllm",
        "engine=vllm family=llama",
    }


def test_rows_that_are_one_measurement_under_two_names_count_once() -> None:
    twice = [POINTS[0], msgspec.structs.replace(POINTS[0], id="again"), POINTS[1]]

    assert len(samples_of(twice, CATALOG)) == 2


def test_fits_side_by_side_find_the_same() -> None:
    alone, beside = (calibrate(POINTS[:1], CATALOG, ("", ""), lambda line: None, count) for count in (1, 2))

    assert alone == beside


def test_what_measurements_do_not_tell_stays_as_guessed() -> None:
    (effects,) = {fit(samples_of(POINTS[:4], CATALOG), CATALOG, steps=1)["all"]}

    assert effects.expert_bandwidth == effects.imbalance == effects.request_s == 1.0
    assert all(0.2 < getattr(effects, field) < 5.0 for field in FIELDS)


def test_errors_to_expect_come_from_what_was_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jevons.twin.calibrate._ENOUGH", 5)
    told: list[str] = []
    found = calibrate(POINTS, CATALOG, ("2026-11-25", "a test"), told.append)

    held = sum(is_check(point) for point in POINTS)
    assert found.errors["measured tpot"].rows == held > 0
    assert found.errors["transferred tpot"].rows == len(POINTS)
    assert found.errors["measured tpot"].p90 <= found.errors["transferred tpot"].p90
    assert found.errors["transferred tpot"].p90 <= found.errors["projected tpot"].p90
    assert [line.split(":")[0] for line in told[1:]] == ["without h100", "without h200"]
    key = Key(engine="vllm", family="llama", chip="h100", weights="fp8")
    assert look_up(found, key).trust is Trust.MEASURED


def test_where_one_chip_is_all_that_was_measured_its_errors_are_told_without_any_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jevons.twin.calibrate._ENOUGH", 2)
    alone = [point for point in POINTS if point.system == "h200"]

    found = calibrate(alone, CATALOG, ("", ""), lambda line: None)

    guessed = [row.error for row in validate(alone, CATALOG, NOTHING)]
    assert set(found.errors) == {"measured tpot", "transferred tpot", "projected tpot"}
    assert found.errors["transferred tpot"].p90 == pytest.approx(percentile(guessed, 0.9), abs=1e-3)


def test_without_a_point_to_fit_there_is_no_calibration() -> None:
    unknown = msgspec.structs.replace(POINTS[0], metric="joy")

    with pytest.raises(ConfigError, match="of 1, 0 are held out, others cannot be predicted"):
        calibrate([unknown], CATALOG, ("", ""), lambda line: None)
