"""Two rehearsals of the same requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from jevons.base.errors import ConfigError
from jevons.cli.compare import command
from jevons.twin.compare import compare, read_results
from jevons.twin.kernel import RESULT


def results(workers: list[int], ttft_s: float = 0.1) -> np.ndarray:
    made = np.zeros(len(workers), RESULT)
    made["request"], made["worker"] = np.arange(len(workers)), workers
    made["at_s"] = np.arange(len(workers))
    made["first_s"], made["done_s"] = made["at_s"] + ttft_s, made["at_s"] + 1.0
    made["prompt"], made["output"], made["cached"] = 100, 10, 50
    made["decode_on"] = -1
    return made


def test_the_first_request_placed_differently_is_told_with_both_decisions() -> None:
    found = compare(results([0, 1, 2]), results([0, 2, 1], ttft_s=0.3))

    assert found.placed_alike.requests == 1
    assert found.placed_differently.requests == 2
    assert found.first == 1
    assert found.first_decisions is not None
    assert [decision.worker for decision in found.first_decisions] == [1, 2]
    assert found.placed_differently.ttft_s == pytest.approx((0.1, 0.3))


def test_answers_of_one_token_have_no_time_per_token() -> None:
    some = results([0, 0])
    some["output"] = [10, 1]

    assert compare(some, some).placed_alike.tpot_s == pytest.approx((0.1, 0.1))
    assert compare(some[1:], some[1:]).placed_alike.tpot_s == (0.0, 0.0)


def test_the_first_that_parts_is_so_by_its_time_and_told_by_its_number() -> None:
    a, b = results([0, 0, 0]), results([0, 1, 1])
    for each in (a, b):
        each["request"], each["at_s"] = [3, 5, 8], [1.0, 9.0, 4.0]

    found = compare(a, b)

    assert (found.first, found.first_at_s) == (8, 4.0)


def test_where_only_who_goes_on_is_another_that_is_told(tmp_path: Path) -> None:
    a, b = results([0, 1]), results([0, 1])
    a["decode_on"], b["decode_on"] = [2, 2], [2, 3]
    for name, each in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "requests.npy", each)

    told = CliRunner().invoke(command, [str(tmp_path / "a"), str(tmp_path / "b")], catch_exceptions=False).stdout

    assert "first parted: request 1 at 1.000 s" in told
    assert "A: instance 1, then 2, 0 tokens believed cached" in told
    assert "B: instance 1, then 3, 0 tokens believed cached" in told


def test_two_that_are_alike_part_nowhere() -> None:
    found = compare(results([0, 1]), results([0, 1]))

    assert found.first is None
    assert found.placed_differently.requests == 0


def test_rehearsals_of_other_requests_are_refused() -> None:
    other = results([0, 1])
    other["prompt"] = 7

    with pytest.raises(ConfigError, match="same traffic and seed"):
        compare(results([0, 1]), other)


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"requests\.npy"):
        read_results(tmp_path)
    (tmp_path / "requests.npy").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no requests\.npy of `jevons simulate --out`: No data left"):
        read_results(tmp_path)
    np.save(tmp_path / "requests.npy", np.zeros(3))
    with pytest.raises(ConfigError, match=r"no requests\.npy of `jevons simulate --out`: float64"):
        read_results(tmp_path)
