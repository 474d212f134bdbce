"""What arrives: conversations made up from a seed, and recorded traces.

A made-up conversation has a system prompt that its group shares, then turns of a user who asks and asks again; each
turn's prompt holds everything said before. Texts are English-like words, so that a tokenizer sees what it was made for.
"""

from __future__ import annotations

import csv
import gzip
import random
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from jevons.base.errors import ConfigError

_TEXT = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had
an they which one you were all her she there would their we him been has when who will more no if
out so said what up its about into than them can only other new some could time these two may then
do first any my now such like our over man me even most made after also did many before must through
back years where much your way well down should because each just those people too state good very
make world still own see men work long get here between both life being under never day same another
know while last might us great old year off come since against go came right used take
"""
_WORDS = _TEXT.split()
_TOKENS_PER_WORD = 1.05  # of these words with a GPT-like tokenizer; measured with SmolLM2's: 1.04
MOONCAKE_BLOCK = 512  # tokens behind one hash id of a Mooncake trace


class Conversation(msgspec.Struct, frozen=True):
    """A user who asks several times, each time with everything said before."""

    id: int
    system: str
    turns: list[str]
    start_s: float  # when the first turn arrives


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """How to make up conversations. Lengths are in tokens, near enough."""

    conversations: int
    turns: int
    groups: int = 1  # conversations of a group share their system prompt
    system_tokens: int = 200
    turn_tokens: int = 60
    rate: float | None = None  # conversations starting per second (Poisson); None: all at once
    seed: int = 0


def conversations(chat: Chat) -> list[Conversation]:
    """The same seed gives the same conversations."""
    draw = random.Random(chat.seed)
    systems = [f"You are assistant {g}. " + _text(draw, chat.system_tokens) for g in range(max(1, chat.groups))]
    made, start_s = [], 0.0
    for i in range(chat.conversations):
        turns = [f"{_text(draw, chat.turn_tokens)}?" for _ in range(chat.turns)]
        made.append(Conversation(i, systems[i % len(systems)], turns, start_s))
        if chat.rate:
            start_s += draw.expovariate(chat.rate)
    return made


class TraceRequest(msgspec.Struct, frozen=True):
    """One recorded request: when, how long, and what of its prompt others share."""

    at_s: float
    input_tokens: int
    output_tokens: int
    hash_ids: list[int] = []  # one for each block of MOONCAKE_BLOCK tokens; equal ids, equal content


def read_trace(path: Path, limit: int | None = None) -> list[TraceRequest]:
    """Read a Mooncake trace (.jsonl) or an Azure LLM trace (.csv), at most `limit` requests, in order of time.

    Either may be packed (.gz). Times are counted from the first.

    Raises:
        ConfigError: it cannot be read, or a line is of neither kind; names the line.
    """
    try:
        with open_trace(path) as file, TextIOWrapper(file, "utf-8-sig") as lines:
            rows = _azure(lines) if is_azure(path) else _mooncake(lines)
            found = [row for row, _ in zip(rows, range(limit or 1 << 62), strict=False)]
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    except (KeyError, ValueError, TypeError, csv.Error, msgspec.MsgspecError) as error:
        raise ConfigError(f"trace {path}: neither a Mooncake (.jsonl) nor an Azure (.csv) trace: {error!r}") from error
    if not found:
        raise ConfigError(f"trace {path}: must hold at least one request, got none")
    found.sort(key=lambda r: r.at_s)
    return [msgspec.structs.replace(r, at_s=r.at_s - found[0].at_s) for r in found]


def open_trace(path: Path) -> BinaryIO:
    """A trace's bytes, unpacked where its name says that it is packed. Raises OSError; reading, EOFError or zlib's."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def is_azure(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".csv")


def unreadable(path: Path, error: Exception) -> ConfigError:
    """What to say of an error of `open_trace`, or of reading on."""
    return ConfigError(f"trace {path}: cannot be read: {getattr(error, 'strerror', None) or error}")


def trace_tokens(request: TraceRequest, vocab: int) -> list[int]:
    """Token ids for a recorded prompt: equal hash ids give equal tokens, all below `vocab` and above 255."""
    tokens: list[int] = []
    for id in request.hash_ids or [hash((request.at_s, request.input_tokens))]:
        draw = random.Random(id)
        tokens += [draw.randrange(256, vocab) for _ in range(min(MOONCAKE_BLOCK, request.input_tokens - len(tokens)))]
    draw = random.Random(-1)
    tokens += [draw.randrange(256, vocab) for _ in range(request.input_tokens - len(tokens))]
    return tokens[: request.input_tokens]


def _text(draw: random.Random, tokens: int) -> str:
    return " ".join(draw.choices(_WORDS, k=max(1, round(tokens / _TOKENS_PER_WORD))))


def _mooncake(lines: Iterable[str]) -> Iterator[TraceRequest]:
    for line in lines:
        if line.strip():
            row = msgspec.json.decode(line)
            yield TraceRequest(
                row["timestamp"] / 1000.0, int(row["input_length"]), int(row["output_length"]), list(row["hash_ids"])
            )


def azure_time(text: str) -> datetime:
    """When a request of an Azure trace came. Later ones tell the zone, and no fraction where a second is whole."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo is None else at.astimezone(UTC).replace(tzinfo=None)


def _azure(lines: Iterable[str]) -> Iterator[TraceRequest]:
    began: datetime | None = None
    for row in csv.DictReader(lines):
        at = azure_time(row["TIMESTAMP"])
        began = began or at
        yield TraceRequest((at - began).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
