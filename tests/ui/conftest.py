"""A real browser before a real server."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.processes import READ_S, Jevons, Running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDE = {"width": 1440, "height": 900}
MANY = 4_096
MET_S = 120.0


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'jevons[ui]'")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs a browser: chromium is not on PATH (Debian: apt install chromium)")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page; at the end nothing was said on its console, nothing failed, and no other host was asked."""
    complaints: list[str] = []
    contexts = []

    def open_it(url: str, **context: Any) -> Page:
        made = browser.new_context(**{"viewport": WIDE, **context})
        contexts.append(made)
        page = made.new_page()
        host = url.split("/")[2]
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.append(f"asks {r.url}") if r.url.split("/")[2] != host else None)
        page.on("response", lambda r: complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.goto(url)
        page.wait_for_selector("body.linked")
        return page

    yield open_it
    for each in contexts:
        each.close()
    assert complaints == []


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Keeps a picture where the environment says, for people to look at."""
    folder = os.environ.get("JEVONS_SCREENSHOTS", "")

    def take(page: Page, name: str) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    return take


@contextmanager
def served(folder: Path, count: int, *options: str, frontends: int = 1) -> Iterator[Jevons]:
    """`jevons serve` before a mock fleet with these options."""
    file = folder / "engines"
    fleet = Running("mock", "--count", str(count), "--port", "0", "--out", str(file), *options)
    file.write_text("".join(f"{line},chip=h100\n" for line in file.read_text().split()))
    server = Jevons("--no-state", "--engine", f"@{file}", "--frontends", str(frontends))
    try:
        _await_up(server, count)
        yield server
    finally:
        server.stop()
        fleet.stop()


def _await_up(server: Jevons, count: int) -> None:
    """Asked once a second: those that are to be met leave little time for answers."""
    until_s = time.monotonic() + MET_S
    health: list[int] = []
    while len(health) < count or any(health):
        assert time.monotonic() < until_s, f"{sum(h == 0 for h in health)} of {count} are up after {MET_S:g} s"
        time.sleep(1.0)
        with suppress(TimeoutError):  # kernels may be compiled
            health = json.loads(server.get("/ui/data"))["view"]["workers"]["health"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jevons]:
    with served(tmp_path_factory.mktemp("few"), 24, "--prefill-tokens-per-s", "4000") as server:
        yield server


@contextmanager
def rehearsed(fleet: str, *, rate: float, speed: float) -> Iterator[Running]:
    """A rehearsal that is watched: as many workers as one likes, and no engines that need a core each."""
    what = ("--fleet", fleet, "--model", "llama-3.1-8b", "--traffic", "chat", "--rate", str(rate))
    running = Running("simulate", *what, "--requests", "200000", "--watch", "--watch-speed", str(speed))
    try:
        yield running
    finally:
        assert running.stop() == 0


@contextmanager
def load(server: Jevons, clients: int = 8) -> Iterator[None]:
    """Clients that each go on with conversations of their own."""
    ended = threading.Event()
    threads = [threading.Thread(target=_talk, args=(server.url, seed, ended)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _talk(url: str, seed: int, ended: threading.Event) -> None:
    draw = random.Random(seed)
    while not ended.is_set():
        prompt = [draw.randrange(seed % 4 + 1, 9_000) for _ in range(draw.randrange(200, 3_000))]
        for _ in range(4):
            if ended.is_set():
                return
            ask(url, prompt, draw.randrange(8, 96))
            prompt = prompt + [draw.randrange(9_000) for _ in range(200)]


def ask(url: str, prompt: list[int], output: int) -> None:
    body = {"model": "mock", "prompt": prompt, "max_tokens": output, "stream": True}
    asked = urllib.request.Request(
        url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=READ_S * 6) as response:
        response.read()
