"""A page as an image, drawn by the Chrome or Chromium that is there."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from pathlib import Path
from typing import Any

from jevons.base.errors import ConfigError

_WIDTH_PX, _SCALE = 900, 2
_LEAST_PX = 200  # high: a page that is longer is drawn whole
_LONG_S = 60.0  # a slow machine, cold
_INSTALL = "pip install 'jevons[charts]'"


def find_browser() -> str:
    """The path of a browser.

    Raises:
        ConfigError: there is none, or what drives it is not installed.
    """
    try:
        from choreographer.browsers.chromium import Chromium
    except ImportError as error:
        raise ConfigError(f"--png needs choreographer, which is not installed: {_INSTALL}") from error
    found = Chromium.find_browser(skip_local=False)
    if found is None:
        raise ConfigError("--png needs Chrome or Chromium and none was found: install one, or ask for --html")
    return str(found)


def drawn(html: str) -> bytes:
    """The whole page as PNG.

    Raises:
        ConfigError: there is no browser, or it does not draw.
    """
    path = find_browser()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(html, "utf-8")
        try:
            return asyncio.run(asyncio.wait_for(_drawn(path, file.as_uri()), _LONG_S))
        except (RuntimeError, OSError, TimeoutError, KeyError) as error:
            raise ConfigError(f"--png: {path} did not draw the page ({error!r}); ask for --html") from error


async def _drawn(path: str, url: str) -> bytes:
    import choreographer

    async with choreographer.Browser(path, headless=True) as browser:
        tab = await browser.create_tab()
        await _ask(tab, "Page.enable")
        await _ask(tab, "Emulation.setDeviceMetricsOverride", _metrics(_LEAST_PX))
        is_loaded = tab.subscribe_once("Page.loadEventFired")
        await _ask(tab, "Page.navigate", {"url": url})
        await is_loaded
        done = await _ask(tab, "Runtime.evaluate", {"expression": "drawn", "awaitPromise": True})
        if "exceptionDetails" in done:
            raise RuntimeError(f"the page's own program failed: {done['exceptionDetails'].get('text')}")
        size = (await _ask(tab, "Page.getLayoutMetrics"))["cssContentSize"]
        await _ask(tab, "Emulation.setDeviceMetricsOverride", _metrics(int(size["height"])))
        shot = await _ask(tab, "Page.captureScreenshot", {"format": "png"})
        return base64.b64decode(shot["data"])


def _metrics(height_px: int) -> dict[str, Any]:
    return {"width": _WIDTH_PX, "height": height_px, "deviceScaleFactor": _SCALE, "mobile": False}


async def _ask(tab: Any, command: str, params: dict[str, Any] | None = None) -> Any:
    answer = await tab.send_command(command, params=params or {})
    if "error" in answer:
        raise RuntimeError(f"{command}: {answer['error']}")
    return answer["result"]
