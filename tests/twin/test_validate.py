"""Predictions beside measurements: no point is lost, what cannot be predicted says why, names are read as meant."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest

from jevons.base.errors import ConfigError
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.points import Point, read_points
from jevons.perf.calibration import NOTHING, Trust
from jevons.perf.closed import Loop, closed_loop
from jevons.perf.roofline import Engine, Group
from jevons.perf.room import room_tokens
from jevons.twin.points import is_check
from jevons.twin.validate import Row, errors, groups, validate

CATALOG = read_catalog()
# Of what was never fitted: MAPE and median; docs/measurements.md's figures and a fifth more.
HELD = {
    "check: TPOT dense": (1.22, 0.15),  # one row is off by ten times: 416 users on two chips
    "check: TPOT MoE": (0.41, 0.24),
    "check: one step": (0.24, 0.18),
    "check: throughput": (0.32, 0.21),
    "check: TTFT": (4.6, 0.5),
}
POINT = Point(
    id="p",
    system="h200_sxm",
    model="meta-llama/Llama-3.1-70B",
    precision="fp8",
    parallelism="TP4 aDP1.0 moeTP4.0 moeEP1.0",
    input_len="1000",
    output_len="2000",
    users="16",
    metric="TPOT",
    value=10.0,
    unit="ms",
)


def one(**changes: object) -> Row:
    (row,) = validate([msgspec.structs.replace(POINT, **changes)], CATALOG, NOTHING)
    return row


def test_a_point_is_what_users_of_such_an_engine_see() -> None:
    engine = Engine(
        model=CATALOG.models["llama-3.1-70b"], chip=CATALOG.chips["h200"], group=Group(tensor=4), weights="fp8"
    )
    room = room_tokens(engine, 3_000, 0.9)
    seen = closed_loop(engine, Loop(users=16, input_tokens=1_000, output_tokens=2_000, spread=0.2, room_tokens=room))

    assert one().predicted == pytest.approx(seen.tpot_s * 1e3)
    assert one(metric="TTFT").predicted == pytest.approx((seen.ttft_s + engine.shares.request_s) * 1e3)
    rate = one(metric="output throughput per GPU", unit="tok/s/GPU").predicted
    assert rate == pytest.approx(seen.output_rate / 4)


def test_layouts_are_read_as_their_publishers_mean_them() -> None:
    spread = one(model="deepseek-ai/DeepSeek-V3", parallelism="DEP8").predicted
    same = one(model="deepseek-ai/DeepSeek-V3", parallelism="TP1 aDP8.0 moeTP1.0 moeEP8.0").predicted

    assert spread is not None
    assert spread == same


def test_more_chips_than_a_node_has_are_its_chips_counted_twice() -> None:
    deepseek = {"model": "deepseek-ai/DeepSeek-V3"}
    twice = one(**deepseek, parallelism="TP64 aDP1.0 moeTP8.0 moeEP8.0").predicted
    spread = one(**deepseek, parallelism="TP1 aDP64.0 moeTP8.0 moeEP8.0").predicted

    assert twice == one(**deepseek, parallelism="TP8 aDP1.0 moeTP1.0 moeEP8.0").predicted
    assert spread == one(**deepseek, parallelism="DEP8").predicted


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"system": "abacus"}, "system 'abacus' is not in the catalog"),
        ({"model": "eliza"}, "model 'eliza' is not in the catalog"),
        ({"metric": "joy"}, "metric 'joy' is not predicted"),
        ({"metric": "cost"}, "speed '16' is no number"),
        ({"precision": "INT3"}, "precision 'INT3' is not one"),
        ({"parallelism": "best on Pareto"}, "layout 'best on Pareto' is not predicted"),
        ({"users": "production"}, "concurrency 'production' is no number"),
        ({"model": "DeepSeek-R1", "parallelism": "TP1"}, "weights of 671 GB do not fit 141 GB"),
        ({"users": "0"}, "concurrency '0' is not from 1 to 1,000,000"),
        ({"users": "9" * 25}, f"concurrency '{'9' * 25}' is not from 1 to 1,000,000"),
        ({"input_len": "0"}, "input '0' is not from 1 to 1,000,000"),
        ({"output_len": "10000000"}, "output '10000000' is not from 1 to 1,000,000"),
        ({"parallelism": "TP0"}, "layout 'TP0' has a count of 0, or one of more than six digits"),
        ({"metric": "cost", "users": "0 tok/s/user"}, "speed '0' is not from 1 to 1,000,000"),
        ({"metric": "total throughput per GPU", "users": "50 tok/s/user", "output_len": "0"}, "output '0' is not from"),
        ({"metric": "output throughput per node", "input_len": "KV 0"}, "input '0' is not from 1 to 1,000,000"),
    ],
)
def test_what_cannot_be_predicted_says_why(changes: dict[str, object], reason: str) -> None:
    row = one(**changes)

    assert row.predicted is None
    assert row.reason.startswith(reason)


def test_errors_are_shares_of_what_was_measured_and_none_where_nothing_was_predicted() -> None:
    rows = [
        Row("a", "TPOT", 10.0, 12.0, "ms"),
        Row("b", "TPOT", 10.0, 6.0, "ms"),
        Row("c", "cost", 1.0, None, "$", "why"),
    ]
    found = errors(rows)

    assert (found.points, found.predicted) == (3, 2)
    assert [found.mape, found.median] == pytest.approx([0.3, 0.3])
    assert errors(rows[2:]).mape is None


def test_of_the_collected_points_none_is_lost_and_those_never_fitted_are_as_near_as_published(shared: Path) -> None:
    path = shared / "data/ground_truth.csv"
    points = read_points(path)
    rows = validate(points, CATALOG, read_calibration())

    with path.open(newline="") as file:
        assert [row.id for row in rows] == [row["id"] for row in csv.DictReader(file)]  # two end with a space
    assert all((row.predicted is None) == bool(row.reason) for row in rows)
    assert all(row.predicted is None or row.predicted > 0 for row in rows)
    found = {name: errors(group) for name, group in groups(points, rows).items()}
    assert found["all"].predicted > 0.95 * found["all"].points
    for name, (mape, middle) in HELD.items():
        assert (found[name].mape or 0.0) < mape, name
        assert (found[name].median or 0.0) < middle, name


def test_fitted_and_held_out_points_are_told_apart() -> None:
    points = [msgspec.structs.replace(POINT, id=f"{users}", users=f"{users}") for users in range(1, 41)]
    rows = validate(points, CATALOG, read_calibration())
    parts = groups(points, rows)

    assert [row.set == "check" for row in rows] == [is_check(point) for point in points]
    assert {row.id for row in parts["check"]} | {row.id for row in parts["fit"]} == {point.id for point in points}
    assert parts["check: TPOT dense"] == parts["check"] != []
    assert {row.trust for row in rows} <= set(Trust)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,system\n", "lacks the column 'model'"),
        ("{head}\na,h100,m,fp8,TP1,1,1,1,TPOT,fast,ms\n", "line 2: value: must be a number, got 'fast'"),
        ("{head}\na,h100,m,fp8,TP1,1,1,1,TPOT,0,ms\n", "line 2: value: must be above 0 and finite, got '0'"),
        ("{head}\na,h100,m,fp8,TP1,1,1,1,TPOT,nan,ms\n", "line 2: value: must be above 0 and finite, got 'nan'"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "points.csv"
    head = "id,system,model,precision,parallelism,input_len,output_len,batch/concurrency,metric,value,unit"
    path.write_text(text.format(head=head))

    with pytest.raises(ConfigError) as caught:
        read_points(path)

    assert says in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_points(tmp_path / "none.csv")


def test_a_file_that_begins_with_a_byte_order_mark_is_read_as_without(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    head = "id,system,model,precision,parallelism,input_len,output_len,batch/concurrency,metric,value,unit"
    path.write_text(f"{head}\na,h100,m,fp8,TP1,1,1,1,TPOT,2.5,ms\n", encoding="utf-8-sig")

    (point,) = read_points(path)

    assert (point.id, point.value) == ("a", 2.5)
