"""A grid of scenarios, kept as it is done."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from msgspec.structs import replace
from tests.processes import until

from jevons.base.errors import ConfigError
from jevons.config.calibration import as_toml, read_calibration
from jevons.config.scenario import shipped
from jevons.twin.sweep import Cell, Known, SweepStopped, grid, kept, read_cells, sweep, write_parquet

VARIED: dict[str, list[str | int | float]] = {"router": ["kv", "round_robin"], "traffic.requests": [20, 40]}


def test_a_grid_has_every_combination_the_last_varying_fastest() -> None:
    assert [tuple(settings.values()) for settings in grid(VARIED)] == [
        ("kv", 20),
        ("kv", 40),
        ("round_robin", 20),
        ("round_robin", 40),
    ]


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    out, ran = tmp_path / "grid.jsonl", list[Cell]()
    sweep(shipped("mocker"), {"router": ["kv"], "traffic.requests": [20, 40]}, out, on=1)

    cells = sweep(shipped("mocker"), VARIED, out, on=2, on_cell=ran.append)

    assert {cell.settings["router"] for cell in ran} == {"round_robin"}
    assert [cell.settings for cell in cells] == grid(VARIED)
    assert [cell.report.requests for cell in cells if cell.report is not None] == [20, 40, 20, 40]
    assert len(read_cells(out)) == 4


def test_a_cell_that_cannot_be_run_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    varied: dict[str, list[str | int | float]] = {"router": ["kv", "nearest"], "traffic.requests": [20]}

    good, bad = sweep(shipped("mocker"), varied, tmp_path / "grid.jsonl", on=1)

    assert good.report is not None
    assert bad.report is None
    assert "'nearest'" in bad.error


def test_cells_of_another_scenario_or_catalog_are_not_taken(tmp_path: Path) -> None:
    out, own = tmp_path / "grid.jsonl", tmp_path / "own.toml"
    own.write_text(shipped("mocker").read_text())
    sweep(own, {"traffic.requests": [20]}, out, on=1)
    (tmp_path / "catalog.toml").write_text("# mine\n")

    with pytest.raises(ConfigError, match=r"grid.jsonl: is of another scenario than .*own.toml, or"):
        sweep(own, {"traffic.requests": [20]}, out, on=1, known=Known(catalog=tmp_path / "catalog.toml"))
    own.write_text(own.read_text().replace("rate = 1.0", "rate = 100.0"))
    with pytest.raises(ConfigError, match=r"name another file"):
        sweep(own, {"traffic.requests": [20]}, out, on=1)


def test_cells_are_rehearsed_by_a_calibration_of_ones_own_and_not_taken_for_others(tmp_path: Path) -> None:
    own = read_calibration()
    effects = {name: replace(each, bandwidth=each.bandwidth / 2) for name, each in own.effects.items()}
    mine, varied = tmp_path / "mine.toml", {"traffic.requests": [20]}
    mine.write_text(as_toml(replace(own, effects=effects)))

    (usual,) = sweep(shipped("same-vr"), varied, tmp_path / "usual.jsonl", on=1)
    (slower,) = sweep(shipped("same-vr"), varied, tmp_path / "mine.jsonl", on=1, known=Known(calibration=mine))

    assert usual.report is not None
    assert slower.report is not None
    assert slower.report.tpot_s.p50 > 1.2 * usual.report.tpot_s.p50
    with pytest.raises(
        ConfigError, match=r"usual.jsonl: is of another scenario than .*, or of what .*--calibration was"
    ):
        sweep(shipped("same-vr"), varied, tmp_path / "usual.jsonl", on=1, known=Known(calibration=mine))


def test_a_trace_is_beside_the_scenario_that_is_named_where_that_is_a_link(tmp_path: Path) -> None:
    own, link = tmp_path / "own.toml", tmp_path / "here" / "link.toml"
    own.write_text(shipped("mocker").read_text().replace('kind = "chat"', 'trace = "trace.jsonl"'))
    link.parent.mkdir()
    link.symlink_to(own)
    (link.parent / "trace.jsonl").write_text('{"timestamp": 0, "input_length": 8, "output_length": 2}\n')

    (cell,) = sweep(link, {"traffic.requests": [20]}, tmp_path / "grid.jsonl", on=1)

    assert (cell.error, cell.report is None) == ("", False)


def test_a_cell_that_could_not_be_run_is_tried_again(tmp_path: Path) -> None:
    out, trace, ran = tmp_path / "grid.jsonl", tmp_path / "trace.jsonl", list[Cell]()
    varied: dict[str, list[bool | int | float | str]] = {"traffic.trace": [str(trace)], "traffic.kind": [""]}
    for _ in range(2):
        assert "cannot be read" in sweep(shipped("mocker"), varied, out, on=1, on_cell=ran.append)[0].error
    assert (len(ran), len(read_cells(out))) == (2, 1)
    trace.write_text('{"timestamp": 0, "input_length": 8, "output_length": 2}\n')

    (cell,) = sweep(shipped("mocker"), varied, out, on=1)

    assert cell.report is not None
    assert kept(shipped("mocker"), varied, out, Known()) == [cell]


def test_a_file_that_is_not_of_a_sweep_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("milk, eggs\n")

    with pytest.raises(ConfigError, match="name another file"):
        sweep(shipped("mocker"), VARIED, out, on=1)

    assert out.read_text() == "milk, eggs\n"


@pytest.fixture
def endless(tmp_path: Path) -> dict[str, list[bool | int | float | str]]:
    """A grid of two, of which the second is rehearsed for ever: nobody writes its trace."""
    (tmp_path / "trace.jsonl").write_text('{"timestamp": 0, "input_length": 8, "output_length": 2}\n')
    os.mkfifo(tmp_path / "never.jsonl")
    return {"traffic.trace": [str(tmp_path / name) for name in ("trace.jsonl", "never.jsonl")], "traffic.kind": [""]}


def test_a_sweep_that_is_interrupted_ends_at_once_and_keeps_what_is_done(tmp_path: Path, endless: Any) -> None:
    def interrupt(_: Cell) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(shipped("mocker"), endless, tmp_path / "grid.jsonl", on=1, on_cell=interrupt)

    assert len(read_cells(tmp_path / "grid.jsonl")) == 1
    assert multiprocessing.active_children() == []


def test_a_sweep_whose_process_is_ended_says_so_and_keeps_what_is_done(tmp_path: Path, endless: Any) -> None:
    def kill(_: Cell) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(SweepStopped, match="run it again"):
        sweep(shipped("mocker"), endless, tmp_path / "grid.jsonl", on=1, on_cell=kill)

    assert len(read_cells(tmp_path / "grid.jsonl")) == 1


@pytest.mark.parametrize("end", [0, 1, 200, -1])
def test_a_cell_that_was_not_written_whole_is_run_again(tmp_path: Path, end: int) -> None:
    out = tmp_path / "grid.jsonl"
    sweep(shipped("mocker"), {"traffic.requests": [20, 40]}, out, on=1)
    first, second = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(first + second[:end])

    cells = sweep(shipped("mocker"), {"traffic.requests": [20, 40, 60]}, out, on=1)

    assert [cell.report.requests for cell in cells if cell.report is not None] == [20, 40, 60]
    assert [cell.settings["traffic.requests"] for cell in read_cells(out)] == [20, 40, 60]


def test_a_file_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"grid.jsonl: cannot be written: No such file"):
        sweep(shipped("mocker"), VARIED, tmp_path / "nowhere" / "grid.jsonl", on=1)


def test_cells_are_rows_of_a_parquet_file(tmp_path: Path) -> None:
    varied: dict[str, list[str | int | float]] = {"router": ["kv", "nearest"], "seed": [1, 2]}
    cells = sweep(shipped("mocker"), {**varied, "traffic.requests": [20]}, tmp_path / "grid.jsonl", on=1)

    write_parquet(cells, tmp_path / "grid.parquet")

    rows = pyarrow.parquet.read_table(tmp_path / "grid.parquet").to_pylist()
    assert [(row["router"], row["seed"], row["requests"]) for row in rows] == [
        ("kv", 1, 20),
        ("kv", 2, 20),
        ("nearest", 1, None),
        ("nearest", 2, None),
    ]
    report = cells[0].report
    assert report is not None
    assert (rows[0]["ttft_s.p50"], rows[0]["reuse_fraction.hbm"]) == (report.ttft_s.p50, report.reuse_fraction["hbm"])
    assert (rows[0]["trust"], rows[0]["error"]) == (["given"], None)
    assert "'nearest'" in rows[2]["error"]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ((8, "fp4"), ["8", "fp4"]),
        ((True, 1), ["True", "1"]),
        ((1, 10**20), ["1", "100000000000000000000"]),
        ((1, 2.5), [1.0, 2.5]),
    ],
)
def test_a_setting_that_is_a_number_here_and_a_word_there_is_a_word(
    tmp_path: Path, values: tuple[Any, ...], read: list[Any]
) -> None:
    write_parquet([Cell({"weights": value}, error="a") for value in values], tmp_path / "grid.parquet")

    rows = pyarrow.parquet.read_table(tmp_path / "grid.parquet").to_pylist()
    assert [row["weights"] for row in rows] == read


def test_groups_without_tiers_are_rows_too_beside_those_with_one(tmp_path: Path) -> None:
    report = sweep(shipped("mocker"), {"traffic.requests": [20]}, tmp_path / "grid.jsonl", on=1)[0].report
    assert report is not None
    (group,) = report.groups
    assert group.tier_bytes == {}
    tiered = replace(report, groups=[replace(group, tier_bytes={"dram": 2e12})])

    write_parquet([Cell({}, report=report)], tmp_path / "without.parquet")
    write_parquet([Cell({}, report=report), Cell({}, report=tiered)], tmp_path / "both.parquet")

    (alone,) = pyarrow.parquet.read_table(tmp_path / "without.parquet").to_pylist()
    first, second = pyarrow.parquet.read_table(tmp_path / "both.parquet").to_pylist()
    assert alone["groups"][0]["busy_s"] == group.busy_s
    assert (first["groups"][0]["tier_bytes"], second["groups"][0]["tier_bytes"]) == (None, {"dram": 2e12})


@pytest.fixture
def ray_address(tmp_path: Path) -> Iterator[str]:
    """A cluster of one node, of processes of ours."""
    pytest.importorskip("ray", reason="Ray is not installed: extra ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=1"]
    more = ["--include-dashboard=false", "--disable-usage-stats", f"--port={address.partition(':')[2]}"]
    head = subprocess.Popen([*start, *more, "--node-ip-address=127.0.0.1"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: can_connect(address), 60.0)
        yield address
    finally:
        head.terminate()
        head.wait(30.0)


def can_connect(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1.0).close()
    except OSError:
        return False
    return True


def test_a_ray_cluster_runs_the_cells_it_is_given(ray_address: str, tmp_path: Path) -> None:
    cells = sweep(shipped("mocker"), VARIED, tmp_path / "grid.jsonl", on=ray_address)

    assert [cell.report.requests for cell in cells if cell.report is not None] == [20, 40, 20, 40]
    assert len(read_cells(tmp_path / "grid.jsonl")) == 4


def test_without_ray_or_its_cluster_one_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"jevons\[ray\]|no Ray cluster"):
        sweep(shipped("mocker"), VARIED, tmp_path / "grid.jsonl", on="127.0.0.1:1")
