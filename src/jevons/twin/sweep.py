"""A grid of scenarios, in parallel processes; what was done is kept, so that a sweep that was stopped goes on.

Each cell is one line of a file: its settings and its report. A cell whose settings are there is not run again.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path

import msgspec

from jevons.base.errors import ConfigError, JevonsError
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import read_scenario
from jevons.twin.run import Report, simulate

Settings = dict[str, str | int | float]


class Cell(msgspec.Struct, frozen=True):
    """One point of the grid. Exactly one of `report` and `error` says something."""

    settings: Settings
    report: Report | None = None
    error: str = ""


def grid(varied: Mapping[str, Sequence[str | int | float]]) -> list[Settings]:
    """All combinations, the last setting varying fastest."""
    return [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]


def read_cells(path: Path) -> list[Cell]:
    """What a sweep has done so far; nothing if there is no such file.

    Raises:
        ConfigError: it is not of a sweep.
    """
    if not path.exists():
        return []
    try:
        return msgspec.json.Decoder(Cell).decode_lines(path.read_bytes())
    except msgspec.MsgspecError as error:
        raise ConfigError(f"sweep {path}: not of a sweep: {error}; name another file") from error


def run_cell(scenario: Path, settings: Settings, catalog: Path | None) -> Cell:
    """One rehearsal. What is wrong with its settings is told in the cell: the others go on."""
    try:
        wanted = read_scenario(scenario, dict(settings))
        return Cell(settings, simulate(wanted, read_catalog(catalog), read_calibration()))
    except JevonsError as error:
        return Cell(settings, error=str(error))


def sweep(
    scenario: Path,
    varied: Mapping[str, Sequence[str | int | float]],
    out: Path,
    *,
    processes: int,
    catalog: Path | None = None,
    on_cell: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Run what of a grid is not in `out` yet, and add it there as it is done.

    Returns:
        All cells of the grid, in its order.
    """
    wanted = grid(varied)
    done = {_key(cell.settings): cell for cell in read_cells(out)}
    left = [settings for settings in wanted if _key(settings) not in done]
    with out.open("ab") as file:
        for cell in _run(scenario, left, processes, catalog):
            file.write(msgspec.json.encode(cell) + b"\n")
            file.flush()
            done[_key(cell.settings)] = cell
            on_cell(cell)
    return [done[_key(settings)] for settings in wanted]


def _run(scenario: Path, left: Sequence[Settings], processes: int, catalog: Path | None) -> Iterator[Cell]:
    if not left:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(left)), mp_context=context) as pool:
        for future in as_completed([pool.submit(run_cell, scenario, settings, catalog) for settings in left]):
            yield future.result()


def _key(settings: Settings) -> str:
    return msgspec.json.encode(settings, order="sorted").decode()
