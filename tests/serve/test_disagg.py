"""Prefill on one worker, decode on another: the same answers as on one, and no failure on the way reaches a client."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import pytest
from tests.serve import asking
from tests.serve.asking import rows

from jevons.twin.workload import Chat, conversations

pytestmark = pytest.mark.model

TALKS = conversations(Chat(conversations=10, turns=1, groups=10, system_tokens=150, turn_tokens=40, seed=5))
OUTPUT = 12


def ask(server: Any, number: int, **more: Any) -> dict[str, Any]:
    return asking.ask(server.url, TALKS[number], OUTPUT, **more)


@pytest.fixture(scope="module")
def expected(start: Callable[..., Any]) -> list[list[tuple[str, float]]]:
    """Answers of one worker that does everything, alone, without tiers."""
    running = start("--served-name", "smol", "--invariant", "--workers", "1")
    try:
        return [rows(ask(running, i)) for i in range(len(TALKS))]
    finally:
        assert running.stop() == 0


@pytest.fixture
def server(start: Callable[..., Any]) -> Iterator[Any]:
    split = ["--prefill", "1", "--decode", "1", "--dram-bytes", str(128 << 20)]
    running = start("--served-name", "smol", "--invariant", *split)
    yield running
    assert running.stop() == 0


def test_answers_are_the_same_bits_whether_they_are_handed_over_or_not(
    server: Any, expected: list[list[tuple[str, float]]]
) -> None:
    alone = [rows(ask(server, i, cache_salt="alone")) for i in range(3)]
    with ThreadPoolExecutor(len(TALKS)) as pool:
        answers = list(pool.map(lambda i: ask(server, i), range(len(TALKS))))
    recent = server.snapshot()["recent"]

    assert alone == expected[:3]
    assert [rows(answer) for answer in answers] == expected
    computed = {o["worker"] for o in recent if o["prompt_tokens"] > 150}
    assert "p0" in computed
    handed = [o for o in recent if o["worker"] == "d0" and (o["cached_tokens"] or 0) > 100]
    assert handed, "what p0 computed reached d0"
    assert server.snapshot()["tiers"]["leases"] == 0


def test_a_cache_of_other_block_size_is_handed_over_bit_for_bit(
    start: Callable[..., Any], expected: list[list[tuple[str, float]]]
) -> None:
    running = start(
        *("--served-name", "smol", "--invariant", "--prefill", "1", "--decode", "1"),
        *("--dram-bytes", str(128 << 20), "--prefill-block-size", "16", "--block-size", "32"),
    )
    try:
        with ThreadPoolExecutor(len(TALKS)) as pool:
            answers = list(pool.map(lambda i: ask(running, i), range(len(TALKS))))
        recent = running.snapshot()["recent"]
    finally:
        assert running.stop() == 0

    assert [rows(answer) for answer in answers] == expected
    assert any(o["worker"] == "d0" and (o["cached_tokens"] or 0) > 100 for o in recent)


def test_a_float32_cache_is_handed_over_to_a_bf16_one_within_its_rounding(
    start: Callable[..., Any], expected: list[list[tuple[str, float]]]
) -> None:
    running = start(
        *("--served-name", "smol", "--invariant", "--prefill", "1", "--decode", "1"),
        *("--dram-bytes", str(128 << 20), "--prefill-kv-dtype", "float32"),
    )
    try:
        with ThreadPoolExecutor(len(TALKS)) as pool:
            answers = [rows(a) for a in pool.map(lambda i: ask(running, i), range(len(TALKS)))]
        recent = running.snapshot()["recent"]
    finally:
        assert running.stop() == 0

    assert any(o["worker"] == "d0" and (o["cached_tokens"] or 0) > 100 for o in recent)
    for ours, theirs in zip(answers, expected, strict=True):
        alike = takewhile(lambda pair: pair[0][0] == pair[1][0], zip(ours, theirs, strict=False))
        drift = [abs(a[1] - b[1]) for a, b in alike]
        assert len(drift) >= 1
        assert max(drift) < 0.1  # while the tokens are the same


def test_when_the_prefill_worker_dies_the_decode_worker_computes_unseen(
    server: Any, expected: list[list[tuple[str, float]]], wait_until: Callable[[Callable[[], bool], float], float]
) -> None:
    answers: dict[int, dict[str, Any]] = {}
    threads = [threading.Thread(target=lambda i=i: answers.update({i: ask(server, i)})) for i in range(len(TALKS))]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.worker("p0")["requests"] > 0, 30)
    os.kill(server.worker("p0")["pid"], signal.SIGKILL)
    for thread in threads:
        thread.join(120)

    assert [rows(answers[i]) for i in range(len(TALKS))] == expected


def test_when_the_keeper_dies_handed_over_prompts_are_computed_again_unseen(
    server: Any, expected: list[list[tuple[str, float]]], wait_until: Callable[[Callable[[], bool], float], float]
) -> None:
    with ThreadPoolExecutor(len(TALKS)) as pool:
        waiting = [pool.submit(ask, server, i) for i in range(len(TALKS))]
        wait_until(lambda: server.worker("p0")["requests"] > 0, 30)
        os.kill(server.snapshot()["tiers"]["pid"], signal.SIGKILL)
        answers = [each.result() for each in waiting]

    assert [rows(answer) for answer in answers] == expected
    wait_until(lambda: server.snapshot()["tiers"] is not None, 30)
