"""Settings as command line options, and what several commands share."""

from __future__ import annotations

import logging
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from jevons import config
from jevons.config import Settings
from jevons.config.convert import convert
from jevons.engine.pull import resolve

Command = Callable[..., None]

LISTS = ("engines", "peers", "nodes")  # settings that are given once for each


def settings_options(names: typing.Sequence[str]) -> Callable[[Command], Command]:
    """Decorate a command with an option for each of these settings, described as they are."""

    def decorate(command: Command) -> Command:
        fields = {field.name: field for field in msgspec.structs.fields(Settings)}
        hints = typing.get_type_hints(Settings, include_extras=True)
        for name in reversed(names):
            command = _option(name, hints[name], fields[name].default)(command)
        return command

    return decorate


def make_settings(file: Path | None, flags: dict[str, Any], *, is_node: bool = False) -> Settings:
    """Settings from a TOML file and the flags given, flags first.

    Raises:
        ConfigError: names what is wrong and where it stands.
    """
    values = config.read(file) if file is not None else {}
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in flags.items() if v not in (None, ())}
    convert(given, Settings, "flags")  # what is wrong with one is not the file's fault
    return config.make({**values, **given}, "flags" if file is None else str(file), is_node=is_node)


def find_model(settings: Settings) -> Path | None:
    """The directory of the workers' model, here or on other nodes, fetched the first time; None without any."""
    return fetch(settings.model) if settings.embedded_workers or settings.nodes else None


def fetch(model: str, accepted: str = "") -> Path:
    """A model's directory, with a progress bar on standard error while it is fetched."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, Any] = {}

    def progress(what: str, done: int, total: int) -> None:
        bar.start()  # now, if it has not: a bar of nothing leaves an empty line
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total)

    try:
        return resolve(model, progress=progress, accepted=accepted)
    finally:
        if tasks:
            bar.stop()


def log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _option(name: str, hint: Any, default: Any) -> Callable[[Command], Command]:
    kind, about = _kind(hint)
    is_list = isinstance(default, list) or name in LISTS
    flag = "--" + (name.removesuffix("s") if is_list else name).replace("_", "-")
    shown = "" if is_list or default in (None, msgspec.NODEFAULT) else f"  [default: {default}]"
    if kind is bool:
        return click.option(flag, name, is_flag=True, default=None, help=about)
    return click.option(flag, name, type=kind, multiple=is_list, default=None, help=about + shown)


def _kind(hint: Any) -> tuple[type, str]:
    """The plain type of a setting, and its description."""
    about = "".join(m.description or "" for m in getattr(hint, "__metadata__", ()))
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    if typing.get_origin(hint) is list:
        return str, about
    choices = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if choices:
        return _kind(choices[0])[0], about
    return hint, about
