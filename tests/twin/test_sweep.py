"""A grid of scenarios, kept as it is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from jevons.base.errors import ConfigError
from jevons.config.scenario import shipped
from jevons.twin.sweep import Cell, grid, read_cells, sweep

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
    sweep(shipped("mocker"), {"router": ["kv"], "traffic.requests": [20, 40]}, out, processes=1)

    cells = sweep(shipped("mocker"), VARIED, out, processes=2, on_cell=ran.append)

    assert {cell.settings["router"] for cell in ran} == {"round_robin"}
    assert [cell.settings for cell in cells] == grid(VARIED)
    assert [cell.report.requests for cell in cells if cell.report is not None] == [20, 40, 20, 40]
    assert len(read_cells(out)) == 4


def test_a_cell_that_cannot_be_run_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    varied: dict[str, list[str | int | float]] = {"router": ["kv", "nearest"], "traffic.requests": [20]}

    good, bad = sweep(shipped("mocker"), varied, tmp_path / "grid.jsonl", processes=1)

    assert good.report is not None
    assert bad.report is None
    assert "'nearest'" in bad.error


def test_a_file_that_is_not_of_a_sweep_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("milk, eggs\n")

    with pytest.raises(ConfigError, match="name another file"):
        sweep(shipped("mocker"), VARIED, out, processes=1)

    assert out.read_text() == "milk, eggs\n"
