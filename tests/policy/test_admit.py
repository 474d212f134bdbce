"""What would be late is refused, if it wants to be."""

from __future__ import annotations

import pytest

from jevons.base.errors import RequestError
from jevons.policy.admit import Promise, read_promise


def test_what_will_be_in_time_is_admitted() -> None:
    assert Promise(2.0, refuse_late=True).verdict(2.0) is None


def test_what_will_be_late_is_told_when_to_come_again() -> None:
    assert Promise(2.0, refuse_late=True).verdict(5.5) == 4.0
    assert Promise(2.0, refuse_late=True).verdict(2.01) == 1.0


def test_who_would_rather_be_late_than_refused_is_served() -> None:
    assert Promise(2.0).verdict(100.0) is None
    assert Promise().verdict(100.0) is None


def test_a_promise_is_read_from_headers() -> None:
    assert read_promise(None, None) == Promise()
    assert read_promise("250", None) == Promise(0.25)
    assert read_promise("250", "refuse") == Promise(0.25, refuse_late=True)
    assert read_promise("250", "serve") == Promise(0.25)


@pytest.mark.parametrize(
    ("ttft_ms", "miss", "says"),
    [
        ("soon", None, "x-slo-ttft-ms: must be milliseconds above 0, at most 3600000, got 'soon'"),
        ("0", None, "got '0'"),
        ("nan", None, "got 'nan'"),
        ("-1", "refuse", "got '-1'"),
        ("100", "shed", "x-slo-miss: must be serve or refuse, got 'shed'"),
        (None, "refuse", "x-slo-miss: refuse goes with x-slo-ttft-ms, which says what is late"),
    ],
)
def test_a_header_that_means_nothing_is_refused(ttft_ms: str | None, miss: str | None, says: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_promise(ttft_ms, miss)
    assert says in str(raised.value)
