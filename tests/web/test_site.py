"""The page and its data, as any door would serve them."""

from __future__ import annotations

import re

import msgspec
import pytest
from tests.web.still import Still, answer, pages

from jevons.base.errors import RequestError
from jevons.config.catalog import read_catalog
from jevons.config.prices import rack_of
from jevons.econ.cost import Basis, chip_hour
from jevons.econ.draws import Draws, interval_of
from jevons.facts.page import Asked
from jevons.web.site import CSP


def test_every_page_forbids_what_is_not_its_own() -> None:
    mounts = pages()

    for path in mounts:
        page = answer(mounts, path)
        assert page.status == 200
        assert page.headers["content-security-policy"] == CSP
        assert page.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in CSP
    assert "unsafe" not in CSP


def test_the_page_asks_nobody_else_for_anything() -> None:
    mounts = pages()

    for path in mounts:
        if path != "/ui/data":
            text = answer(mounts, path).body.decode().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|//cdn|@import|url\(", text), path


def test_all_that_the_page_names_is_there() -> None:
    mounts = pages()
    texts = {path: answer(mounts, path).body.decode() for path in mounts if path != "/ui/data"}

    named = set(re.findall(r'(?:href|src)="(ui/[^"]+)"', texts["/ui"]))
    imported = {f"ui/{name}" for text in texts.values() for name in re.findall(r'from "\./([^"]+)"', text)}

    assert named
    assert imported
    for path in named | imported:
        assert f"/{path}" in mounts


def test_every_label_is_of_a_field() -> None:
    html = answer(pages(), "/ui").body.decode()

    ids = set(re.findall(r'id="([^"]+)"', html))
    labelled = set(re.findall(r'<label for="([^"]+)"', html))
    fields = set(re.findall(r'<(?:input|select|textarea) id="([^"]+)"', html))

    assert labelled == fields
    assert set(re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', html)) <= ids


def test_data_tells_a_request_with_the_reason_of_its_placement() -> None:
    still = Still()
    still.place("a")

    told = msgspec.json.decode(answer(pages(still), "/ui/data").body)

    assert told["view"]["workers"]["who"]["ids"] == ["w"]
    assert "first token in" in told["view"]["requests"][0][7]
    assert told["can"] == ["chat"]


def test_who_the_workers_are_is_not_told_twice() -> None:
    still = Still()
    mounts = pages(still)
    version = msgspec.json.decode(answer(mounts, "/ui/data").body)["view"]["workers"]["version"]

    again = answer(mounts, "/ui/data", Asked("GET", f"seen={version}"))

    assert msgspec.json.decode(again.body)["view"]["workers"]["who"] is None


def test_chips_cost_what_the_catalog_says() -> None:
    cost = msgspec.json.decode(answer(pages(Still("h100")), "/ui/data").body)["cost"]
    catalog = read_catalog()
    hour = chip_hour(Basis.OWN, "h100", catalog.chips["h100"], rack_of(catalog, "h100"), catalog.economics)
    usd = interval_of(hour.usd, hour.figures, Draws())

    assert cost["usd_per_hour"]["base"] == pytest.approx(2 * usd.base)
    assert cost["usd"]["base"] == pytest.approx(4.0 / 3600 * usd.base)
    assert cost["usd"]["high"] == pytest.approx(4.0 / 3600 * usd.high)
    assert cost["usd"]["low"] < cost["usd"]["base"] < cost["usd"]["high"]
    assert cost["joules"]["low"] < cost["joules"]["high"] == pytest.approx(4.0 * 700)
    assert cost["saved_usd"] is None


@pytest.mark.parametrize(("chip", "why"), [("", "not known"), ("abacus", "abacus is no chip of the catalog")])
def test_what_is_not_known_is_not_guessed(chip: str, why: str) -> None:
    cost = msgspec.json.decode(answer(pages(Still(chip)), "/ui/data").body)["cost"]

    assert cost["usd"] is cost["usd_per_hour"] is cost["joules"] is None
    assert why in " ".join(cost["basis"])


@pytest.mark.parametrize(
    ("asked", "status"),
    [(Asked("POST"), 405), (Asked("GET", "seen=x"), 400), (Asked("GET", "seen=" + "9" * 5_000), 400)],
)
def test_wrong_questions_are_refused(asked: Asked, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        answer(pages(), "/ui/data", asked)

    assert caught.value.status == status
