"""The page's data on a terminal's screen."""

from __future__ import annotations

import re

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console
from tests.web.still import Still, answer, pages

from jevons.base.errors import EngineError
from jevons.base.ids import WorkerId
from jevons.cli.top import command
from jevons.facts.scaling import WantedWorkers
from jevons.facts.worker import WorkerFacts
from jevons.web.top import read, screen


def shown(still: Still, width: int = 120, height: int = 40) -> str:
    console = Console(width=width, height=height)
    with console.capture() as capture:
        console.print(screen(read(answer(pages(still), "/ui/data").body), width, height))
    return capture.get()


def test_it_shows_what_the_page_shows() -> None:
    still = Still()
    still.place("a")

    text = shown(still)

    assert "jevons live: m, policy kv" in text
    assert "1 of 1 up, 1 busy" in text
    assert "0 of 3 tokens cached" in text
    assert "waiting" in text
    assert re.search(r"cost +\$\d\.\d\d an hour, \$0\.\d+ so far", text)


def test_how_many_workers_are_wanted_is_told_with_its_reason() -> None:
    still = Still()
    told = read(answer(pages(still), "/ui/data").body)
    each = WantedWorkers(
        model="m",
        role="both",
        wanted=3,
        up=1,
        starting=0,
        reason="computing needs 2.31 instances",
        prompt_s=1.0,
        tokens_per_s=2.0,
    )
    console = Console(width=120)
    with console.capture() as capture:
        told = msgspec.structs.replace(told, view=msgspec.structs.replace(told.view, scaling=[each]))
        console.print(screen(told, 120, 40))
    assert "m both: 3 wanted, 1 up: computing needs 2.31 instances" in capture.get()


def test_what_is_unknown_is_said_to_be() -> None:
    assert "unknown an hour, unknown so far" in shown(Still(""))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (40, 10)])
def test_it_fits_the_screen_however_many_workers_there_are(width: int, height: int) -> None:
    still = Still()
    for number in range(4_000):
        still.router.join(WorkerFacts(id=WorkerId(f"{number:04}"), model="m", kind="k"))
    for number in range(60):
        still.place(str(number))

    lines = shown(still, width, height).splitlines()

    assert all(len(line) <= width for line in lines)
    assert len(lines) <= max(height, 17)
    assert "more workers" in "\n".join(lines)


def test_who_does_not_answer_is_named() -> None:
    with pytest.raises(EngineError, match=r"http://127\.0\.0\.1:1 does not answer"):
        CliRunner().invoke(command, ["127.0.0.1:1", "--once"], catch_exceptions=False)


def test_data_of_another_version_is_an_error() -> None:
    with pytest.raises(msgspec.MsgspecError):
        read(b'{"view": {}}')


@pytest.mark.parametrize(("width", "is_why"), [(60, False), (80, True), (100, True)])
def test_workers_are_told_apart_and_figures_are_whole_on_narrow_screens(width: int, is_why: bool) -> None:
    still = Still()
    still.router.leave(WorkerId("w"))
    names = [f"inference-17.example.org:8000/e/{number:04}" for number in range(3)]
    for name in names:
        still.router.join(WorkerFacts(id=WorkerId(name), model="m", kind="k"))
        still.router.roster.heard(WorkerId(name), 0.0)
    for number in range(6):
        still.place(str(number))

    text = shown(still, width)

    assert "gap between tokens" in text
    assert "energy of chips" in text
    assert all(f"{name[-8:]} " in text for name in names)
    assert re.search(r"worker +prompt +cached +first token", text)
    assert ("reason" in text) is is_why
    assert max(map(len, text.splitlines())) <= width
