"""What is known, kept in a file: whole, or not used at all."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from jevons.base.ids import WorkerId
from jevons.config import make
from jevons.control.router import Router
from jevons.facts.event import BlocksStored, KvPayload
from jevons.facts.state import WorkerState
from jevons.facts.worker import WorkerFacts
from jevons.serve.app import _Memory, _Surroundings
from jevons.serve.fleet import Fleet
from jevons.serve.front import Front
from jevons.serve.kept import Kept, decode, encode
from jevons.serve.prompts import Prompts
from jevons.wire.codec import encode_batch

ID = WorkerId("host:1")


def known() -> Router:
    """A router that knows a worker with four blocks."""
    router = Router()
    router.join(WorkerFacts(id=ID, model="m", kind="openai"))
    stored = BlocksStored(hashes=[-1, 2**64 - 1, b"x" * 32, 4], tokens=list(range(64)), block_size=16)
    router.intake(ID).on_batch(KvPayload(0, encode_batch(1_000.5, [stored])))  # as it comes from an engine
    return router


def saved(path: Path) -> bytes:
    asyncio.run(Kept(path).save(known()))
    return path.read_bytes()


def test_what_is_saved_is_recalled(tmp_path: Path) -> None:
    saved(tmp_path / "deep" / "state")
    router, kept = Router(), Kept(tmp_path / "deep" / "state")

    assert kept.load(router, [ID]) == 1
    assert router.state(ID) == known().state(ID)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state"]


def test_workers_that_are_not_served_any_more_are_left_out(tmp_path: Path) -> None:
    saved(tmp_path / "state")
    router = Router()

    assert Kept(tmp_path / "state").load(router, [WorkerId("other:1")]) == 0
    assert router.state(ID) is None


def test_what_is_known_of_a_worker_that_has_not_come_back_yet_is_kept(tmp_path: Path) -> None:
    saved(tmp_path / "state")
    router, kept = Router(), Kept(tmp_path / "state")
    kept.load(router, [ID])
    router.join(WorkerFacts(id=WorkerId("other:1"), model="m", kind="openai"))
    asyncio.run(kept.save(router))

    assert [state.worker for state in decode((tmp_path / "state").read_bytes())] == ["other:1", ID]
    assert decode((tmp_path / "state").read_bytes())[1] == known().state(ID)


def test_a_file_is_not_written_before_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, router, kept = saved(tmp_path / "state"), Router(), Kept(tmp_path / "state")
    settings = make({"engines": ["http://host:1"]}, "test")
    front = Front(settings, router, Fleet(settings, router, lambda: 0.0), Prompts(), lambda: 0.0)
    memory = _Memory(front, router, _Surroundings(None, kept, None, None, None))
    monkeypatch.setattr("jevons.serve.kept.SAVE_S", 0.0)

    async def go() -> None:
        keeping = [asyncio.create_task(work) for work in memory.works()]
        for _ in range(20):
            await asyncio.sleep(0)  # kernels are compiled meanwhile, which may take a minute
        await memory.end()
        assert (tmp_path / "state").read_bytes() == before
        assert await memory.recall([ID])
        while not kept.counts["saved"]:  # noqa: ASYNC110 — a thread writes
            await asyncio.sleep(0)
        for each in keeping:
            each.cancel()

    asyncio.run(go())
    assert decode((tmp_path / "state").read_bytes()) == [known().state(ID)]


def test_no_file_is_no_fault(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "state")
    assert kept.load(Router(), [ID]) == 0
    assert not kept.counts["refused"]


@pytest.mark.parametrize("what", ["cut", "flipped", "other", "empty", "longer", "without its end"])
def test_a_file_that_is_not_whole_is_said_once_counted_and_not_used(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    raw = saved(path)
    end = len(list(encode([]))[-1])
    path.write_bytes(
        {
            "cut": raw[:-1],
            "flipped": raw[:60] + bytes([raw[60] ^ 1]) + raw[61:],
            "other": b"jevons state 9\n" + raw[15:],
            "empty": b"",
            "longer": raw + b"x",
            "without its end": raw[:-end],
        }[what]
    )
    router, kept = Router(), Kept(path)
    with caplog.at_level(logging.WARNING):
        assert kept.load(router, [ID]) == 0

    assert router.state(ID) is None
    assert kept.counts["refused"] == 1
    assert len(caplog.records) == 1


def test_a_file_that_names_blocks_otherwise_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = saved(tmp_path / "state")
    assert len(decode(raw)) == 1
    monkeypatch.setattr("jevons.serve.kept._naming", lambda: b"otherwise")

    kept = Kept(tmp_path / "state")
    assert (kept.load(Router(), [ID]), kept.counts["refused"]) == (0, 1)


def test_a_place_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept = Kept(tmp_path / "file" / "state")
    asyncio.run(kept.save(known()))

    assert (kept.counts["saved"], kept.counts["unsaved"]) == (0, 1)


def test_a_worker_that_cannot_be_told_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    router, state = known(), Router.state
    router.join(WorkerFacts(id=WorkerId("odd:1"), model="m", kind="openai"))

    def fails(self: Router, worker: WorkerId) -> WorkerState | None:
        if worker == "odd:1":
            raise ZeroDivisionError("of all things")
        return state(self, worker)

    monkeypatch.setattr(Router, "state", fails)
    kept = Kept(tmp_path / "state")
    for _ in range(2):
        asyncio.run(kept.save(router))

    assert [found.worker for found in decode((tmp_path / "state").read_bytes())] == [ID]
    assert kept.counts == {"saved": 2, "left_out": 2}
    assert [record.message for record in caplog.records] == [
        f"state {tmp_path / 'state'}: worker odd:1 is left out: of all things"
    ]


def test_whatever_keeps_a_file_from_being_written_or_read_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "state")

    def fails(_: object) -> None:
        raise RecursionError("of all things")

    kept = Kept(tmp_path / "state")
    monkeypatch.setattr("jevons.serve.kept.encode", fails)
    monkeypatch.setattr("jevons.serve.kept.decode", fails)
    asyncio.run(kept.save(known()))

    assert kept.load(Router(), [ID]) == 0
    assert kept.counts == {"unsaved": 1, "refused": 1}
    told = {sample.labels["fate"]: sample.value for sample in next(iter(kept.collect())).samples}
    assert told == {"unsaved": 1.0, "refused": 1.0}
