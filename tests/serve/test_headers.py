"""Our own headers mean what they say, or are refused with what is wrong."""

from __future__ import annotations

import pytest

from jevons.base.errors import RequestError
from jevons.policy.admit import Promise
from jevons.serve.headers import MISS, TPOT, TTFT, read_promise, read_seconds


def of(ttft_ms: str | None, miss: str | None, tpot_ms: str | None = None) -> dict[str, str]:
    told = ((TTFT, ttft_ms), (MISS, miss), (TPOT, tpot_ms))
    return {name: value for name, value in told if value is not None}


def test_a_promise_is_read_from_headers() -> None:
    assert read_promise({}) == Promise()
    assert read_promise(of("250", None)) == Promise(0.25)
    assert read_promise(of("250", "refuse")) == Promise(0.25, refuse_late=True)
    assert read_promise(of("250", "serve")) == Promise(0.25)
    assert read_promise(of("250", "refuse", "50")) == Promise(0.25, 0.05, refuse_late=True)
    assert read_promise(of(None, "refuse", "12.5")) == Promise(tpot_s=0.0125, refuse_late=True)


@pytest.mark.parametrize(
    ("ttft_ms", "miss", "says"),
    [
        ("soon", None, "x-slo-ttft-ms: must be milliseconds above 0, at most 3600000, got 'soon'"),
        ("0", None, "got '0'"),
        ("nan", None, "got 'nan'"),
        ("-1", "refuse", "got '-1'"),
        ("100", "shed", "x-slo-miss: must be serve or refuse, got 'shed'"),
        (None, "refuse", "x-slo-miss: refuse goes with x-slo-ttft-ms or x-slo-tpot-ms, which say what is late"),
    ],
)
def test_a_promise_that_means_nothing_is_refused(ttft_ms: str | None, miss: str | None, says: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_promise(of(ttft_ms, miss))
    assert says in str(raised.value)


def test_a_promise_for_each_token_is_checked_alike() -> None:
    with pytest.raises(RequestError, match="x-slo-tpot-ms: must be milliseconds above 0, at most 3600000, got 'fast'"):
        read_promise(of("250", None, "fast"))


def test_seconds_are_read_from_headers() -> None:
    assert read_seconds({}, "x-jevons-keep-s", 60.0) == 0.0
    assert read_seconds({"x-jevons-keep-s": "60"}, "x-jevons-keep-s", 60.0) == 60.0


@pytest.mark.parametrize("text", ["long", "-1", "61", "inf", "nan", ""])
def test_seconds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="x-jevons-keep-s: must be seconds from 0 to 60, got "):
        read_seconds({"x-jevons-keep-s": text}, "x-jevons-keep-s", 60.0)
