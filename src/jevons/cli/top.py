"""`jevons top`."""

from __future__ import annotations

import time
import urllib.request

import click
import msgspec
from rich.console import Console
from rich.live import Live

from jevons.base.errors import EngineError
from jevons.cli.ranges import Finite
from jevons.web.site import Told
from jevons.web.top import read, screen

TIMEOUT_S = 10.0


@click.command("top", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--every", type=Finite(0.2, 3600), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Show it once, and end.")
@click.option("--json", "as_json", is_flag=True, help="Once, as it is, on standard output.")
def command(url: str, every: float, once: bool, as_json: bool) -> None:
    """The page of a server, or of `jevons simulate --watch`, in a terminal: fleet, requests, times, reuse, cost.

    URL is that of the server, http://127.0.0.1:8000 without one. Ctrl-C ends it.
    """
    raw = _ask(url)
    if as_json:
        click.echo(raw)
        return
    console = Console()
    told = _read(url, raw)
    if once:
        console.print(screen(told, console.width, console.height))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(told, console.width, console.height), refresh=True)
            time.sleep(every)
            told = _read(url, _ask(url))


def _ask(url: str) -> bytes:
    """Raises EngineError: nobody answers there."""
    at = url if "://" in url else f"http://{url}"
    try:
        with urllib.request.urlopen(at.rstrip("/") + "/ui/data", timeout=TIMEOUT_S) as response:
            raw: bytes = response.read()
    except (OSError, ValueError) as error:  # of urllib too
        raise EngineError(f"top: {at} does not answer: {error}; start `jevons serve`, or name another URL") from error
    return raw


def _read(url: str, raw: bytes) -> Told:
    try:
        return read(raw)
    except msgspec.MsgspecError as error:
        raise EngineError(f"top: what {url} answers is not of this version: {error}") from error
