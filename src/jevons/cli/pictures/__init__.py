"""`--html` and `--png`: each command's pictures are made in a module of its own, imported when one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from jevons import __version__
from jevons.base.errors import ConfigError

if TYPE_CHECKING:
    from jevons.charts import Card, Picture

C = TypeVar("C", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)


class Files(msgspec.Struct, frozen=True):
    """Where pictures are wanted, if anywhere."""

    html: Path | None
    png: Path | None

    def __bool__(self) -> bool:
        return self.html is not None or self.png is not None

    def write(self, title: str, notes: Sequence[str], pictures: Sequence[Picture], cards: Sequence[Card] = ()) -> None:
        """Raises ConfigError: a file cannot be written, or no browser draws."""
        from jevons.charts import page

        text = page(title, [*notes, f"jevons {__version__}"], pictures, cards)
        if self.html is not None:
            write("--html", self.html, text.encode())
        if self.png is not None:
            from jevons.cli.pictures.png import drawn

            write("--png", self.png, drawn(text))


def picture_options(command: C) -> C:
    """Give a command `--html` and `--png`."""
    html = click.option("--html", type=_FILE, help="Write a report with pictures here: one file, works offline.")
    png = click.option("--png", type=_FILE, help="Write the same as an image; needs Chrome or Chromium.")
    return html(png(command))


def files(html: Path | None, png: Path | None) -> Files:
    """What was asked for, once it is sure that it can be had: nobody waits for a run that ends in an error.

    Raises:
        ConfigError: Plotly or a browser is missing, or there is no such folder.
    """
    for option, file in (("--html", html), ("--png", png)):
        check_folder(option, file)
    if html is not None or png is not None:
        from jevons.charts.page import plotly_program

        plotly_program()
    if png is not None:
        from jevons.cli.pictures.png import find_browser

        find_browser()
    return Files(html, png)


def check_folder(option: str, file: Path | None) -> None:
    """Raises ConfigError: a file is wanted where there is no folder."""
    if file is not None and not file.absolute().parent.is_dir():
        raise ConfigError(f"{option} {file}: there is no folder {str(file.parent)!r}; make it first")


def write(option: str, file: Path, content: bytes) -> None:
    """Raises ConfigError: it cannot be written."""
    try:
        file.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{option} {file}: cannot be written: {error.strerror}") from error
