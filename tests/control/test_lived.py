"""The last minutes, kept to be rehearsed."""

from __future__ import annotations

import re

import msgspec
import pytest

from jevons.base.ids import RequestId, WorkerId
from jevons.control import lived
from jevons.control.lived import BLOCK, LATELY_S, Finished, Lately, Portion, Rows, Wanted
from jevons.control.router import Router
from jevons.facts.worker import WorkerFacts
from jevons.kv.blake2b import name_prompt
from jevons.policy.route import Placement

W = WorkerId("w")
SECRET = list(range(40_000, 40_064))


def finished(id: str, prompt: list[int] = SECRET) -> Finished:
    return Finished(
        id=RequestId(id),
        prompt=prompt,
        tokens=[7] * 8,
        output_tokens=8,
        placement=Placement(W, "kv", 0.1, 0, ""),
        first_s=None,
        cached_tokens=None,
    )


def test_what_is_older_than_ten_minutes_is_let_go() -> None:
    lately = Lately()
    for second in range(0, 1_200, 100):
        lately.answered(finished(str(second)), "", float(second), float(second))

    ids = [answered.id for answered in lately.since(0.0)]

    assert ids == [str(second) for second in range(1_100 - int(LATELY_S), 1_200, 100)]
    assert len(lately.since(1_050.0)) == 1


def test_who_is_let_go_is_nobodys_leader() -> None:
    lately, longer = Lately(), [*SECRET, *range(64)]
    lately.answered(finished("first", [*range(90_000, 90_064)]), "", 0.0, 0.0)
    lately.answered(finished("said"), "", 1.0, 1.0)
    lately.answered(finished("soon", longer), "", LATELY_S, LATELY_S)
    assert lately.since(0.0)[-1].leader == ("said", LATELY_S - 1.0)

    lately.answered(finished("late", [*longer, *range(64)]), "", 3 * LATELY_S, 3 * LATELY_S)
    assert [answered.leader for answered in lately.since(0.0)] == [None]
    assert len(lately._rows._talks) == 1


def test_memory_is_bounded_however_much_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lived, "LATELY_BYTES", 20_000)
    lately = Lately()
    for number in range(100):
        lately.answered(finished(str(number)), "", 0.0, 1.0)

    kept = lately.since(0.0)

    assert 0 < sum(len(msgspec.json.encode(each.row(0.5))) for each in kept) < sum(e.size_bytes for e in kept) <= 20_000
    assert kept[-1].id == "99"


def test_no_token_of_a_prompt_is_kept() -> None:
    lately = Lately()
    lately.answered(finished("a"), "", 0.0, 1.0)

    (answered,) = lately.since(0.0)

    assert not set(answered.row(0.0).hash_ids) & set(SECRET)
    assert not {str(token) for token in SECRET} & set(re.findall(r"\d+", repr(answered)))


@pytest.mark.parametrize("length", [5, 16, 40, 4_000])
@pytest.mark.parametrize("salt", ["", "tenant"])
def test_a_row_is_the_same_whoever_named_the_prompt(length: int, salt: str) -> None:
    prompt = list(range(length))
    # One that goes on elsewhere is named with what was said so far.
    for named in (prompt, [*prompt, *range(50)]):
        first = msgspec.structs.replace(finished("a", prompt), tokens=())
        talk = msgspec.structs.replace(finished("b", [*prompt, *range(32)]), tokens=())
        made = []
        for names in (None, name_prompt(named, BLOCK, salt)[1]):
            rows = Rows()
            named_first = msgspec.structs.replace(first, names=names)
            both = [rows.answered(named_first, salt, 1.0, 2.0), rows.answered(talk, salt, 3.0, 4.0)]
            made.append([msgspec.json.encode(each.row(0.5)) for each in both])

        assert made[0] == made[1]
        assert (b'"wait_for":["a"]' in made[1][1]) == (length >= BLOCK)


def test_the_router_tells_names_of_blocks_of_that_size_and_of_no_adapter() -> None:
    router = Router("kv")
    router.join(WorkerFacts(id=W, model="m", kind="vllm", sends_events=True, block_size=BLOCK))
    router.carry(W, ["poet"])
    router.on_beat(W, 0.0)
    router.place(RequestId("a"), SECRET, 0.0, salt="tenant", model="m")
    router.place(RequestId("adapted"), SECRET, 0.0, model="poet")

    names = router.names(RequestId("a"), BLOCK)

    assert names is not None
    assert names.tolist() == name_prompt(SECRET, BLOCK, "tenant")[1].tolist()
    assert router.names(RequestId("a"), 2 * BLOCK) is None
    assert router.names(RequestId("adapted"), BLOCK) is None
    assert router.names(RequestId("gone"), BLOCK) is None


def test_portions_make_up_the_whole_also_while_the_oldest_go_and_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lived, "PORTION", 3)
    lately = Lately()
    for second in range(10):
        lately.answered(finished(str(second)), "", float(second), float(second))

    first = lately.portion(Wanted(2.0))
    lately.answered(finished("late"), "", LATELY_S + 6.0, LATELY_S + 6.0)  # what was done before 6.0 is let go
    rest = []
    portion = lately.portion(Wanted(2.0, first.next))
    while portion.answered:
        rest += portion.answered
        portion = lately.portion(Wanted(2.0, portion.next))

    assert [each.id for each in first.answered] == ["2", "3", "4"]
    assert [each.id for each in rest] == ["6", "7", "8", "9", "late"]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(first), type=Portion) == first
