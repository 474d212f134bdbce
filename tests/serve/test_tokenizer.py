from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from jevons.base.errors import ModelError, RequestError
from jevons.serve.tokenizer import Detokenizer, StopFinder, Tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ã", "©"), ("ð", "Ł")]  # é, and half of an emoji
TEMPLATE = "{% for m in messages %}<s>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"


def byte_level() -> tokenizers.Tokenizer:
    tokens = ["<s>", "</s>", *BYTES, *(left + right for left, right in MERGES)]
    hf = tokenizers.Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, MERGES))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens(["<s>", "</s>"])
    hf.add_tokens([AddedToken("[to ol]", normalized=False), AddedToken("é日", normalized=False)])
    return hf


def fallback(strip: bool = True) -> tokenizers.Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "é", "▁▁h", "日", "<0xZZ>"]
    hf = tokenizers.Tokenizer(
        models.BPE({token: id for id, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    hf.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    hf.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    hf.add_special_tokens(["<unk>", "<s>", "</s>"])
    return hf


def write(directory: Path, hf: tokenizers.Tokenizer, **files: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    hf.save(str(directory / "tokenizer.json"))
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return directory


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
    directory = write(
        tmp_path_factory.mktemp("bytes"),
        byte_level(),
        tokenizer_config=settings,
        config={"max_position_embeddings": 64},
        generation_config={"eos_token_id": [1, 7]},
    )
    return Tokenizer(directory)


@pytest.fixture(
    scope="module", params=[byte_level, fallback, lambda: fallback(strip=False)], ids=["bytes", "strip", "fuse"]
)
def any_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write(tmp_path_factory.mktemp("any"), request.param()))


def pushed(tokenizer: Tokenizer, ids: Sequence[int], cuts: Sequence[int] = ()) -> list[str]:
    """What each push and the flush gave; the ids are cut into pieces at `cuts`, by default one by one."""
    detokenizer = Detokenizer(tokenizer)
    ends = sorted({min(cut, len(ids)) for cut in cuts} | {len(ids)}) if cuts else range(1, len(ids) + 1)
    starts = [0, *ends][:-1]
    return [*(detokenizer.push(ids[start:end]) for start, end in zip(starts, ends, strict=True)), detokenizer.flush()]


def test_what_the_model_says_of_itself_is_known(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab, tokenizer.eos_ids, tokenizer.context_tokens) == (266, frozenset({1, 7}), 64)


def test_text_survives_there_and_back(tokenizer: Tokenizer) -> None:
    text = "hello é\t日本 😀 \x00\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_in_text_are_recognised_and_not_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<s>hello</s>")
    assert (ids[0], ids[-1], len(ids)) == (0, 1, 3)
    assert tokenizer.decode(ids) == "hello"


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        ({}, [0]),  # what tokenizer.json does stays
        ({"add_bos_token": False}, []),
        ({"add_bos_token": True}, [0]),
        ({"add_eos_token": True}, [1]),
        ({"add_bos_token": True, "add_eos_token": True}, [0, 1]),
    ],
)
def test_opening_and_closing_tokens_are_added_as_the_settings_say(
    tmp_path: Path, settings: dict[str, Any], added: list[int]
) -> None:
    hf = byte_level()
    hf.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    found = Tokenizer(write(tmp_path, hf, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"} | settings))
    plain = found.encode("h", special=False)
    assert len(plain) == 1
    assert [id for id in found.encode("h") if id not in plain] == added


def test_a_chat_is_encoded_without_adding_tokens_again(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "add_bos_token": True, "chat_template": TEMPLATE}
    found = Tokenizer(write(tmp_path, byte_level(), tokenizer_config=settings))
    messages = [{"role": "user", "content": "hello"}]
    assert found.render(messages) == "<s>hello<s>"
    assert list(found.encode_chat(messages)) == [0, *found.encode("hello", special=False), 0]
    assert found.encode_chat(messages, add_generation_prompt=False)[-1] != 0


def test_truncation_and_padding_of_the_training_are_forgotten(tmp_path: Path) -> None:
    hf = byte_level()
    hf.enable_truncation(2)
    hf.enable_padding(length=8)
    assert len(Tokenizer(write(tmp_path, hf)).encode("abcd")) == 4


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_half_a_surrogate_pair_is_the_clients_fault(tokenizer: Tokenizer, field: str) -> None:
    ask: dict[str, Callable[[], Sequence[int]]] = {
        "prompt": lambda: tokenizer.encode("\ud83d"),
        "messages": lambda: tokenizer.encode_chat([{"role": "user", "content": "\ud83d"}]),
    }
    with pytest.raises(RequestError, match="half of a surrogate pair") as refused:
        ask[field]()
    assert refused.value.param == field


def test_the_end_token_of_the_config_counts_where_nothing_else_names_one(tmp_path: Path) -> None:
    assert Tokenizer(write(tmp_path, byte_level(), config={"eos_token_id": 5})).eos_ids == {5}


def test_one_token_can_be_shown_alone(tokenizer: Tokenizer) -> None:
    ids = {name: tokenizer.encode(name)[0] for name in ("hello", "é", "<s>", "[to ol]")}
    assert [tokenizer.token_text(id) for id in ids.values()] == list(ids)
    half = tokenizer.encode("😀")[0]
    assert (tokenizer.token_bytes(half), tokenizer.token_text(half)) == (b"\xf0\x9f", "\N{REPLACEMENT CHARACTER}")
    assert (tokenizer.token_bytes(9_999), tokenizer.token_text(9_999)) == (b"", "")


@given(data=st.data())
def test_pieces_and_rest_together_are_the_whole_text(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, any_tokenizer.vocab + 3)))
    cuts = data.draw(st.lists(st.integers(0, len(ids))))
    assert "".join(pushed(any_tokenizer, ids, cuts)) == any_tokenizer.decode(ids)


@given(text=st.text(), noise=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 265))))
@example("日本語 😀👩‍👩‍👧‍👦", [])
def test_so_they_are_for_text_with_tokens_lost_or_put_in(
    any_tokenizer: Tokenizer, text: str, noise: list[tuple[int, int]]
) -> None:
    ids = list(any_tokenizer.encode(text))
    for place, id in noise:
        ids[place : place + id % 2] = [id]
    assert "".join(pushed(any_tokenizer, ids)) == any_tokenizer.decode(ids)


def test_a_character_is_sent_when_its_last_byte_comes(tokenizer: Tokenizer) -> None:
    assert pushed(tokenizer, tokenizer.encode("a😀b")) == ["a", "", "", "😀", "b", ""]


def test_bytes_that_can_become_nothing_are_sent_at_once(tokenizer: Tokenizer) -> None:
    lone = tokenizer.encode("日", special=False)[-1]
    assert pushed(tokenizer, [lone]) == ["\N{REPLACEMENT CHARACTER}", ""]


def test_an_unfinished_character_is_flushed_as_a_replacement(tokenizer: Tokenizer) -> None:
    assert pushed(tokenizer, tokenizer.encode("😀")[:-1]) == ["", "", "\N{REPLACEMENT CHARACTER}"]


def test_no_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert (detokenizer.push([]), detokenizer.flush()) == ("", "")


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.Metaspace(), None])
def test_a_decoder_we_cannot_follow_is_refused(tmp_path: Path, decoder: Any) -> None:
    hf = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    if decoder:
        hf.decoder = decoder
    with pytest.raises(ModelError, match=r"tokenizer\.json: decoder must be ByteLevel, or .*; got \w+"):
        Tokenizer(write(tmp_path, hf))


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be read \(No such file"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": 1}'])
def test_a_broken_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json: .*fetch the model again"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("[]", "must be a JSON object, got list")])
def test_broken_settings_are_refused(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, byte_level())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ModelError, match=rf"tokenizer_config\.json: {message}"):
        Tokenizer(tmp_path)


def test_a_process_that_has_encoded_may_fork(tmp_path: Path) -> None:
    write(tmp_path, byte_level())
    script = (
        "import os, sys; from pathlib import Path; from jevons.serve.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer(Path(sys.argv[1])); tokenizer.encode('hello ' * 10_000)\n"
        "if os.fork() == 0: tokenizer.encode('hello'); os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]) or 'torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def finder_output(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    finder, sent, stopped = StopFinder(stops), "", False
    for piece in pieces:
        safe, stopped = finder.push(piece)
        sent += safe
    return sent + finder.flush(), stopped


def first_stop(stops: list[str], text: str) -> tuple[str, bool]:
    """The rule, slowly: the shortest beginning that ends with a stop string, without the longest that it ends with."""
    for end in range(1, len(text) + 1):
        if lengths := [len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(lengths)], True
    return text, False


@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=3), st.lists(st.text("abc", max_size=4), max_size=8))
def test_stops_are_found_wherever_the_text_is_cut(stops: list[str], pieces: list[str]) -> None:
    assert finder_output(stops, pieces) == first_stop(stops, "".join(pieces))


def test_a_tail_that_may_begin_a_stop_is_held_back() -> None:
    finder = StopFinder(["\n\nUser:"])
    assert [finder.push(piece) for piece in ("Hi\n", "\nUs", "e", "less")] == [
        ("Hi", False),
        ("", False),
        ("", False),
        ("\n\nUseless", False),
    ]


def test_after_a_stop_nothing_more_is_sent() -> None:
    finder = StopFinder(["END", "stop"])
    assert finder.push("all is well. END of it") == ("all is well. ", True)
    assert finder.push("more") == ("", True)
    assert finder.flush() == ""


def test_without_stop_strings_all_text_is_safe() -> None:
    assert StopFinder([]).push("anything") == ("anything", False)


def test_a_long_repetitive_stop_costs_no_more_per_character() -> None:
    # Comparing anew at each character would take 10^10 steps here.
    finder = StopFinder(["a" * 100_000 + "b"])
    assert finder.push("a" * 200_000) == ("a" * 100_000, False)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="stop: must be a string of at least 1 character") as refused:
        StopFinder(["a", ""])
    assert refused.value.param == "stop"


@pytest.mark.model
def test_the_embedded_models_tokens_are_hugging_faces(model_dir: Path) -> None:
    tokenizer = Tokenizer(model_dir)
    assert (tokenizer.vocab, tokenizer.eos_ids, tokenizer.context_tokens) == (49_152, frozenset({2}), 8_192)
    # By transformers 5.19.0, apply_chat_template
    assert list(tokenizer.encode_chat([{"role": "user", "content": "hi"}])) == [
        1,
        9690,
        198,
        2683,
        359,
        253,
        5356,
        5646,
        11173,
        3365,
        3511,
        308,
        34519,
        28,
        7018,
        411,
        407,
        19712,
        8182,
        2,
        198,
        1,
        4093,
        198,
        6004,
        2,
        198,
        1,
        520,
        9531,
        198,
    ]
    assert list(tokenizer.encode("In 2024, 日本 😀\n\tx = 10**3")) == [
        788,
        216,
        34,
        32,
        34,
        36,
        28,
        17097,
        241,
        115,
        40993,
        40303,
        218,
        198,
        197,
        104,
        446,
        216,
        33,
        32,
        828,
        35,
    ]


@pytest.mark.model
def test_the_embedded_models_pieces_are_its_text(model_dir: Path) -> None:
    tokenizer = Tokenizer(model_dir)
    ids = [*range(tokenizer.vocab), *range(tokenizer.vocab - 1, 0, -7)]
    assert "".join(pushed(tokenizer, ids)) == tokenizer.decode(ids)
