"""Workloads: the same seed gives the same, and recorded ones keep their times and their sharing."""

from pathlib import Path

import pytest

from jevons.base.errors import ConfigError
from jevons.twin.workload import Chat, conversations, read_trace, trace_tokens

CHAT = Chat(conversations=6, turns=3, groups=2, system_tokens=40, turn_tokens=20, rate=2.0, seed=5)


def test_the_same_seed_makes_the_same_conversations() -> None:
    assert conversations(CHAT) == conversations(CHAT)


def test_a_group_shares_its_system_prompt_and_nothing_else() -> None:
    made = conversations(CHAT)

    assert made[0].system == made[2].system != made[1].system
    assert made[0].turns != made[2].turns
    assert [len(c.turns) for c in made] == [3] * 6
    assert made[0].start_s == 0 < made[-1].start_s


def test_texts_come_to_about_as_many_words_as_asked_for() -> None:
    words = len(conversations(CHAT)[0].turns[0].split())

    assert 15 <= words <= 21


def test_a_mooncake_trace_keeps_times_lengths_and_sharing(shared: Path) -> None:
    rows = read_trace(shared / "data/traces/mooncake_conversation_trace.jsonl", limit=200)
    a, b = next((a, b) for a in rows for b in rows if a is not b and a.hash_ids[:2] == b.hash_ids[:2])

    assert len(rows) == 200
    assert rows[0].at_s <= rows[-1].at_s
    assert trace_tokens(a, 30_000)[:1024] == trace_tokens(b, 30_000)[:1024]
    assert len(trace_tokens(a, 30_000)) == a.input_tokens


def test_an_azure_trace_is_read(shared: Path) -> None:
    rows = read_trace(shared / "data/traces/azure_llm_2023_conv.csv", limit=50)

    assert rows[0].at_s == 0
    assert all(row.input_tokens > 0 for row in rows)


@pytest.mark.parametrize("text", ['{"no": "trace"}\n', "not json\n", ""])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)

    with pytest.raises(ConfigError, match="trace"):
        read_trace(path)
