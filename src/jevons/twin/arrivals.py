"""What arrives, as arrays: recorded traces read line by line, and made-up sessions, in pieces of bounded size.

A prompt's content is told by ids, one for each `TRACE_BLOCK` tokens of it: equal ids stand for equal tokens and equal
tokens before them. Where they reach beyond the prompt they name the answer too, so that who comes back finds it.

A trace begins at its first request: its times are of any clock, as those who write traces have it.

In a trace of whose first ones some have a `request_id` or a `session_id` some may follow others: it is read whole.
"""

from __future__ import annotations

import csv
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import blake2b
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np

from jevons.base.compiled import Ints, Reals, Records
from jevons.base.errors import ConfigError
from jevons.config.scenario import Traffic
from jevons.facts.trace import TraceRow
from jevons.twin.kernel import AFTER, ARRIVAL
from jevons.twin.linked import link
from jevons.twin.sessions import sessions
from jevons.twin.workload import azure_time, is_azure, open_trace, unreadable

TRACE_BLOCK = 512
PIECE = 16_384  # requests
_CHARS_PER_TOKEN = 4  # of English text with usual tokenizers
_READ_BYTES = 1 << 20  # a piece of a trace and the next are held as objects, as arrays and as text
_COPY_STRIDE = 1 << 36  # ids of one copy of a trace stay below; larger ones are made anew, see `_told_apart`
_MADE_ANEW, _MIX = 1 << 53, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # SplitMix64's
_LONGEST, _IDS = 1 << 40, 1 << 63  # tokens; ids are below


class Piece(NamedTuple):
    """Consecutive requests."""

    requests: Records  # ARRIVAL
    ids: Ints
    id_tokens: int = TRACE_BLOCK  # behind an id
    afters: Records = np.zeros(0, AFTER)  # one for each request, or none
    followers: Ints = np.zeros(0, np.int64)
    numbers: Ints | None = None  # of each request its place in the trace and its copies; None: they are in order


def arrivals(traffic: Traffic, seed: int) -> Iterator[Piece]:
    """The requests of a workload in order of time, at most `traffic.requests` and `traffic.seconds` of them.

    Raises:
        ConfigError: the trace cannot be read, is empty, has times going backwards or lengths below 1; names the line.
    """
    pieces = _of_trace(traffic) if traffic.trace else (Piece(*piece) for piece in sessions(traffic, seed))
    left = traffic.requests
    began = False
    for piece in pieces:
        requests = piece.requests
        if piece.numbers is not None:  # whole, within the limits
            began = len(requests) > 0
            yield from [piece] if began else []
            break
        if traffic.seconds is not None:
            requests = requests[requests["at_s"] <= traffic.seconds]
        requests = requests[:left]
        began = began or len(requests) > 0
        if len(requests) == 0:
            break
        yield piece._replace(requests=requests)
        if left is not None:
            left -= len(requests)
    if not began:
        raise ConfigError(f"traffic: must hold at least one request, {traffic.trace or traffic.kind} has none")


def _of_trace(traffic: Traffic) -> Iterator[Piece]:
    path = Path(traffic.trace)
    began_ms, before_ms, count, block = np.nan, -np.inf, 0, 0
    try:
        with open_trace(path) as file:
            batches = _azure(path, file) if is_azure(path) else _json_lines(path, file)
            for rows in batches:
                if _are_linked(path, rows, count):
                    yield _linked(path, list(chain(rows, *batches)), traffic)
                    return
                block = _check_numbers(path, rows, count, block)
                at_ms = _times(path, rows, before_ms, count)
                began_ms = at_ms[0] if count == 0 else began_ms
                yield _piece(path, rows, at_ms - began_ms, traffic, block, count)
                before_ms, count = at_ms[-1], count + len(rows)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"trace {path}: is not text: {error}") from error
    except csv.Error as error:
        raise ConfigError(f"trace {path}: is not CSV: {error}") from error


def _ids(path: Path, rows: Sequence[TraceRow], first: int) -> Ints:
    """Those of all rows. Raises ConfigError for the first one that has more than 64 bits."""
    try:
        return np.fromiter(chain.from_iterable(row.hash_ids for row in rows), np.int64)
    except OverflowError:
        wide = (at for at, row in enumerate(rows, first + 1) if any(not -_IDS <= id < _IDS for id in row.hash_ids))
        raise ConfigError(
            f"trace {path}: request {next(wide)}: hash_ids: must have 64 bits with a sign, one has more"
        ) from None


def _piece(path: Path, rows: Sequence[TraceRow], since_ms: Reals, traffic: Traffic, block: int, first: int) -> Piece:
    """Requests `since_ms` after the first one of the trace, of which `first` are before these."""
    copies, ids = traffic.copies, _ids(path, rows, first)
    requests = np.zeros(len(rows) * copies, ARRIVAL)
    counts = np.array([len(row.hash_ids) for row in rows], np.int64)
    ends = np.cumsum(counts)
    with np.errstate(over="ignore"):
        requests["at_s"] = np.repeat(since_ms, copies) / (1000.0 * traffic.speed)
    endless = np.flatnonzero(np.isinf(requests["at_s"]))
    if len(endless):
        number = first + int(endless[0]) // copies + 1
        raise ConfigError(f"trace {path}: request {number}: its time must be finite, it is not")
    requests["prompt"] = np.repeat([row.input_length for row in rows], copies)
    requests["output"] = np.repeat([row.output_length or 1 for row in rows], copies)
    requests["count"] = np.repeat(counts, copies)
    copy = np.tile(np.arange(copies), len(rows))
    requests["ids"] = np.repeat(ends - counts, copies) + copy * len(ids)
    return Piece(requests, _told_apart(ids, copies).ravel(), block or TRACE_BLOCK)


def _told_apart(ids: Ints, copies: int) -> Ints:
    """Ids of as many copies of a trace, of which none is another copy's. [copies, ids]

    Large ones, as hashes are, become others of 53 bits: 512 blocks behind one of them still have names of their own.
    """
    copy = np.arange(copies)[:, None]
    found: Ints = ids + copy * _COPY_STRIDE
    large = (ids < 0) | (ids >= _COPY_STRIDE)
    if large.any():
        step, *factors = (np.uint64(number) for number in _MIX)
        mixed = ids[large].astype(np.uint64) + (copy.astype(np.uint64) + np.uint64(1)) * step
        for shift, factor in zip((30, 27), factors, strict=True):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
        found[:, large] = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.int64) | _MADE_ANEW
    return found


def _are_linked(path: Path, rows: Sequence[TraceRow], before: int) -> bool:
    """Whether some may follow others; after `before` requests, of which none does, that is an error."""
    first = next((number for number, row in enumerate(rows, before + 1) if row.is_linked), None)
    if first is not None and before:
        raise ConfigError(
            f"trace {path}: request {first}: follows others or may be followed, none of the first {before:,} does; "
            f"give the first one a request_id: without, a trace is read in parts"
        )
    return first is not None


def _linked(path: Path, rows: Sequence[TraceRow], traffic: Traffic) -> Piece:
    block = _check_numbers(path, rows, 0, 0)
    _ids(path, rows, 0)  # of those that are left out too
    linked = link(path, rows, traffic)
    at_ms = np.array([linked.began_ms if row.timestamp is None else row.timestamp for row in linked.rows])
    piece = _piece(path, linked.rows, at_ms - linked.began_ms, traffic, block, 0)
    afters, followers = linked.arrays(traffic.copies, traffic.speed)
    copies = traffic.copies
    numbers = np.repeat(linked.numbers, copies) * copies + np.tile(np.arange(copies), len(linked.rows))
    return piece._replace(afters=afters, followers=followers, numbers=numbers)


def _check_numbers(path: Path, rows: Sequence[TraceRow], first: int, block: int) -> int:
    """Lengths must be lengths, and ids stand for as many tokens each. The first that is wrong is told.

    Args:
        block: tokens behind each id of `first` requests before these; 0: they had none.

    Returns:
        the same with these.
    """
    for number, row in enumerate(rows, first + 1):
        prompt, output = row.input_length, row.output_length
        if not (1 <= prompt <= _LONGEST and 0 <= output <= _LONGEST):
            raise ConfigError(
                f"trace {path}: request {number}: {prompt} tokens in, {output} out; must be at least 1 and 0, "
                f"at most {_LONGEST:,}"
            )
        tokens = row.block_size or TRACE_BLOCK
        block = block or (tokens if row.hash_ids else 0)
        if row.hash_ids and (tokens != block or not 1 <= tokens <= _LONGEST):
            raise ConfigError(
                f"trace {path}: request {number}: block_size: must be from 1 to {_LONGEST:,} tokens and that of the "
                f"requests before, {block:,}, got {tokens:,}"
            )
    return block


def _times(path: Path, rows: Sequence[TraceRow], before_ms: float, first: int) -> Reals:
    """Milliseconds, as the trace has them. They must be there, finite and not go back. Of the first that is wrong its
    number is told, from 1."""
    at_ms = np.array([np.nan if row.timestamp is None else row.timestamp for row in rows])
    without = np.flatnonzero(np.isnan(at_ms))
    if len(without):
        raise ConfigError(f"trace {path}: request {first + int(without[0]) + 1}: has no timestamp; give one")
    endless = np.flatnonzero(np.isinf(at_ms))
    if len(endless):
        raise ConfigError(f"trace {path}: request {first + int(endless[0]) + 1}: its time must be finite, it is not")
    before = np.concatenate([[before_ms], at_ms[:-1]])
    back = np.flatnonzero(at_ms < before)
    if len(back):
        i = int(back[0])
        raise ConfigError(
            f"trace {path}: request {first + i + 1}: at {at_ms[i] / 1000:.13g} s, "
            f"after one at {before[i] / 1000:.13g} s; sort it by time"
        )
    return at_ms


def _json_lines(path: Path, file: BinaryIO) -> Iterator[list[TraceRow]]:
    decoder, line = msgspec.json.Decoder(TraceRow), 1
    rest = file.read(len(BOM_UTF8)).removeprefix(BOM_UTF8)
    while read := file.read(_READ_BYTES):
        whole, newline, rest = (rest + read).rpartition(b"\n")
        rows = _decoded(path, decoder, whole + newline, line)
        line += whole.count(b"\n") + len(newline)
        if rows:
            yield rows
    if rest.strip():
        yield _decoded(path, decoder, rest, line)


def _decoded(path: Path, decoder: msgspec.json.Decoder[TraceRow], text: bytes, line: int) -> list[TraceRow]:
    """Requests of some lines, of which the first is number `line`."""
    try:
        return decoder.decode_lines(text)
    except msgspec.MsgspecError:
        return [_one(path, decoder, row, line + i) for i, row in enumerate(text.splitlines()) if row.strip()]


def _one(path: Path, decoder: msgspec.json.Decoder[TraceRow], text: bytes, line: int) -> TraceRow:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as first:
        try:
            return _openai(msgspec.json.decode(text, type=dict[str, Any]))
        except (msgspec.MsgspecError, KeyError, AttributeError, TypeError, ValueError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(
                f"trace {path}: line {line}: neither a Mooncake request ({first}) nor an OpenAI one ({why})"
            ) from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"trace {path}: line {line}: {error}") from error


def _openai(row: dict[str, Any]) -> TraceRow:
    """A request as clients send it, with `timestamp` in seconds: its text stands for its tokens, four letters each.

    Of a prompt that is given as tokens they are those.
    """
    body = row.get("body", row)
    said = _said(body)
    each = _CHARS_PER_TOKEN if isinstance(said, str) else 1
    ids, before, width = [], b"", TRACE_BLOCK * each
    for start in range(0, len(said), width):
        before = blake2b(before + str(said[start : start + width]).encode(), digest_size=5).digest()
        ids.append(int.from_bytes(before, "big") & (_COPY_STRIDE - 1))
    return TraceRow(max(1, len(said) // each), _answered(row, body), float(row["timestamp"]) * 1000.0, ids)


def _said(body: dict[str, Any]) -> str | list[int]:
    """The prompt, as text or as tokens. Pictures and sounds are passed over."""
    if "messages" in body:
        return "".join(f"{message['role']}\n{_text(message.get('content'))}\n" for message in body["messages"])
    prompt = body["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        (prompt,) = prompt
    if isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)):
        return prompt
    raise ValueError("prompt: must be one text, or the tokens of one")


def _text(content: str | list[dict[str, Any]] | None) -> str:
    return "".join(part.get("text") or "" for part in content) if isinstance(content, list) else content or ""


def _answered(row: dict[str, Any], body: dict[str, Any]) -> int:
    """Tokens of the answer, or as many as it may have."""
    names = ("output_tokens", "max_completion_tokens", "max_tokens")
    told = (from_.get(name) for from_, name in zip((row, body, body), names, strict=True))
    found = next((tokens for tokens in told if tokens is not None), None)
    if found is None:
        raise ValueError(f"lacks {', '.join(names[:2])} or {names[2]}: how long its answer is")
    return int(found)


def _azure(path: Path, file: BinaryIO) -> Iterator[list[TraceRow]]:
    began: datetime | None = None
    with TextIOWrapper(file, "utf-8-sig") as text:
        rows = enumerate(csv.DictReader(text), 2)
        while some := list(islice(rows, PIECE)):
            found = []
            for number, row in some:
                try:
                    at = azure_time(row["TIMESTAMP"])
                    began = began or at
                    prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
                except (KeyError, ValueError, TypeError) as error:
                    raise ConfigError(f"trace {path}: line {number}: not of an Azure LLM trace: {error!r}") from error
                found.append(TraceRow(prompt, output, (at - began).total_seconds() * 1000.0))
            yield found
