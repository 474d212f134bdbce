"""A page is one file that fetches nothing, of bounded size, the same for the same input."""

from __future__ import annotations

import sys
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest

from jevons.base.errors import ConfigError
from jevons.charts import Axis, Card, Picture, Span, cdf, page, spans
from jevons.charts.page import plotly_program

SECONDS = Axis(label="time", unit="s", is_log=True)


class Read(HTMLParser):
    """Which elements a page has, with their attributes, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts[-1] += data


def picture(count: int = 100, name: str = "kv") -> Picture:
    return cdf("Latencies", SECONDS, {name: np.random.default_rng(1).lognormal(0.0, 1.0, count)}, about="How long.")


def test_a_page_holds_its_pictures_the_program_once_and_the_notes() -> None:
    text = page("A rehearsal", ["trust: measured", "source: docs"], [picture(), picture()])
    read = Read(text)

    assert text.count("<h2>Latencies</h2>") == 2
    assert [attrs["id"] for tag, attrs in read.elements if tag == "div"] == ["picture-0", "picture-1"]
    assert sum("plotly.js v" in script for script in read.scripts) == 1
    assert all(f"<p>{note}</p>" in text for note in ("trust: measured", "source: docs", "How long."))


def test_a_page_fetches_nothing() -> None:
    read = Read(page("A rehearsal", [], [picture()]))

    assert not [attrs for _, attrs in read.elements if {"src", "href", "srcset", "data", "action"} & set(attrs)]
    policy = next(a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_the_same_input_gives_the_same_bytes() -> None:
    assert page("A", ["b"], [picture()]) == page("A", ["b"], [picture()])


def test_a_million_values_make_a_page_no_longer() -> None:
    assert len(page("A", [], [picture(1_000_000)])) < len(plotly_program()) + 50_000


def test_text_of_others_stays_text() -> None:
    bad = "</script><script>alert(1)</script>"
    text = page(bad, [bad], [picture(name=bad)])

    assert "alert(1)</script>" not in text
    assert len(Read(text).scripts) == 3


def test_without_plotly_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)

    with pytest.raises(ConfigError, match=r"pip install 'jevons\[charts\]'"):
        page("A", [], [])


def test_cards_tell_more_to_who_opens_them_and_escape_what_others_wrote() -> None:
    text = page("cards", [], [], [Card(head="1 <b>ten</b> times", mark="holds", lines=["Why: it is so.", "By: me."])])

    assert "<details><summary>1 &lt;b&gt;ten&lt;/b&gt; times<b>holds</b></summary><p>Why: it is so.</p>" in text


def test_rows_have_a_short_name_on_a_telephone_and_need_less_room_there() -> None:
    long = "a claim of so many words that a telephone would need three lines for it, one below the other"
    rows = [Span(name=long, low=0.5, base=1.0, high=2.0, is_told=False, brief="1 holds")] * 4
    brief = spans("claims", Axis(label="over"), rows)
    whole = spans("claims", Axis(label="over"), [msgspec.structs.replace(row, brief="") for row in rows])

    narrow, *wider = brief.names
    assert [name["text"] for name in narrow.placed if "holds" in name["text"]] == ["1 holds"] * 4
    assert all("claim" in str(names.placed) and "holds" not in str(names.placed) for names in wider)
    assert narrow.height_px < whole.names[0].height_px - 100
