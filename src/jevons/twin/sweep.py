"""A grid of scenarios, in parallel processes or on a Ray cluster; what was done is kept, so that a sweep that was
stopped goes on.

Each cell is one line of a file: its settings and its report. A cell that is there with a report is not run again; of
another scenario, catalog or calibration it is not taken.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from jevons.base.errors import ConfigError, JevonsError
from jevons.config.calibration import read_calibration
from jevons.config.catalog import read_catalog
from jevons.config.scenario import read_scenario
from jevons.twin.pool import side_by_side
from jevons.twin.report import Report
from jevons.twin.run import simulate

Value = bool | int | float | str
Settings = dict[str, Value]
_BEGINS = b'{"settings":'  # a cell
_WIDE = 1 << 63
_REACH_S = 5.0  # for a cluster to accept a connection


class SweepStopped(JevonsError):
    """A sweep cannot go on by itself; what is done is kept."""


class Cell(msgspec.Struct, frozen=True):
    """One point of the grid. Exactly one of `report` and `error` says something."""

    settings: Settings
    report: Report | None = None
    error: str = ""
    of: str = ""  # which scenario file, catalog and calibration, see `_digest`


class Known(NamedTuple):
    """Files of what cells are rehearsed by, besides the scenario; None: what ships."""

    catalog: Path | None = None
    calibration: Path | None = None


SHIPPED = Known()


def grid(varied: Mapping[str, Sequence[Value]]) -> list[Settings]:
    """All combinations, the last setting varying fastest."""
    return [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]


def read_cells(path: Path) -> list[Cell]:
    """What a sweep has done so far; nothing if there is no such file. Half a last line, as a full disk leaves, is not.

    Raises:
        ConfigError: it is not of a sweep, or cannot be read.
    """
    try:
        return msgspec.json.Decoder(Cell).decode_lines(_whole(path.read_bytes()))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"sweep {path}: cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"sweep {path}: not of a sweep: {error}; name another file") from error


def _whole(text: bytes) -> bytes:
    """Without the last line, where that is the beginning of a cell."""
    lines, newline, last = text.rpartition(b"\n")
    if not last or not (last.startswith(_BEGINS) or _BEGINS.startswith(last)):
        return text
    try:
        msgspec.json.decode(last, type=Cell)
    except msgspec.MsgspecError:
        return lines + newline
    return text + b"\n"


def kept(scenario: Path, varied: Mapping[str, Sequence[Value]], out: Path, known: Known) -> list[Cell]:
    """What a sweep need not run again: cells of its grid that have a report.

    Raises:
        ConfigError: see `read_cells`; they are of another scenario, or one cannot be read.
    """
    cells, of = read_cells(out), _digest(scenario, known)
    if any(cell.of not in ("", of) for cell in cells):
        raise ConfigError(
            f"sweep {out}: is of another scenario than {scenario}, or of what that, --catalog or --calibration was; "
            f"name another file"
        )
    wanted = {_key(settings) for settings in grid(varied)}
    found = {_key(cell.settings): cell for cell in cells if cell.report is not None}
    return [cell for key, cell in found.items() if key in wanted]


def _digest(scenario: Path, known: Known) -> str:
    """Of what a cell comes of besides its settings."""
    digest = blake2b(digest_size=8)
    for path in (scenario, known.catalog, *([known.calibration] if known.calibration is not None else [])):
        try:
            text = b"" if path is None else path.read_bytes()
        except OSError as error:
            raise ConfigError(f"sweep: {path}: cannot be read: {error.strerror}") from error
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()


def run_cell(scenario: Path, settings: Settings, *, known: Known, of: str = "") -> Cell:
    """One rehearsal. What is wrong with its settings is told in the cell: the others go on."""
    try:
        wanted = read_scenario(scenario, dict(settings))
        learned = read_calibration(known.calibration)
        return Cell(settings, simulate(wanted, read_catalog(known.catalog), learned), of=of)
    except JevonsError as error:
        return Cell(settings, error=str(error), of=of)


def sweep(
    scenario: Path,
    varied: Mapping[str, Sequence[Value]],
    out: Path,
    *,
    on: int | str,
    known: Known = SHIPPED,
    on_cell: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Run what of a grid is not in `out` yet, and add it there as it is done.

    Args:
        on: so many processes here, or the address of a Ray cluster, whose nodes have jevons and the files.

    Returns:
        All cells of the grid, in its order.

    Raises:
        ConfigError: `out` is not of this sweep, or cannot be written; Ray is not installed or its cluster not reached.
        SweepStopped: a process ended.
    """
    wanted = grid(varied)
    done = {_key(cell.settings): cell for cell in kept(scenario, varied, out, known)}
    told = {(_key(cell.settings), cell.error) for cell in read_cells(out)}
    run = partial(run_cell, scenario.absolute(), known=known, of=_digest(scenario, known))
    left = [settings for settings in wanted if _key(settings) not in done]
    with _open(out) as file, closing(_run(run, left, on)) as cells:
        for cell in cells:
            if cell.report is not None or (_key(cell.settings), cell.error) not in told:
                _add(file, out, cell)
            done[_key(cell.settings)] = cell
            on_cell(cell)
    return [done[_key(settings)] for settings in wanted]


def _open(out: Path) -> BinaryIO:
    """To add cells to, after the last whole one."""
    try:
        file = out.open("a+b")
        file.seek(0)
        text = file.read()
        whole = _whole(text)
        file.truncate(min(len(text), len(whole)))
        file.write(whole[len(text) :])
    except OSError as error:
        raise _unwritable(out, error) from error
    return file


def _add(file: BinaryIO, out: Path, cell: Cell) -> None:
    try:
        file.write(msgspec.json.encode(cell) + b"\n")
        file.flush()
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"sweep {out}: cannot be written: {error.strerror}")


def _run(run: Callable[[Settings], Cell], left: Sequence[Settings], on: int | str) -> Generator[Cell]:
    """Cells in the order they are done."""
    if not left:
        return
    if isinstance(on, str):
        yield from _on_ray(run, left, on)
        return
    with side_by_side(min(on, len(left))) as pool:
        try:
            for future in as_completed([pool.submit(run, settings) for settings in left]):
                yield future.result()
        except BrokenProcessPool as error:
            raise SweepStopped(
                "sweep: a process that rehearsed was ended, for lack of memory perhaps; run it again, with fewer "
                "--processes: what is done is not run again"
            ) from error


def _on_ray(run: Callable[[Settings], Cell], left: Sequence[Settings], address: str) -> Iterator[Cell]:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("sweep: --ray needs Ray: pip install 'jevons[ray]'") from error
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"sweep: no Ray cluster at {address!r}: {error}") from error
    try:
        task = ray.remote(run_told)
        waiting = [task.remote(run, settings) for settings in left]
        while waiting:
            done, waiting = ray.wait(waiting)
            for told in ray.get(done):
                yield msgspec.json.decode(told, type=Cell)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Somebody listens there: Ray itself tries for minutes and then ends the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto" and the like: Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except OSError as error:
        says = f"{error}; start one with `ray start --head`"
        raise ConfigError(f"sweep: no Ray cluster at {address!r}: {says}") from error


def run_told(run: Callable[[Settings], Cell], settings: Settings) -> bytes:
    """A cell as it is written: nothing of ours has to be pickled on the way back."""
    return msgspec.json.encode(run(settings))


def check_parquet(path: Path) -> None:
    """That a table could be written there: nobody sweeps for hours to hear that it could not.

    Raises:
        ConfigError: pyarrow is not installed, or there is no such folder.
    """
    try:
        import pyarrow.parquet  # noqa: F401 — whether it is there
    except ImportError as error:
        raise ConfigError("sweep: --parquet needs pyarrow: pip install 'jevons[parquet]'") from error
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"sweep {path}: there is no folder {str(path.parent)!r}; make it first")


def write_parquet(cells: Sequence[Cell], path: Path) -> None:
    """A row a cell: its settings, then its report, with dots in the names of what is inside; `error` where it has none.

    Raises:
        ConfigError: see `check_parquet`, or the file cannot be written.
    """
    check_parquet(path)
    import pyarrow
    import pyarrow.parquet

    rows = [_flat(cell) for cell in cells]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: _column([row.get(name) for row in rows]) for name in names})
    try:
        pyarrow.parquet.write_table(table, path)
    except OSError as error:
        raise ConfigError(f"sweep {path}: cannot be written: {error}") from error


def _flat(cell: Cell) -> dict[str, Any]:
    report = {} if cell.report is None else msgspec.to_builtins(cell.report)
    trust = report.pop("trust", [])
    row: dict[str, Any] = {**cell.settings, "error": cell.error or None, "trust": [each["trust"] for each in trust]}
    for name, value in report.items():
        if isinstance(value, dict):
            row |= {f"{name}.{key}": _filled(inner) for key, inner in value.items() if inner != {}}
        else:
            row[name] = _filled(value)
    return row


def _filled(value: Any) -> Any:
    """Without records that have no fields, such as the tiers of groups that have none: Parquet cannot write them."""
    if isinstance(value, dict):
        return {name: _filled(inner) for name, inner in value.items() if inner != {}}
    return [_filled(inner) for inner in value] if isinstance(value, list) else value


def _column(values: list[Any]) -> list[Any]:
    """A column has one type: where a setting is a number here and a word or `true` there, all are words, and numbers of
    more than 64 bits are."""
    kinds = {type(value) for value in values if value is not None}
    is_mixed = len(kinds) > 1 and bool(kinds & {str, bool})
    is_wide = any(isinstance(value, int) and not -_WIDE <= value < _WIDE for value in values)
    return [None if value is None else str(value) for value in values] if is_mixed or is_wide else values


def _key(settings: Settings) -> str:
    return msgspec.json.encode(settings, order="sorted").decode()
