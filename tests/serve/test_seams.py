"""Long texts in parts: nothing is lost, what begins alike is cut alike, and what is kept is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jevons.serve import seams
from jevons.serve.seams import STEP, Parts, parts_of

WORDS = st.lists(st.sampled_from(["a", "word", "日本", "1", "\n", "long" * 40]), max_size=2_000).map(" ".join)


@given(WORDS)
def test_parts_are_the_text(text: str) -> None:
    assert "".join(parts_of(text)) == text


@given(WORDS, WORDS, WORDS)
def test_texts_that_begin_alike_are_cut_alike(begin: str, one: str, other: str) -> None:
    same = parts_of(begin)[:-1]

    assert parts_of(begin + " " + one)[: len(same)] == same
    assert parts_of(begin + " " + other)[: len(same)] == same


def test_a_text_without_a_seam_is_one_part() -> None:
    assert len(parts_of("日本語 " * 5_000)) == 1


def test_a_part_is_encoded_once_and_the_last_one_each_time() -> None:
    asked: list[str] = []

    def encode(part: str) -> bytes:
        asked.append(part)
        return bytes([len(part) % 7] * 4)

    parts, text = Parts(encode), "word and " * 600
    first = parts.encode(text)
    cut = len(asked)

    assert parts.encode(text) == first
    assert asked[cut:] == [parts_of(text)[-1]]


def test_the_parts_kept_are_bounded_and_those_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "MOST_CHARACTERS", 3 * STEP)
    asked: list[str] = []

    def encode(part: str) -> bytes:
        asked.append(part)
        return bytes(4)

    parts = Parts(encode)
    texts = [f"{name} " * STEP for name in ("ab", "cd", "ef", "gh")]
    for text in texts:
        parts.encode(text)
    before = len(asked)
    parts.encode(texts[-1])

    assert len(asked) == before + 1  # its last part
    parts.encode(texts[0])
    assert len(asked) > before + 2
