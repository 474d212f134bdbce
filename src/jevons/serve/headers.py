"""What our own request headers say, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b

from jevons.base.errors import RequestError
from jevons.policy.admit import USUAL, Miss, Promise

KEEP, HOLD = "x-jevons-keep-s", "x-jevons-hold-s"
TTFT, TPOT, MISS = "x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-miss"
QUEUE, PRIORITY = "x-slo-queue-s", "x-priority"
SESSION = "x-session-id"
FAIRNESS, TENANT, KEY = "x-llm-d-inference-fairness-id", "x-tenant-id", "authorization"
REQUEST_ID, TRACES = "x-request-id", ("traceparent", "tracestate")  # W3C's, of the latter
MAX_KEEP_S, MAX_HOLD_S, MAX_SLO_S, MAX_QUEUE_S = 86_400.0, 3_600.0, 3_600.0, 3_600.0
# What is promised less nobody keeps, and weighs as hundreds of streams: it was told in seconds, most likely. The
# quickest that was published is some 3,000 tokens a second and stream (Cerebras, gpt-oss-120b, August 2025).
LEAST_MS = {TTFT: 1.0, TPOT: 0.25}
MAX_SESSION = 200  # characters
MAX_TRACE = 512  # characters, as W3C wants of a tracestate at least
MAX_PRIORITY, MAX_TENANT = 2**31 - 1, 80  # characters of a tenant's name: it stands in a page of metrics
GUESS_QUEUE_S = 10.0  # as long as people wait for a first word before they leave
MISSES = {str(miss): miss for miss in Miss}


def read_seconds(headers: Mapping[str, str], name: str, most_s: float) -> float:
    """Seconds from 0 on; 0 where the header is missing.

    Raises:
        RequestError: names the header, quotes the value, says the rule. So do the others.
    """
    seconds = _number(headers.get(name, "0"))
    if not 0 <= seconds <= most_s:
        raise RequestError(f"{name}: must be seconds from 0 to {most_s:.0f}, got {headers[name][:40]!r}")
    return seconds


def read_promise(headers: Mapping[str, str]) -> Promise:
    """What a request asks of its own serving."""
    told, queue = headers.get(MISS, Miss.SERVE), headers.get(QUEUE)
    if told not in MISSES:
        raise RequestError(f"{MISS}: must be {', '.join(MISSES)}, got {told[:40]!r}")
    miss = MISSES[told]
    if queue is not None and miss is not Miss.QUEUE:
        raise RequestError(f"{QUEUE}: goes with {MISS}: {Miss.QUEUE}, got {queue[:40]!r}")
    ttft_s, tpot_s = _promised(headers, TTFT), _promised(headers, TPOT)
    if ttft_s is None and tpot_s is None:
        if miss is not Miss.SERVE:
            raise RequestError(f"{MISS}: {miss} goes with {TTFT} or {TPOT}, which say what is late")
        return USUAL
    if miss is not Miss.QUEUE:
        return Promise(ttft_s, tpot_s, miss)
    queue_s = GUESS_QUEUE_S if queue is None else read_seconds(headers, QUEUE, MAX_QUEUE_S)
    return Promise(ttft_s, tpot_s, miss, queue_s)


def read_priority(headers: Mapping[str, str]) -> int:
    """The lower, the earlier; 0 where the header is missing."""
    told = headers.get(PRIORITY, "0")
    try:
        priority = int(told)
    except ValueError:
        priority = MAX_PRIORITY + 1
    if abs(priority) > MAX_PRIORITY:
        raise RequestError(f"{PRIORITY}: must be a whole number from -2^31 + 1 to 2^31 - 1, got {told[:40]!r}")
    return priority


def read_session(headers: Mapping[str, str], salt: str) -> str:
    """Which conversation it goes on from; "" for none. Tenants that are kept apart share none."""
    told = headers.get(SESSION)
    return f"{salt}\0{told[:MAX_SESSION]}" if told else ""


def read_trace(headers: Mapping[str, str]) -> tuple[str, str]:
    """What its client calls it, "" for nothing, and the header lines of its trace, as they are."""
    lines = "".join(f"{name}: {headers[name]}\r\n" for name in TRACES if _is_plain(headers.get(name)))
    return headers[REQUEST_ID] if _is_plain(headers.get(REQUEST_ID)) else "", lines


def _is_plain(value: str | None) -> bool:
    return value is not None and 0 < len(value) <= MAX_TRACE and value.isascii() and value.isprintable()


def read_tenant(headers: Mapping[str, str], salt: str) -> str:
    """Whose request it is: as a header names them, else by the API key, else by the cache salt; "" for nobody's.

    Keys and salts are secrets: their hashes are told.
    """
    named = headers.get(FAIRNESS) or headers.get(TENANT)
    if named:
        return named[:MAX_TENANT]
    if key := headers.get(KEY):
        return _hashed("key", key)
    return _hashed("salt", salt) if salt else ""


@lru_cache(4_096)
def _hashed(kind: str, secret: str) -> str:
    return f"{kind}-{blake2b(secret.encode(), digest_size=6).hexdigest()}"


def _promised(headers: Mapping[str, str], name: str) -> float | None:
    """Seconds; None where the header is missing."""
    told_ms = headers.get(name)
    if told_ms is None:
        return None
    milliseconds = _number(told_ms)
    if not LEAST_MS[name] <= milliseconds <= MAX_SLO_S * 1e3:
        rule = f"must be milliseconds from {LEAST_MS[name]:g} to {MAX_SLO_S * 1e3:.0f}"
        hint = f"; {milliseconds:g} s are {milliseconds * 1e3:g}" if 0 < milliseconds < LEAST_MS[name] else ""
        raise RequestError(f"{name}: {rule}, got {told_ms[:40]!r}{hint}")
    return milliseconds / 1e3


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
