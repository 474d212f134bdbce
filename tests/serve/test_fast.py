"""The fast tokenizer says what Hugging Face's does, or is not used."""

from __future__ import annotations

import logging
import random
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jevons.base.errors import RequestError
from jevons.control.router import Router
from jevons.serve import fast
from jevons.serve.fast import CHECK_EVERY, Fast, proof_texts
from jevons.serve.metrics import Metrics
from jevons.serve.prompts import Prompts, Served, local_encoder
from jevons.serve.seams import STEP
from jevons.serve.tokenizer import Tokenizer

pytest.importorskip("fastokens", reason="fastokens has no wheel for this platform")
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def slow(model_dir: Path) -> Tokenizer:
    return Tokenizer(model_dir)


@pytest.fixture(scope="module")
def hasty(model_dir: Path) -> Tokenizer:
    made = Tokenizer(model_dir)
    assert made.hasten() == "fastokens"
    return made


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400))
@settings(max_examples=300)
def test_any_text_comes_to_the_same_tokens(slow: Tokenizer, hasty: Tokenizer, text: str) -> None:
    assert hasty.encode(text) == slow.encode(text)


@given(st.lists(st.sampled_from([*fast.PIECES, "<|im_start|>", "<|endoftext|>"]), max_size=200))
def test_texts_of_corners_come_to_the_same_tokens(slow: Tokenizer, hasty: Tokenizer, pieces: list[str]) -> None:
    assert hasty.encode("".join(pieces)) == slow.encode("".join(pieces))


def test_a_chat_comes_to_the_same_tokens(slow: Tokenizer, hasty: Tokenizer) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "héllo <|im_end|>\n\n 12345"}]

    assert hasty.encode_chat(talk) == slow.encode_chat(talk)


def test_half_a_surrogate_pair_is_refused_as_before(hasty: Tokenizer) -> None:
    with pytest.raises(RequestError, match="half of a surrogate pair"):
        hasty.encode("a\ud83d")


class Wrong:
    """A foreign tokenizer that gets one character wrong."""

    def __init__(self, real: Any, bad: str) -> None:
        self._real = real
        self._bad = bad

    def enable_segment_cache(self, max_bytes: int) -> None:
        self._real.enable_segment_cache(max_bytes)

    def encode_batch_flat(self, texts: list[str], add_special_tokens: bool = False) -> Any:
        wrong = [text.replace(self._bad, "?") for text in texts]
        return self._real.encode_batch_flat(wrong, add_special_tokens=add_special_tokens)


def test_one_that_encodes_a_corner_otherwise_is_not_taken(slow: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastokens

    real = fastokens.Tokenizer

    class Other:
        @staticmethod
        def from_json_str(json: str) -> Wrong:
            return Wrong(real.from_json_str(json), "\u2003")

    monkeypatch.setattr(fastokens, "Tokenizer", Other)
    with pytest.raises(ValueError, match="otherwise than tokenizers"):
        Fast(slow._hf)


def test_one_that_is_found_wrong_later_is_used_no_more(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = Tokenizer(model_dir)
    assert made.hasten() == "fastokens"
    assert made._fast is not None
    made._fast._fast = Wrong(made._fast._fast, "Q")
    right = array("I", made._hf.encode("Q").ids)

    with caplog.at_level(logging.ERROR, "jevons.tokenizer"):
        answers = [made.encode("Q") for _ in range(CHECK_EVERY + 1)]

    assert answers[-1] == answers[-2] == right
    assert made._fast is None
    assert "no longer used" in caplog.text
    assert (made.mismatches, made.encoder) == (1, "tokenizers: fastokens encoded a prompt otherwise")


def test_a_long_text_is_checked_part_by_part(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Tokenizer(model_dir)
    assert made.hasten() == "fastokens"
    assert made._fast is not None
    assert made._fast.cuts
    made._fast._fast = Wrong(made._fast._fast, "Q")
    text, checked = " ".join(["the router"] * 300 + ["Q"] + ["the router"] * 100), list[int]()
    slow = made._fast._slow

    def counting(part: str, special: bool) -> array[int]:
        checked.append(len(part))
        return slow(part, special)

    monkeypatch.setattr(made._fast, "_slow", counting)
    turns = next(turn for turn in range(1, 10 * CHECK_EVERY) if made.encode(text) and made._fast is None)

    assert turns % CHECK_EVERY == 0
    assert max(checked) < 2 * STEP
    assert made.encode(text) == array("I", made._hf.encode(text).ids)


def test_texts_of_a_proof_are_the_same_each_time_and_name_every_special_token() -> None:
    texts = list(proof_texts(["<|im_start|>"]))

    assert texts == list(proof_texts(["<|im_start|>"]))
    assert len(texts) > 400
    assert sum("<|im_start|>" in text for text in texts) > 10


def test_which_tokenizer_encodes_and_what_it_got_wrong_is_in_the_metrics(model_dir: Path) -> None:
    made, prompts = Tokenizer(model_dir), Prompts()
    prompts.serve(Served("smol", local_encoder(made), None))
    metrics = Metrics(Router(), prompts=prompts)
    assert 'jevons_tokenizer_fast{model="smol"} 0.0' in b"".join(metrics.pieces()).decode()
    made.hasten()
    made.mismatches += 1

    page = b"".join(metrics.pieces()).decode()
    assert 'jevons_tokenizer_fast{model="smol"} 1.0' in page
    assert 'jevons_tokenizer_mismatches_total{model="smol"} 1.0' in page


WORDS = ["the", "router", "naïve", "日本語", "don't", "12", "x=1;\n", "<|im_end|>", "  ", "A", "b", "\u0301", "▁"]


@given(st.lists(st.sampled_from(WORDS), min_size=200, max_size=1_500), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_long_texts_in_parts_come_to_the_same_tokens(
    slow: Tokenizer, hasty: Tokenizer, words: list[str], seed: int
) -> None:
    draw = random.Random(seed)
    text = "".join(word + draw.choice(("", " ", " ", " ", "\n")) for word in words)

    assert hasty._fast is not None
    assert hasty._fast.cuts
    assert hasty.encode(text) == slow.encode(text)
    assert hasty.encode(text + " and more") == slow.encode(text + " and more")
