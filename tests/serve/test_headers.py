"""Our own headers mean what they say, or are refused with what is wrong."""

from __future__ import annotations

import pytest

from jevons.base.errors import RequestError
from jevons.policy.admit import Miss, Promise
from jevons.serve.headers import (
    FAIRNESS,
    MISS,
    PRIORITY,
    QUEUE,
    SESSION,
    TENANT,
    TPOT,
    TTFT,
    read_priority,
    read_promise,
    read_seconds,
    read_session,
    read_tenant,
)


def of(ttft_ms: str | None, miss: str | None, tpot_ms: str | None = None) -> dict[str, str]:
    told = ((TTFT, ttft_ms), (MISS, miss), (TPOT, tpot_ms))
    return {name: value for name, value in told if value is not None}


def test_a_promise_is_read_from_headers() -> None:
    assert read_promise({}) == Promise()
    assert read_promise(of("250", None)) == Promise(0.25)
    assert read_promise(of("250", "refuse")) == Promise(0.25, miss=Miss.REFUSE)
    assert read_promise(of("250", "serve")) == Promise(0.25)
    assert read_promise(of("1", None, "3600000")) == Promise(1e-3, 3_600.0)
    assert read_promise(of(None, None, "0.25")) == Promise(tpot_s=2.5e-4)
    assert read_promise(of("250", "refuse", "50")) == Promise(0.25, 0.05, miss=Miss.REFUSE)
    assert read_promise(of(None, "refuse", "12.5")) == Promise(tpot_s=0.0125, miss=Miss.REFUSE)


@pytest.mark.parametrize(
    ("ttft_ms", "miss", "says"),
    [
        ("soon", None, "x-slo-ttft-ms: must be milliseconds from 1 to 3600000, got 'soon'"),
        ("0", None, "got '0'"),
        ("nan", None, "got 'nan'"),
        ("-1", "refuse", "got '-1'"),
        ("1e-310", None, "got '1e-310'"),
        ("0.5", None, "from 1 to 3600000, got '0.5'; 0.5 s are 500"),
        ("100", "shed", "x-slo-miss: must be serve, refuse, queue, downgrade, got 'shed'"),
        (None, "refuse", "x-slo-miss: refuse goes with x-slo-ttft-ms or x-slo-tpot-ms, which say what is late"),
    ],
)
def test_a_promise_that_means_nothing_is_refused(ttft_ms: str | None, miss: str | None, says: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_promise(of(ttft_ms, miss))
    assert says in str(raised.value)


def test_a_promise_for_each_token_is_checked_alike() -> None:
    with pytest.raises(RequestError, match=r"x-slo-tpot-ms: must be milliseconds from 0\.25 to 3600000, got 'fast'"):
        read_promise(of("250", None, "fast"))
    with pytest.raises(RequestError, match=r"from 0\.25 to 3600000, got '0\.02'; 0\.02 s are 20$"):
        read_promise(of(None, None, "0.02"))


def test_who_may_wait_says_how_long() -> None:
    asked = {TTFT: "250", MISS: "queue"}
    assert read_promise(asked) == Promise(0.25, miss=Miss.QUEUE, queue_s=10.0)
    assert read_promise(asked | {QUEUE: "2.5"}) == Promise(0.25, miss=Miss.QUEUE, queue_s=2.5)
    with pytest.raises(RequestError, match="x-slo-queue-s: goes with x-slo-miss: queue, got '3'"):
        read_promise({TTFT: "250", QUEUE: "3"})
    with pytest.raises(RequestError, match="x-slo-queue-s: must be seconds from 0 to 3600, got 'long'"):
        read_promise(asked | {QUEUE: "long"})
    with pytest.raises(RequestError, match="x-slo-miss: downgrade goes with x-slo-ttft-ms or x-slo-tpot-ms"):
        read_promise({MISS: "downgrade"})


def test_a_priority_is_a_whole_number() -> None:
    assert (read_priority({}), read_priority({PRIORITY: "-3"})) == (0, -3)
    for told in ("urgent", "1.5", "2147483648", ""):
        with pytest.raises(RequestError, match="x-priority: must be a whole number"):
            read_priority({PRIORITY: told})


def test_a_tenant_is_who_a_header_names_else_a_hash_of_the_key_else_of_the_salt() -> None:
    key, names = {"authorization": "Bearer sk-1"}, {TENANT: "acme", FAIRNESS: "flow"}

    assert read_tenant({**key, **names}, "salt") == "flow"
    assert read_tenant({**key, TENANT: "acme"}, "salt") == "acme"
    by_key, by_salt = read_tenant(key, "salt"), read_tenant({}, "salt")
    assert by_key.startswith("key-")
    assert by_salt.startswith("salt-")
    assert "sk-1" not in by_key
    assert read_tenant({"authorization": "Bearer sk-2"}, "salt") != by_key
    assert read_tenant({}, "") == ""
    assert len(read_tenant({TENANT: "x" * 500}, "")) == 80


def test_sessions_of_tenants_that_are_kept_apart_are_not_the_same() -> None:
    asked = {SESSION: "1"}
    assert read_session({}, "salt") == ""
    assert len({read_session(asked, ""), read_session(asked, "a"), read_session({SESSION: "2"}, "a")}) == 3
    assert len(read_session({SESSION: "x" * 9_000}, "")) < 300


def test_seconds_are_read_from_headers() -> None:
    assert read_seconds({}, "x-jevons-keep-s", 60.0) == 0.0
    assert read_seconds({"x-jevons-keep-s": "60"}, "x-jevons-keep-s", 60.0) == 60.0


@pytest.mark.parametrize("text", ["long", "-1", "61", "inf", "nan", ""])
def test_seconds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="x-jevons-keep-s: must be seconds from 0 to 60, got "):
        read_seconds({"x-jevons-keep-s": text}, "x-jevons-keep-s", 60.0)
