"""`jevons curve`: no constant says how much cheaper a generation is."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from jevons.cli import main


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["jevons", "curve", *args])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return (code, *capsys.readouterr())

    return run


def test_rubin_is_cheaper_than_gb300_by_a_factor_that_grows_with_speed_and_is_not_ten_where_users_wait(
    curve: Any,
) -> None:
    found = json.loads(curve("gb300", "rubin", "--at", "20,60,100,120", "--json")[1])
    times = [step["cheaper"]["gb300"]["base"] for step in found["steps"]]

    assert 1.1 < times[0] < 1.6
    assert times[0] < times[1] < times[2]
    assert times[2] > 3 * times[0]
    assert max(times) < 10
    claim = found["claims"][0]
    assert claim["raw"]["memory bandwidth"] == pytest.approx(22 / 8 / (3.61 / 2.31))
    assert claim["vendor"]["mid"] == pytest.approx(10 * 3.3 / 2.12 / (3.61 / 2.31))


def test_each_chip_has_the_model_in_the_weights_that_are_cheapest_on_it(curve: Any) -> None:
    def prices(weights: str) -> list[list[float]]:
        found = json.loads(curve("gb300", "rubin", "--at", "20,60,100", "--weights", weights, "--json")[1])
        return [[step["offers"][chip]["mtok"]["base"] for step in found["steps"]] for chip in ("gb300", "rubin")]

    narrow, wide, either = prices("fp4"), prices("fp8"), prices("fp4,fp8")

    assert narrow[0][0] < wide[0][0]  # FP8 is as dear on GB300 ...
    assert wide[1][0] < narrow[1][0]  # ... as FP4, with its attention in 16 bits, on Rubin
    assert either == [[*map(min, *pair)] for pair in zip(narrow, wide, strict=True)]


def test_the_table_names_what_is_claimed_and_how_far_to_trust_it(curve: Any) -> None:
    code, out, _ = curve("gb200", "rubin", "--at", "20,900")

    assert code == 0
    for text in ("out of reach", "rubin less", "data sheets and prices alone", "trust:"):
        assert text in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("abacus",), "'abacus' is no chip of the catalog"),
        (("rubin", "--model", "eliza"), "'eliza' is no model of the catalog"),
        (("gb300", "--weights", "fp4,fp6"), "--weights: must be of"),
        (("lpu3", "--weights", "bf16"), "lpu3 does not compute bf16"),
        (("rubin", "--at", "fast"), "--at: must be tokens/s above 0"),
        (("rubin", "--input", "100", "--cached", "100"), "--cached: must be below --input"),
        (("trainium3", "--weights", "fp8"), "chips.trainium3.own_usd_per_hour: is not known"),
    ],
)
def test_what_is_wrong_is_one_line(curve: Any, args: tuple[str, ...], says: str) -> None:
    code, _, error = curve(*args)

    assert code == 2
    assert says in error
