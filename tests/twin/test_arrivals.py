"""What arrives: traces of three kinds read as they are meant, an error for each that is wrong, made-up sessions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from jevons.base.errors import ConfigError
from jevons.config.scenario import Traffic
from jevons.twin import arrivals as module
from jevons.twin.arrivals import TRACE_BLOCK, Piece, arrivals
from jevons.twin.sessions import KINDS
from jevons.twin.workload import read_trace

DAY_S = 86_400.0


def mooncake(at_ms: float, prompt: int = 1_000, output: int = 10, ids: tuple[int, ...] = (1, 2)) -> str:
    return json.dumps({"timestamp": at_ms, "input_length": prompt, "output_length": output, "hash_ids": ids})


def sized(block_size: int) -> str:
    return json.dumps({**json.loads(mooncake(0)), "block_size": block_size})


def asked(at_s: float) -> str:
    return json.dumps({"timestamp": at_s, "prompt": "?", "max_tokens": 1})


def written(tmp_path: Path, *lines: str, name: str = "trace.jsonl") -> Path:
    file = tmp_path / name
    file.write_text("".join(line + "\n" for line in lines))
    return file


def read(trace: Path, **more: Any) -> list[Piece]:
    return list(arrivals(Traffic(trace=str(trace), **more), 0))


def made(kind: str, seed: int = 0, **more: Any) -> list[Piece]:
    return list(arrivals(Traffic(kind=kind, **more), seed))


def column(pieces: list[Piece], name: str) -> list[Any]:
    return [value for piece in pieces for value in piece.requests[name].tolist()]


def ids(pieces: list[Piece]) -> list[list[int]]:
    return [piece.ids[row["ids"] : row["ids"] + row["count"]].tolist() for piece in pieces for row in piece.requests]


def test_a_mooncake_trace_is_its_requests(tmp_path: Path) -> None:
    pieces = read(written(tmp_path, mooncake(0), mooncake(500, 700, 0, (1, 3)), mooncake(500, 90, 7, ())))

    assert column(pieces, "at_s") == [0.0, 0.5, 0.5]
    assert column(pieces, "prompt") == [1_000, 700, 90]
    assert column(pieces, "output") == [10, 1, 7]  # who asks for nothing gets a first token
    assert ids(pieces) == [[1, 2], [1, 3], []]


def test_blank_lines_and_a_missing_end_of_line_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(f"{mooncake(0)}\n\n{mooncake(1)}\n{mooncake(2)}")

    assert column(read(file), "at_s") == [0.0, 0.001, 0.002]


def test_an_azure_trace_begins_at_its_first_request(tmp_path: Path) -> None:
    rows = ["2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:04.4799600,110,27"]
    pieces = read(written(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", *rows, name="trace.csv"))

    assert column(pieces, "at_s") == pytest.approx([0.0, 0.5])
    assert column(pieces, "prompt") == [4_808, 110]
    assert column(pieces, "output") == [10, 27]
    assert ids(pieces) == [[], []]


def test_an_azure_trace_with_zones_may_leave_out_the_fraction_of_a_whole_second(tmp_path: Path) -> None:
    times = ["2024-05-10 00:00:00.25+00:00", "2024-05-10 00:00:01+00:00", "2024-05-10 02:00:01.5+02:00"]
    trace = written(
        tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", *(f"{at},48,1" for at in times), name="trace.csv"
    )

    assert column(read(trace), "at_s") == [0.0, 0.75, 1.25]
    assert [request.at_s for request in read_trace(trace)] == [0.0, 0.75, 1.25]


def test_a_trace_that_begins_with_a_byte_order_mark_is_read_as_without(tmp_path: Path) -> None:
    azure, lines = tmp_path / "trace.csv", tmp_path / "trace.jsonl"
    azure.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,48,1\n", encoding="utf-8-sig")
    lines.write_text(f"{mooncake(0, 48)}\n", encoding="utf-8-sig")

    assert column(read(azure), "prompt") == column(read(lines), "prompt") == [48]
    assert [request.input_tokens for file in (azure, lines) for request in read_trace(file)] == [48, 48]


def test_requests_as_clients_send_them_share_what_their_texts_begin_with(tmp_path: Path) -> None:
    system = {"role": "system", "content": "You answer briefly. " * 250}  # 5,000 letters
    asks = [{"messages": [system, {"role": "user", "content": text}], "max_tokens": 64} for text in ("one", "other")]
    lines = [
        json.dumps({"timestamp": 1_760_000_010 + i, "body": ask, "output_tokens": 20 + i}) for i, ask in enumerate(asks)
    ]
    lines.append(json.dumps({"timestamp": 1_760_000_012.5, "prompt": "x" * 400, "max_tokens": 5}))
    pieces = read(written(tmp_path, *lines))

    assert column(pieces, "at_s") == [0.0, 1.0, 2.5]  # as in an Azure trace: who logs them has the time of day
    assert column(pieces, "output") == [20, 21, 5]
    first, second, third = column(pieces, "prompt")
    assert 1_250 < first <= second < 1_270
    assert third == 100
    one, other, alone = ids(pieces)
    assert (len(one), one[:2], one[2] == other[2]) == (3, other[:2], False)
    assert alone[0] not in one


@pytest.mark.parametrize("began_ms", [1_760_000_000_000.0, 58_233.5, -5_000.0])
def test_a_mooncake_trace_begins_at_its_first_request(tmp_path: Path, began_ms: float) -> None:
    trace = written(tmp_path, *(mooncake(began_ms + later) for later in (0, 500, 90_000)))

    assert column(read(trace), "at_s") == pytest.approx([0.0, 0.5, 90.0])
    assert column(read(trace, seconds=1.0, speed=2.0), "at_s") == pytest.approx([0.0, 0.25])
    assert [request.at_s for request in read_trace(trace)] == pytest.approx([0.0, 0.5, 90.0])


def test_a_trace_is_unpacked_where_it_is_packed(tmp_path: Path) -> None:
    azure, lines, cut = (tmp_path / name for name in ("trace.csv.gz", "trace.jsonl.gz", "cut.jsonl.gz"))
    azure.write_bytes(gzip.compress(b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.97,48,1\r\n"))
    lines.write_bytes(gzip.compress(f"{mooncake(0, 48)}\r\n".encode("utf-8-sig")))
    cut.write_bytes(lines.read_bytes()[:-20])

    assert column(read(azure), "prompt") == column(read(lines), "prompt") == [48]
    assert [request.input_tokens for file in (azure, lines) for request in read_trace(file)] == [48, 48]
    for reads in (read, read_trace):
        with pytest.raises(ConfigError, match=r"cut.jsonl.gz: cannot be read: Compressed file ended"):
            reads(cut)
    cut.write_text(mooncake(0))
    with pytest.raises(ConfigError, match=r"cut.jsonl.gz: cannot be read: Not a gzipped file"):
        read(cut)


def test_prompts_of_tokens_are_as_long_as_they_are_and_of_parts_the_text_counts(tmp_path: Path) -> None:
    tokens = list(range(1_000, 1_600))
    parts = [{"type": "text", "text": "x" * 396}, {"type": "image_url", "image_url": {"url": "data:" + "A" * 9_000}}]
    asks: list[dict[str, Any]] = [{"prompt": tokens}, {"prompt": [[*tokens, 7]]}, {"prompt": ["x" * 400]}]
    asks.append({"messages": [{"role": "me", "content": parts}]})
    pieces = read(written(tmp_path, *(json.dumps({"timestamp": 0, "max_tokens": 5, **ask}) for ask in asks)))

    assert column(pieces, "prompt") == [600, 601, 100, 100]
    one, other, *_ = ids(pieces)
    assert (len(one), len(other), one[0] == other[0], one[1] == other[1]) == (2, 2, True, False)


def test_an_answer_that_was_empty_is_not_as_long_as_it_might_have_been(tmp_path: Path) -> None:
    ask = {"timestamp": 0, "prompt": "x", "max_tokens": 500}
    pieces = read(written(tmp_path, *(json.dumps(each) for each in (ask, {**ask, "output_tokens": 0}))))

    assert column(pieces, "output") == [500, 1]


def test_the_shared_traces_are_read(shared: Path) -> None:
    traces = shared / "data" / "traces"

    conversations = read(traces / "mooncake_conversation_trace.jsonl")
    code = read(traces / "azure_llm_2023_code.csv")

    assert sum(len(piece.requests) for piece in conversations) == 12_031
    assert np.mean(column(conversations, "prompt")) == pytest.approx(12_035.1, abs=0.1)
    assert sum(len(piece.requests) for piece in code) == 8_819
    assert len(read(traces / "azure_llm_2023_code.csv", requests=100)[0].requests) == 100


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([mooncake(5), mooncake(9), mooncake(8)], "request 3: at 0.008 s, after one at 0.009 s; sort it by time"),
        ([mooncake(0), mooncake(0, -5)], "request 2: -5 tokens in, 10 out; must be at least 1 and 0"),
        ([mooncake(0), mooncake(0, 0)], "request 2: 0 tokens in, 10 out"),
        ([mooncake(0), mooncake(1), mooncake(2, 5, -1)], "request 3: 5 tokens in, -1 out"),
        ([mooncake(0), mooncake(1, 2**62, 2**62)], f"request 2: {2**62} tokens in"),
        ([mooncake(0, 10**30)], f"request 1: {10**30} tokens in"),
        ([mooncake(0, 600, 1, (1, 2**63))], "request 1: hash_ids: must have 64 bits with a sign"),
        ([sized(16), sized(32)], "request 2: block_size: must be from 1 to 1,099,511,627,776 tokens and that"),
        ([sized(16), sized(0)], "of the requests before, 16, got 512"),
        ([sized(-16)], "request 1: block_size: must be from 1"),
        ([asked(0), asked(1e308)], "request 2: its time must be finite"),
        ([mooncake(1.76e12), mooncake(1.76e12 - 5)], "at 1759999999.995 s, after one at 1760000000 s"),
        ([mooncake(0), "not JSON"], "line 2: JSON is malformed"),
        ([mooncake(0), "", '{"timestamp": 1, "question": "?"}'], "nor an OpenAI one (lacks 'prompt')"),
        (['{"timestamp": 1, "messages": 7}'], "line 1: neither a Mooncake request"),
        (['{"timestamp": 1, "messages": [{"role": "me", "content": ["?"]}], "max_tokens": 1}'], "nor an OpenAI one"),
        (['{"timestamp": 1, "prompt": ["one", "two"], "max_tokens": 1}'], "prompt: must be one text, or the tokens"),
        (['{"timestamp": 1, "prompt": "?"}'], "lacks output_tokens, max_completion_tokens or max_tokens: how long"),
        ([], "must hold at least one request"),
        (["", ""], "must hold at least one request"),
    ],
)
def test_a_wrong_trace_is_one_error_that_names_the_place(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(written(tmp_path, *lines))

    assert says in str(error.value)
    assert "trace.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["2023-11-16 18:17:03,4808,ten"], "line 2: not of an Azure LLM trace: ValueError"),
        (["2023-11-16 18:17:03,48,1", "yesterday,4808,10"], "line 3: not of an Azure LLM trace"),
        (["2023-11-16 18:17:03,4808"], "line 2: not of an Azure LLM trace"),
        (["2023-11-16 18:17:03,48,1", "2023-11-16 18:17:01,48,1"], "request 2: at -2 s, after one at 0 s"),
        ([f"2023-11-16 18:17:03,{10**30},1"], f"request 1: {10**30} tokens in"),
        (['"2023-11-16 18:17:03,48,1', "x" * 200_000], "is not CSV: field larger"),
        ([], "must hold at least one request"),
    ],
)
def test_a_wrong_azure_trace_is_one_error_that_names_the_place(tmp_path: Path, rows: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(written(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", *rows, name="trace.csv"))

    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_first_request_with_ids_tells_how_many_tokens_they_stand_for(tmp_path: Path) -> None:
    (piece,) = read(written(tmp_path, mooncake(0, ids=()), sized(16), sized(16)))

    assert piece.id_tokens == 16


def test_a_trace_that_is_not_there_or_not_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_bytes(b"TIMESTAMP,ContextTokens,GeneratedTokens\n\xff\xfe,1,1\n")

    with pytest.raises(ConfigError, match=r"nowhere.jsonl: cannot be read: No such file"):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(ConfigError, match=r"trace.csv: is not text"):
        read(tmp_path / "trace.csv")


@pytest.mark.parametrize("copies", [1, 3])
def test_time_going_back_is_noticed_from_one_piece_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    monkeypatch.setattr(module, "_READ_BYTES", 300)
    lines = [mooncake(at) for at in (*range(20), 18, 21)]

    with pytest.raises(ConfigError, match=r"request 21: at 0.018 s, after one at 0.019 s"):
        read(written(tmp_path, *lines), copies=copies)


def test_pieces_do_not_depend_on_how_much_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = written(tmp_path, *(mooncake(i, 600 + i, 5, (i, i + 1)) for i in range(50)))
    whole = read(trace)
    monkeypatch.setattr(module, "_READ_BYTES", 128)
    parts = read(trace)

    assert len(parts) > len(whole) == 1
    assert ids(parts) == ids(whole)
    assert column(parts, "prompt") == column(whole, "prompt")


def test_copies_come_together_and_share_nothing(tmp_path: Path) -> None:
    trace = written(tmp_path, mooncake(0, ids=(0, 1)), mooncake(2_000, ids=(0, 2)))
    pieces = read(trace, copies=3)

    assert column(pieces, "at_s") == [0.0] * 3 + [2.0] * 3
    first, second = ids(pieces)[:3], ids(pieces)[3:]
    assert len({name for names in first for name in names}) == 6
    assert [names[0] for names in first] == [names[0] for names in second]


@pytest.mark.parametrize("far", [1 << 36, 1 << 61, -1 << 36])
def test_copies_share_nothing_and_blocks_are_told_apart_however_large_their_ids_are(tmp_path: Path, far: int) -> None:
    names = (5, 5 + far, 5 + (1 << 36), 7 + far)
    pieces = read(written(tmp_path, mooncake(0, 2_000, ids=names), mooncake(0, 2_000, ids=names)), copies=3)
    found = ids(pieces)

    assert found[:3] == found[3:]
    assert len({name for of in found for name in of}) == 3 * len(set(names))
    spelled = np.array([name for of in found[:3] for name in set(of)]) * 512  # as the kernel does, of blocks of a token
    assert len(set(spelled.tolist())) == 3 * len(set(names))


def test_a_faster_trace_is_the_same_in_less_time(tmp_path: Path) -> None:
    trace = written(tmp_path, mooncake(0), mooncake(3_000), mooncake(4_500))

    assert column(read(trace, speed=3.0), "at_s") == [0.0, 1.0, 1.5]
    assert column(read(trace, speed=3.0, seconds=1.2), "at_s") == [0.0, 1.0]
    with pytest.raises(ConfigError, match=r"request 2: at 1 s, after one at 3 s"):  # as the file has it
        read(written(tmp_path, mooncake(3_000), mooncake(1_000)), speed=3.0)


def reusable(pieces: list[Piece]) -> float:
    """Share of prompt tokens that a cache that never forgets would have."""
    seen, found = set[int](), 0
    prompts, outputs = column(pieces, "prompt"), column(pieces, "output")
    for names, prompt, output in zip(ids(pieces), prompts, outputs, strict=True):
        for name in names[: (prompt - 1) // TRACE_BLOCK]:
            if name not in seen:
                break
            found += TRACE_BLOCK
        seen.update(names[: (prompt + output) // TRACE_BLOCK])
    return float(found / sum(prompts))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agents_are_like_those_that_mooncake_published(seed: int) -> None:
    pieces = made("agents", seed, rate=2.0, requests=20_000)

    assert np.mean(column(pieces, "prompt")) == pytest.approx(8_596, rel=0.15)
    assert np.mean(column(pieces, "output")) == pytest.approx(182, rel=0.15)
    assert reusable(pieces) == pytest.approx(0.59, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["steady", "bursts", "diurnal"])
def test_sessions_arrive_in_order_of_time(kind: str, shape: str) -> None:
    pieces = made(kind, rate=5.0, requests=30_000, shape=shape)
    at_s = column(pieces, "at_s")

    assert len(at_s) == 30_000
    assert (np.diff(at_s) >= 0).all()
    assert min(column(pieces, "prompt")) >= 1
    assert min(column(pieces, "output")) >= 1
    assert len(pieces) > 1


def test_the_same_seed_makes_the_same_and_another_another() -> None:
    one, same, other = (made("chat", seed, requests=5_000) for seed in (7, 7, 8))

    assert ids(one) == ids(same)
    assert column(one, "at_s") == column(same, "at_s")
    assert column(one, "prompt") != column(other, "prompt")


def test_a_sessions_next_prompt_begins_with_all_that_was_said() -> None:
    pieces = made("agents", requests=2_000)
    said: dict[int, tuple[list[int], int]] = {}  # by the first block of their own: names, tokens
    again = 0
    for names, prompt, output in zip(ids(pieces), column(pieces, "prompt"), column(pieces, "output"), strict=True):
        assert len(names) == (prompt + output) // TRACE_BLOCK + 1
        own = next((name for name in names if name < 1 << 39), -1)
        before, tokens = said.get(own, ([], 0))
        assert prompt > tokens
        assert names[: tokens // TRACE_BLOCK] == before[: tokens // TRACE_BLOCK]
        again += tokens > 0
        if own >= 0:
            said[own] = (names, prompt + output)
    assert again > 500


@pytest.mark.parametrize(("shape", "over_s"), [("steady", 40_000.0), ("bursts", 40_000.0), ("diurnal", 2 * DAY_S)])
def test_swings_keep_the_mean_rate(shape: str, over_s: float) -> None:
    pieces = made("documents", rate=0.5, seconds=over_s, shape=shape)  # one turn each
    at_s = np.array(column(pieces, "at_s"))

    assert len(at_s) / over_s == pytest.approx(0.5, rel=0.1)
    assert at_s[-1] <= over_s


def test_bursts_and_days_swing() -> None:
    bursts = np.array(column(made("documents", rate=0.5, seconds=40_000.0, shape="bursts"), "at_s"))
    days = np.array(column(made("documents", rate=0.5, seconds=2 * DAY_S, shape="diurnal"), "at_s"))
    hours = np.histogram(days % DAY_S, bins=24, range=(0, DAY_S))[0]

    assert (bursts % 120.0 < 20.0).mean() > 0.6
    assert hours.max() > 2.5 * hours.min()


def test_made_up_sessions_need_an_end_and_a_known_kind() -> None:
    with pytest.raises(ConfigError, match=r"never end: give requests .*or seconds"):
        made("chat")
    with pytest.raises(ConfigError, match=r"traffic.kind: must be one of chat, .*, got 'gossip'"):
        made("gossip", requests=10)


def test_requests_and_seconds_are_both_limits() -> None:
    assert len(column(made("chat", rate=10.0, requests=100, seconds=1_000.0), "at_s")) == 100
    assert max(column(made("chat", rate=10.0, requests=100_000, seconds=20.0), "at_s")) <= 20.0
    with pytest.raises(ConfigError, match="must hold at least one request, chat has none"):
        made("chat", rate=1e-3, seconds=1e-3)


def test_kinds_are_as_they_say() -> None:
    for name, kind in KINDS.items():
        pieces = made(name, rate=5.0, requests=10_000)
        outputs = column(pieces, "output")
        assert np.mean(outputs) == pytest.approx(kind.output_tokens, rel=0.1), name
        assert msgspec.structs.asdict(kind)["groups"] > 0
