"""A record tells requests as a trace, without their text."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from jevons.base.errors import ConfigError
from jevons.base.ids import RequestId, WorkerId
from jevons.control.lived import BLOCK, Finished
from jevons.facts.trace import REQUESTS, STEPS, WORKERS, RecordedRow, RecordedStep, RecordedWorker
from jevons.facts.worker import StepReport, WorkerFacts
from jevons.policy.route import Placement
from jevons.serve.record import Recorder, RecordingRouter

PLACEMENT = Placement(WorkerId("w1"), "kv", 0.25, 16, "because")
FACTS = WorkerFacts(id=WorkerId("w1"), model="m", kind="reference", block_size=16, blocks=10, max_running=4)


def finished(id: str, prompt: list[int], tokens: list[int], first_s: float | None = 1.5) -> Finished:
    return Finished(
        id=RequestId(id),
        prompt=prompt,
        tokens=tokens,
        output_tokens=len(tokens),
        placement=PLACEMENT,
        first_s=first_s,
        cached_tokens=16,
    )


def rows(folder: Path) -> list[RecordedRow]:
    return msgspec.json.Decoder(RecordedRow).decode_lines((folder / REQUESTS).read_bytes())


def test_a_request_is_told_with_what_was_predicted_and_measured(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", "kv", lambda: 1.0)

    recorder.answered(finished("a", list(range(40)), [7, 8, 9]), "", arrived_s=1.25, done_s=2.5)

    (row,) = rows(tmp_path / "r")
    assert (row.request_id, row.input_length, row.output_length, row.timestamp) == ("a", 40, 3, 250.0)
    assert (row.worker, row.predicted_ttft_ms, row.predicted_cached_tokens) == ("w1", 250.0, 16)
    assert (row.ttft_ms, row.done_ms, row.cached_tokens) == (250.0, 1250.0, 16)
    assert row.tpot_ms == pytest.approx(500.0)
    assert row.wait_for == []
    recorder.close()


def test_equal_beginnings_have_equal_ids_and_tenants_share_none(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", "kv", lambda: 0.0)
    same = list(range(2 * BLOCK))

    for id, last, salt in (("a", 1, ""), ("b", 2, ""), ("c", 1, "tenant")):
        recorder.answered(finished(id, [*same, last], [5]), salt, 0.0, 1.0)

    a, b, c = (row.hash_ids for row in rows(tmp_path / "r"))
    assert len(a) == 3  # two full blocks, and what is left
    assert a[:2] == b[:2]
    assert a[2] != b[2]
    assert not set(a) & set(c)
    assert all(0 <= id < 1 << 36 for id in a)
    recorder.close()


def test_who_goes_on_with_a_conversation_waits_for_the_answer(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", "kv", lambda: 0.0)
    first, answer = list(range(50)), [100, 101, 102]
    again = [*first, *answer, *range(200, 220)]

    recorder.answered(finished("a", first, answer), "", 0.0, 2.0)
    recorder.answered(finished("b", again, [1]), "", 3.5, 4.0)
    recorder.answered(finished("other", list(range(900, 960)), [1]), "", 3.5, 4.0)
    recorder.answered(finished("too early", [*again, 1, 2, *range(40)], [1]), "", 3.9, 5.0)

    _, b, other, early = rows(tmp_path / "r")
    assert (b.wait_for, b.delay) == (["a"], 1500.0)
    assert (other.wait_for, other.delay) == ([], None)
    assert early.wait_for == ["a"]  # "b" was not done when it came
    recorder.close()


def test_the_same_prompt_again_waits_for_nobody(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", "kv", lambda: 0.0)

    recorder.answered(finished("a", list(range(64)), [1]), "", 0.0, 1.0)
    recorder.answered(finished("b", list(range(64)), [1]), "", 2.0, 3.0)

    assert rows(tmp_path / "r")[1].wait_for == []
    recorder.close()


def test_workers_and_their_steps_are_told_by_the_router(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", "kv", lambda: 0.0)
    router = RecordingRouter(recorder, "kv", hang_s=1.0, shadow_ttl_s=10.0)

    router.join(FACTS)
    router.on_step(FACTS.id, StepReport(0.5, 128, 8128, 3))
    recorder.close()

    told = msgspec.json.decode((tmp_path / "r" / WORKERS).read_bytes(), type=RecordedWorker)
    assert (told.policy, told.id, told.blocks, told.max_running) == ("kv", "w1", 10, 4)
    step = msgspec.json.decode((tmp_path / "r" / STEPS).read_bytes(), type=RecordedStep)
    assert step == RecordedStep("w1", 0.5, 128, 8128, 3, 0.0)
    assert router.snapshot().workers[0].measurements == 1


def test_a_folder_with_a_record_is_not_written_over(tmp_path: Path) -> None:
    Recorder(tmp_path / "r", "kv", lambda: 0.0).close()

    with pytest.raises(ConfigError, match="must hold no record yet"):
        Recorder(tmp_path / "r", "kv", lambda: 0.0)


def test_what_cannot_be_written_is_counted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", "kv", lambda: 0.0)
    kept = recorder._files[REQUESTS]
    with Path("/dev/full").open("wb", buffering=0) as full:
        recorder._files[REQUESTS] = full
        recorder.answered(finished("a", [1, 2, 3], [4]), "", 0.0, 1.0)
    recorder._files[REQUESTS] = kept

    recorder.answered(finished("b", [1, 2, 3], [4]), "", 0.0, 1.0)
    recorder.close()

    assert recorder.lost == 1
    assert [row.request_id for row in rows(tmp_path / "r")] == ["b"]
