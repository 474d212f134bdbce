"""`jevons fleet`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jevons.base.errors import ConfigError
from jevons.base.units import dollars, short_dollars, si
from jevons.cli import tables
from jevons.cli.pictures import Files, files, picture_options
from jevons.config.catalog import Catalog, read_catalog
from jevons.facts.economics import Bounds, Economics
from jevons.facts.hardware import Chip, Entry, Fabric, Figure, KvStore, Rack, Source
from jevons.facts.llm import Llm

if TYPE_CHECKING:
    from jevons.charts import Picture

# Of each figure: what people call it, and how it reads.
_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "bf16_flops": ("BF16, dense", partial(si, unit="FLOP/s")),
    "fp8_flops": ("FP8, dense", partial(si, unit="FLOP/s")),
    "fp4_flops": ("FP4, dense", partial(si, unit="FLOP/s")),
    "fp4_sparse_flops": ("FP4, sparse", partial(si, unit="FLOP/s")),
    "memory_bytes": ("memory", partial(si, unit="B")),
    "memory_bytes_per_s": ("memory bandwidth", partial(si, unit="B/s")),
    "scale_up_bytes_per_s": ("scale-up, one way", partial(si, unit="B/s")),
    "domain_size": ("chips in a domain", lambda value: f"{value:,.0f}"),
    "scale_out_bytes_per_s": ("network, one way", partial(si, unit="B/s")),
    "tdp_w": ("TDP", partial(si, unit="W")),
    "all_in_w": ("power, all in", partial(si, unit="W")),
    "bytes_per_s": ("rate, one chip, one way", partial(si, unit="B/s")),
    "latency_s": ("latency", partial(si, unit="s")),
    "size_bytes": ("size", partial(si, unit="B")),
    "power_w": ("power", partial(si, unit="W")),
    "price_usd": ("price", short_dollars),
    "own_usd_per_hour": ("an hour, owned", dollars),
    "rent_usd_per_hour": ("an hour, rented", dollars),
}
_SUMS = ("fp4_flops", "fp8_flops", "bf16_flops", "memory_bytes", "memory_bytes_per_s", "scale_up_bytes_per_s")
_UNKNOWN = "not known"

_catalog_option = click.option(
    "--catalog",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file with chips, racks or models of yours.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


@click.group("fleet", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """What is known of chips, racks and models, with the source of every figure."""


@command.command("list")
@_catalog_option
@picture_options
@_json_option
def list_all(file: Path | None, html: Path | None, png: Path | None, as_json: bool) -> None:
    """All chips, racks and models."""
    shown = files(html, png)
    catalog = read_catalog(file)
    if shown:
        from jevons.cli.pictures.fleet import notes, pictures

        shown.write("Chips that are known", notes(), pictures(catalog))
    if as_json:
        click.echo(msgspec.json.encode(catalog))
        return
    console = Console()
    tables.show(_chips(catalog), console)
    tables.show(_racks(catalog), console)
    tables.show(_models(catalog), console)


@command.command("show")
@click.argument("name")
@_catalog_option
@picture_options
@_json_option
def show(name: str, file: Path | None, html: Path | None, png: Path | None, as_json: bool) -> None:
    """All that is known of one chip, rack, model, fabric or store, or of `economics`."""
    shown, catalog = files(html, png), read_catalog(file)
    found = _find(name, catalog)
    if shown:
        _draw(shown, name, found, catalog)
    if as_json:
        click.echo(msgspec.json.encode({"name": name, **msgspec.to_builtins(found)}))
        return
    console = Console()
    if isinstance(found, Llm):
        tables.show(_model(name, found), console)
        console.print(f" from {_from(found.source, catalog.sources)}", highlight=False)
    elif isinstance(found, Economics):
        _print_figures(console, *_economics(found, catalog.sources))
    elif isinstance(found, Rack):
        _print_figures(console, *_rack(name, found, catalog))
    else:
        _print_figures(console, *_figures(_title(name, found), found, catalog.sources))


Found = Llm | Economics | Chip | Rack | Fabric | KvStore


def _find(name: str, catalog: Catalog) -> Found:
    tables: tuple[Mapping[str, Found], ...] = (
        *(catalog.chips, catalog.racks, catalog.models, catalog.fabrics, catalog.stores),
        {"economics": catalog.economics},
    )
    found = next((table[name] for table in tables if name in table), None)
    if found is None:
        known = ", ".join(each for table in tables for each in table)
        raise ConfigError(f"fleet show: {name!r} is unknown; there are {known}")
    return found


def _draw(shown: Files, name: str, found: Found, catalog: Catalog) -> None:
    from jevons.cli.pictures.entry import Known, ranges, sequence, sources

    if isinstance(found, Llm):
        shown.write(name, [f"From {_from(found.source, catalog.sources)}."], [sequence(found)])
        return
    known = [Known(label=label, figure=figure, read=read) for label, figure, read in _known(found)]
    known += [Known(label=label, figure=figure, read=read) for label, figure, read in _of_chips(name, found, catalog)]
    missing = [label for key, (label, _) in _FIGURES.items() if getattr(found, key, 0) is None]
    notes = [f"{each.label}: {each.figure.note}" for each in known if each.figure.note]
    notes += [f"Not known: {'; '.join(missing)}."] if missing else []
    notes += sources(known, lambda source: _from(source, catalog.sources))
    shown.write(_title(name, found), notes, [*_pictures(name, found, catalog), *ranges(known)])


def _pictures(name: str, found: Economics | Chip | Rack | Fabric | KvStore, catalog: Catalog) -> list[Picture]:
    from jevons.cli.pictures.entry import bringing, hardware, joined

    match found:
        case Chip():
            return hardware(found)
        case Rack(chip=chip, chips=count):
            return hardware(catalog.chips[chip], count)
        case Fabric():
            return joined({each: chip for each, chip in catalog.chips.items() if chip.fabric == name})
        case KvStore():
            return bringing(found)
        case Economics():
            return []


def _known(record: Entry) -> list[tuple[str, Figure | Bounds, Callable[[float], str]]]:
    """Its figures, in their order, and how each reads."""
    found = []
    for key in record.__struct_fields__:
        figure = getattr(record, key)
        if isinstance(figure, Figure | Bounds):
            label, read = _FIGURES.get(key, (key.replace("_", " "), "{:,.6g}".format))
            found.append((label, figure, read))
    return found


def _of_chips(name: str, found: Entry, catalog: Catalog) -> list[tuple[str, Figure | Bounds, Callable[[float], str]]]:
    """What is shown of the chips in a rack or of a fabric."""
    if isinstance(found, Rack):
        return [(f"{found.chip}, {label}", figure, read) for label, figure, read in _known(catalog.chips[found.chip])]
    joined = {each: chip for each, chip in catalog.chips.items() if isinstance(found, Fabric) and chip.fabric == name}
    label, read = _FIGURES["scale_up_bytes_per_s"]
    rates = {each: chip.scale_up_bytes_per_s for each, chip in joined.items()}
    return [(f"{each}, {label}", rate, read) for each, rate in rates.items() if rate is not None]


def _title(name: str, found: Economics | Chip | Rack | Fabric | KvStore) -> str:
    match found:
        case Economics():
            return "What money, power and demand hang on"
        case Rack(chip=chip, chips=count):
            return f"{name}: {count} x {chip}"
        case Chip(vendor=vendor, memory=memory):
            return f"{name}: {vendor}, {memory}"
        case _:
            return f"{name}: {found.title}"


def _chips(catalog: Catalog) -> Table:
    units = {"bf16_flops": 1e12, "fp8_flops": 1e12, "fp4_flops": 1e12, "memory_bytes": 1e9, "memory_bytes_per_s": 1e12}
    units["scale_up_bytes_per_s"] = 1e9
    heads = ("BF16\nTFLOP/s", "FP8\nTFLOP/s", "FP4\nTFLOP/s", "memory\nGB", "memory\nTB/s", "scale-up\nGB/s", "TDP\nW")
    table = _table("chips: FLOP/s are dense, scale-up is one direction; empty: not known, or not there", "", *heads)
    for name, chip in catalog.chips.items():
        table.add_row(name, *(_in(chip, key, unit) for key, unit in {**units, "tdp_w": 1.0}.items()))
    return table


def _in(chip: Chip, key: str, unit: float) -> str:
    """A figure in a column's unit."""
    figure: Figure | None = getattr(chip, key)
    if figure is None:
        return ""
    return _plain(figure.value / unit)


def _racks(catalog: Catalog) -> Table:
    table = _table("racks and nodes", "", "chips", "memory", "memory bandwidth", "power", "price")
    for name, rack in catalog.racks.items():
        chip = catalog.chips[rack.chip]
        sums = [
            _FIGURES[key][1](getattr(chip, key).value * rack.chips) for key in ("memory_bytes", "memory_bytes_per_s")
        ]
        table.add_row(name, f"{rack.chips} {rack.chip}", *sums, _short(rack, "power_w"), _short(rack, "price_usd"))
    return table


def _models(catalog: Catalog) -> Table:
    heads = (
        "params\nB",
        "active\nB",
        "weights\nGB",
        "\nas",
        "KV a token\nkB, 16 bit",
        "state\nMB",
        "context\nk tokens",
    )
    table = _table("models; state is of fixed size, for each sequence; empty: not known, or not there", "", *heads)
    for name, model in catalog.models.items():
        active = model.active_params
        table.add_row(
            *(name, _plain(model.params / 1e9), "" if active is None else _plain(active / 1e9)),
            *(_plain(model.weight_bytes() / 1e9), model.weights, _plain(_kv_per_token(model) / 1e3)),
            *(_plain(model.state_bytes / 1e6) if model.state_bytes else "", _plain(model.context_tokens / 1024)),
        )
    return table


def _plain(value: float) -> str:
    """Three figures, or all before the point."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def _kv_per_token(model: Llm) -> float:
    """Bytes that one more token of a long context adds."""
    return model.kv_bytes(100_001) - model.kv_bytes(100_000)


def _rack(name: str, rack: Rack, catalog: Catalog) -> tuple[Table, list[str]]:
    chip = catalog.chips[rack.chip]
    table, below = _figures(_title(name, rack), rack, catalog.sources)
    for key in _SUMS:
        figure = getattr(chip, key)
        label, read = _FIGURES[key]
        if figure is None:
            table.add_row(f"all: {label}", _UNKNOWN, "", "", "")
        else:
            each = f"{rack.chips} chips"
            table.add_row(f"all: {label}", read(figure.value * rack.chips), "", "derived", each)
    return table, below


def _model(name: str, model: Llm) -> Table:
    table = _table(name, "", "")
    rows = {
        "parameters": _billions(model.params),
        "active for a token": _billions(model.active_params),
        "weights": f"{si(model.weight_bytes(), 'B')} as {model.weights}",
        "layers": f"{model.layers}",
        "hidden size": f"{model.hidden:,}",
        "heads": f"{model.heads}",
        "context": f"{model.context_tokens:,} tokens",
        "KV a token, 16 bit": si(_kv_per_token(model), "B"),
    }
    for kind in model.attention:
        fields = msgspec.to_builtins(kind)
        name_of = fields.pop("kind")
        rows[f"attention: {name_of}"] = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in fields.items())
    if model.sparse_tokens is not None:
        index = model.index
        found = f", found by {index.heads} heads of {index.head_dim} in {index.layers} layers" if index else ""
        rows["attends to"] = f"the best {model.sparse_tokens:,} tokens{found}"
    if model.moe is not None:
        moe = model.moe
        rows["experts"] = f"{moe.active} of {moe.experts}, {moe.shared} shared, in {moe.layers} layers"
    for label, value in rows.items():
        table.add_row(label, value)
    return table


def _figures(title: str, record: Entry, sources: Mapping[str, Source]) -> tuple[Table, list[str]]:
    """A table of what is known, and the lines below it: notes, and sources by their numbers."""
    table = _table(title, "", "", "range", "confidence", "source")
    numbers: dict[str, int] = {}
    notes: list[str] = []
    for key, (label, read) in _FIGURES.items():
        if not hasattr(record, key):
            continue
        figure = getattr(record, key)
        if figure is None:
            table.add_row(label, _UNKNOWN, "", "", "")
            continue
        between = "–".join(read(bound) for bound in (figure.low, figure.high) if bound is not None)
        number = numbers.setdefault(figure.source, len(numbers) + 1)
        table.add_row(label, read(figure.value), between, str(figure.confidence), f"[{number}]")
        if figure.note:
            notes.append(f"{label}: {figure.note}")
    return table, [*notes, *(f"[{number}] {_from(source, sources)}" for source, number in numbers.items())]


def _economics(record: Economics, sources: Mapping[str, Source]) -> tuple[Table, list[str]]:
    """The same of what money, power and demand hang on; some of it has a range and no base."""
    table = _table("what money, power and demand hang on", "", "", "range", "confidence", "source")
    numbers: dict[str, int] = {}
    for key in record.__struct_fields__:
        figure: Figure | Bounds = getattr(record, key)
        between = "" if figure.low is None or figure.high is None else f"{figure.low:,g}–{figure.high:,g}"
        base = f"{figure.value:,g}" if isinstance(figure, Figure) else _UNKNOWN
        number = numbers.setdefault(figure.source, len(numbers) + 1)
        table.add_row(key, base, between, str(figure.confidence), f"[{number}]")
    notes = [f"{key}: {note}" for key in record.__struct_fields__ if (note := getattr(record, key).note)]
    return table, [*notes, *(f"[{number}] {_from(source, sources)}" for source, number in numbers.items())]


def _print_figures(console: Console, table: Table, below: Sequence[str]) -> None:
    tables.show(table, console)
    for line in below:
        console.print(f" {line}", markup=False, highlight=False)


def _from(source: str, sources: Mapping[str, Source]) -> str:
    known = sources.get(source)
    return source if known is None else f"{known.title}, {known.date}"


def _billions(count: float | None) -> str:
    return _UNKNOWN if count is None else f"{count / 1e9:,.4g}B"


def _short(record: Chip | Rack, key: str) -> str:
    figure: Figure | None = getattr(record, key)
    return "" if figure is None else _FIGURES[key][1](figure.value)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or len(columns) < 7 else "right", no_wrap=True)
    return table
