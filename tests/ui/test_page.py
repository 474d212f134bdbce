"""The page as people meet it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.processes import Jevons
from tests.ui.conftest import MANY, load, rehearsed, served

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.ui

LOAD_MS = 1_000
Open = Callable[..., Any]
Picture = Callable[[Any, str], None]
LOADED = "() => { const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd - t.startTime; }"
# Updates and the longest gap between frames, in milliseconds, of the next seconds.
SMOOTH = """(seconds) => new Promise((told) => {
  let updates = 0, longest = 0, last = performance.now();
  const began = last, title = document.querySelector('#title');
  new MutationObserver(() => { updates += 1; }).observe(title, { childList: true, characterData: true, subtree: true });
  const frame = (now) => {
    longest = Math.max(longest, now - last); last = now;
    now - began < seconds * 1000 ? requestAnimationFrame(frame) : told({ updates, longest });
  };
  requestAnimationFrame(frame);
})"""


def figure(page: Page, name: str) -> str:
    return page.locator("#figures div", has_text=name).locator("dd span").inner_text()


def busy_s(tool: Any) -> float:
    """CPU seconds of the page's own thread so far, drawing included."""
    metrics = {m["name"]: float(m["value"]) for m in tool.send("Performance.getMetrics")["metrics"]}
    return metrics["TaskDuration"]


def twice(page: Page, where: str) -> tuple[str, str]:
    """What is said there, and some updates later."""
    before = page.locator(where).inner_text()
    page.wait_for_timeout(2_000)
    return before, page.locator(where).inner_text()


def seen(page: Page, text: str, timeout_s: float = 30.0) -> None:
    page.get_by_text(re.compile(text)).first.wait_for(timeout=timeout_s * 1e3)


def test_it_loads_within_a_second(server: Jevons, open_page: Open) -> None:
    loads = [float(open_page(server.url + "/ui").evaluate(LOADED)) for _ in range(3)]

    print(f"loaded in {min(loads):.0f} to {max(loads):.0f} ms")
    assert min(loads) <= LOAD_MS


def test_it_shows_the_fleet_live_under_load(server: Jevons, open_page: Open, picture: Picture) -> None:
    page = open_page(server.url + "/ui")
    with load(server):
        page.wait_for_function("() => document.querySelectorAll('#rows tbody tr').length > 20", timeout=60_000)
        before, after = twice(page, "#figures div:nth-child(2)")
        seen(page, r"tokens cached, .* queued, .* decoding: first token in")
        page.wait_for_function(
            "() => (document.querySelector('#scatter .dots')?.getAttribute('d') || '').split('M').length > 50",
            timeout=60_000,
        )
        page.wait_for_timeout(15_000)
        picture(page, "live")
    assert before != after
    assert figure(page, "Workers") == "24 up"
    assert figure(page, "TTFT p50").endswith("s")
    assert "$" in page.locator("#costs dd").first.inner_text()
    assert "median" in str(page.locator("#ttft .chart").get_attribute("aria-label"))


def test_without_workers_it_says_so_and_sends_nothing(open_page: Open, picture: Picture) -> None:
    server = Jevons("--no-state", "--engine", "http://127.0.0.1:1")
    try:
        page = open_page(server.url + "/ui")
        page.wait_for_timeout(1_000)
        picture(page, "none")
        assert figure(page, "Workers") == "0 up"
        assert page.get_by_text("No worker is here yet").is_visible()
        assert page.get_by_role("button", name="Send").is_disabled()
        page.get_by_label("Message").fill("Hello")
        page.keyboard.press("Enter")
        assert page.locator("#log .me").count() == 0
        page.close()
    finally:
        server.stop()


def test_rows_stand_still_while_they_are_held(server: Jevons, open_page: Open) -> None:
    page = open_page(server.url + "/ui")
    with load(server, 2):
        page.wait_for_function("() => document.querySelectorAll('#rows tbody tr').length > 5", timeout=60_000)
        page.get_by_role("button", name="Hold").click()
        before, after = twice(page, "#rows tbody")

    assert before == after
    assert page.get_by_role("button", name="Hold").get_attribute("aria-pressed") == "true"


def test_the_chat_answers(server: Jevons, open_page: Open, picture: Picture) -> None:
    page = open_page(server.url + "/ui")
    page.get_by_label("Message").fill("What is the Jevons paradox?")
    page.get_by_role("button", name="Send").click()

    seen(page, r"first token after .* pieces in")
    picture(page, "chat")
    assert page.locator("#log .it").inner_text().strip()
    assert page.locator("#log .wrong").count() == 0


def test_a_what_if_is_rehearsed(server: Jevons, open_page: Open, picture: Picture) -> None:
    page = open_page(server.url + "/ui")
    with load(server, 4):
        page.wait_for_timeout(5_000)
    page.wait_for_selector("#if-policy option[value='round_robin'], #if-policy option", state="attached")
    page.get_by_label("Policy").select_option("round_robin")
    page.get_by_label("Workers of today’s kind").fill("12")
    page.get_by_role("button", name="Rehearse").click()

    page.locator("#if-result table").wait_for(timeout=200_000)
    picture(page, "what-if")
    head, first = (page.locator(f"#if-result {where}").inner_text() for where in ("thead", "tbody tr >> nth=0"))
    assert "as it is" in head
    assert "12 workers, round_robin" in head
    assert re.search(r"TTFT p50\s+[\d.]+ m?s\s+[\d.]+ m?s\s+(.+ (better|worse)|the same)", first)
    assert "caches begin empty" in page.locator("#if-result").inner_text().lower()


def test_thousands_of_workers_do_not_stutter(open_page: Open, picture: Picture) -> None:
    with rehearsed(f"{MANY}xh100", rate=1_500, speed=1) as running:
        page = open_page(running.at + "/ui")
        page.wait_for_timeout(5_000)
        tool = page.context.new_cdp_session(page)
        tool.send("Performance.enable", {"timeDomain": "threadTicks"})
        before_s = busy_s(tool)
        smooth = page.evaluate(SMOOTH, 6)
        cpu_ms = (busy_s(tool) - before_s) * 1e3 / smooth["updates"]
        loaded = float(page.evaluate(LOADED))
        picture(page, "many")
        assert figure(page, "Workers") == "4,096 up"
        page.close()

    rate, longest = smooth["updates"] / 6, smooth["longest"]
    print(f"{MANY} workers: loaded in {loaded:.0f} ms, {rate:.1f} updates/s of {cpu_ms:.0f} ms CPU each, "
          f"longest frame {longest:.0f} ms")  # fmt: skip
    assert smooth["updates"] >= 10


@pytest.mark.parametrize("width", [360, 700])
def test_it_fits_a_narrow_screen(width: int, server: Jevons, open_page: Open, picture: Picture) -> None:
    page = open_page(server.url + "/ui", viewport={"width": width, "height": 740})
    with load(server, 4):
        page.wait_for_timeout(4_000)
        picture(page, f"narrow-{width}")

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        """(width) => [...document.querySelectorAll(
        'main > section, main button, main select, main input, #rows td')]
        .filter((e) => e.offsetParent && e.getBoundingClientRect().right > width + 1).map((e) => e.id)""",
        width,
    )
    assert cut == []


def test_the_keyboard_is_enough(server: Jevons, open_page: Open) -> None:
    page = open_page(server.url + "/ui")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "map"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "queue" in page.locator("#chosen").inner_text()

    passed = []
    for _ in range(30):
        page.keyboard.press("Tab")
        passed.append(page.evaluate("document.activeElement.id"))
        if passed[-1] == "words":
            break
    assert passed[-1] == "words", passed
    assert "hold" in passed
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    seen(page, r"first token after .* pieces in")


def test_colours_go_by_the_system_and_by_choice(server: Jevons, open_page: Open, picture: Picture) -> None:
    page = open_page(server.url + "/ui", color_scheme="dark")
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "dark"
    with load(server, 4):
        page.wait_for_timeout(3_000)
        picture(page, "dark")
    page.get_by_role("button", name="Colours").click()
    assert page.evaluate(theme) == "light"
    page.reload()
    page.wait_for_selector("body.linked")
    assert page.evaluate(theme) == "light"


def test_it_says_when_the_server_is_gone_and_when_it_is_back(server: Jevons, open_page: Open) -> None:
    page = open_page(server.url + "/ui")
    page.route("**/ui/data*", lambda route: route.fulfill(status=200, body="cut", content_type="application/json"))
    page.wait_for_selector("body.lost")
    assert "trying again" in page.locator("#link").inner_text()
    page.unroute("**/ui/data*")
    page.wait_for_selector("body.linked")


def test_calm_is_respected(server: Jevons, open_page: Open) -> None:
    page = open_page(server.url + "/ui", reduced_motion="reduce")
    assert "every 2 s" in page.locator("#link").inner_text()


def test_several_frontends_have_one_page(tmp_path: Path, open_page: Open, picture: Picture) -> None:
    with served(tmp_path, 8, "--prefill-tokens-per-s", "4000", frontends=2) as server:
        page = open_page(server.url + "/ui")
        with load(server, 4):
            page.wait_for_function("() => document.querySelectorAll('#rows tbody tr').length > 20", timeout=60_000)
            page.wait_for_timeout(5_000)
            picture(page, "frontends")
        assert "by 2 frontends" in page.locator("#title").inner_text()
        assert figure(page, "Workers") == "8 up"
        page.get_by_label("Policy").select_option("round_robin")
        page.get_by_role("button", name="Rehearse").click()
        page.locator("#if-result table").wait_for(timeout=200_000)
        told = page.locator("#if-result thead").inner_text()
        answered = sum(frontend["placements"] for frontend in server.snapshot()["frontends"])
        assert int(re.findall(r"[\d,]+", told)[0].replace(",", "")) == answered
        picture(page, "frontends-what-if")
        page.close()


def test_a_rehearsal_has_the_same_page(open_page: Open, picture: Picture) -> None:
    with rehearsed("16xh100", rate=20, speed=5) as running:
        page = open_page(running.at + "/ui")
        page.wait_for_function(
            "() => (document.querySelector('#scatter .dots')?.getAttribute('d') || '').split('M').length > 50",
            timeout=60_000,
        )
        page.wait_for_timeout(6_000)
        picture(page, "rehearsal")
        assert "simulated" in page.locator("#title").inner_text()
        assert figure(page, "Workers") == "16 up"
        assert page.locator("#chat").is_hidden()
        assert page.locator("#what-if").is_hidden()
        page.close()
