"""The last minutes, kept to be rehearsed."""

from __future__ import annotations

import msgspec
import pytest

from jevons.base.ids import RequestId, WorkerId
from jevons.control import lived
from jevons.control.lived import LATELY_S, Finished, Lately
from jevons.facts.trace import RecordedRow
from jevons.policy.route import Placement

SECRET = list(range(40_000, 40_064))


def finished(id: str, prompt: list[int] = SECRET) -> Finished:
    return Finished(
        id=RequestId(id),
        prompt=prompt,
        tokens=[7] * 8,
        output_tokens=8,
        placement=Placement(WorkerId("w"), "kv", 0.1, 0, ""),
        first_s=None,
        cached_tokens=None,
    )


def test_what_is_older_than_ten_minutes_is_let_go() -> None:
    lately = Lately(0.0)
    for second in range(0, 1_200, 100):
        lately.answered(finished(str(second)), "", float(second), float(second))

    ids = [msgspec.json.decode(line, type=RecordedRow).request_id for line in lately.since(0.0)]

    assert ids == [str(second) for second in range(1_100 - int(LATELY_S), 1_200, 100)]
    assert len(lately.since(1_050.0)) == 1


def test_memory_is_bounded_however_much_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lived, "LATELY_BYTES", 2_000)
    lately = Lately(0.0)
    for number in range(100):
        lately.answered(finished(str(number)), "", 0.0, 1.0)

    kept = lately.since(0.0)

    assert 0 < sum(map(len, kept)) <= 2_000
    assert msgspec.json.decode(kept[-1], type=RecordedRow).request_id == "99"


def test_no_token_of_a_prompt_is_kept() -> None:
    lately = Lately(0.0)
    lately.answered(finished("a"), "", 0.0, 1.0)

    row = msgspec.json.decode(lately.since(0.0)[0], type=RecordedRow)

    assert not set(row.hash_ids) & set(SECRET)
