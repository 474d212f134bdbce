"""Engines as the user names them on the command line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from jevons.base.errors import ConfigError
from jevons.engine.http_client import Address, parse_url

# Which of its data-parallel ranks is to answer a request: vLLM and SGLang read it where they balance ranks themselves
# (vLLM pull request 24945, SGLang pull request 19832).
RANK_HEADER = "x-data-parallel-rank"
_OPTIONS = ("kv", "replay", "tokenizer", "addresses", "ranks", "chip", "key-file")
MOST_RANKS = 1024


class EngineSpec(msgspec.Struct, frozen=True):
    """An engine as the user named it: URL[,kv=ENDPOINT[,replay=ENDPOINT]][,tokenizer=DIR][,addresses=each][,ranks=N]
    [,chip=NAME][,key-file=FILE].

    Of data-parallel ranks behind one URL each is a worker with a pool of its own; see `each_rank`.
    A chip is one of the catalog, 8xNAME where each worker runs on several.
    """

    url: str
    address: Address
    events: str | None = None
    replays: str | None = None
    tokenizer: str | None = None
    each_address: bool = False  # the URL's host stands for an engine at each of its addresses
    ranks: int = 1  # data-parallel ranks at the URL
    rank: int | None = None  # the one that this is; None: the URL is one engine
    chip: str = ""  # that it runs on, or each of its ranks; "": not told
    chips: int = 1  # of that kind
    key: str = ""  # of its API, sent with every request; "": none is


def parse_spec(text: str) -> EngineSpec:
    """Raises ConfigError that quotes the part that is wrong."""
    url, *options = text.split(",")
    values: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in _OPTIONS or not equals or not value:
            known = ", ".join(f"{name}=" for name in _OPTIONS)
            raise ConfigError(f"engines: options are {known}, got {option!r} in {text!r}")
        values[key] = value
    if "replay" in values and "kv" not in values:
        raise ConfigError(f"engines: replay= goes with kv=, got {text!r}")
    if values.get("addresses", "each") != "each":
        raise ConfigError(f"engines: addresses= must be each, got {values['addresses']!r} in {text!r}")
    count, chip = _chips(values.get("chip", ""))
    return EngineSpec(
        url,
        parse_url("engines", url),
        values.get("kv"),
        values.get("replay"),
        values.get("tokenizer"),
        "addresses" in values,
        _ranks(values.get("ranks", "1"), text),
        None,
        chip,
        count,
        _key(values["key-file"]) if "key-file" in values else "",
    )


def _key(file: str) -> str:
    """The first line of a file. It is told nowhere."""
    try:
        key = Path(file).read_text("utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"engines: key-file={file} cannot be read: {error}") from error
    if not (key and key.isascii() and key.isprintable()):
        raise ConfigError(f"engines: key-file={file}: its first line must be a key of printable ASCII characters")
    return key


def _chips(text: str) -> tuple[int, str]:
    """How many, of which kind."""
    read = re.fullmatch(r"([1-9][0-9]*)x(\S+)", text)
    return (1, text) if read is None else (int(read[1]), read[2])


def _ranks(value: str, text: str) -> int:
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= MOST_RANKS):
        raise ConfigError(f"engines: ranks= must be from 1 to {MOST_RANKS}, got {value!r} in {text!r}")
    return int(value)


def each_rank(spec: EngineSpec) -> list[EngineSpec]:
    """The ranks of an engine: one URL, and events of rank r on port + r, as vLLM has them.

    Raises:
        ConfigError: an endpoint has no port to count from.
    """
    if spec.ranks == 1:
        return [spec]
    return [
        msgspec.structs.replace(spec, rank=rank, events=_at(spec.events, rank), replays=_at(spec.replays, rank))
        for rank in range(spec.ranks)
    ]


def _at(endpoint: str | None, rank: int) -> str | None:
    if endpoint is None:
        return None
    host, _, port = endpoint.rpartition(":")
    if not (endpoint.startswith("tcp://") and port.isdigit() and int(port) + rank < 1 << 16):
        raise ConfigError(f"engines: ranks= counts up from a port, as of tcp://HOST:5557, got {endpoint!r}")
    return f"{host}:{int(port) + rank}"


def read_specs(texts: Iterable[str]) -> list[EngineSpec]:
    """Engines as the user named them, each rank by itself; @FILE stands for those of a file, one a line, # before a
    remark.

    Raises:
        ConfigError: quotes the part that is wrong, or the file that cannot be read; two have the same address.
    """
    specs = [parse_spec(line) for text in texts for line in (_lines(text[1:]) if text.startswith("@") else [text])]
    twice = [address for address, count in Counter(spec.address for spec in specs).items() if count > 1]
    if twice:
        raise ConfigError(f"engines: each must be named once, got {twice[0].authority}{twice[0].base} several times")
    return [rank for spec in specs for rank in each_rank(spec)]


def _lines(file: str) -> list[str]:
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"engines: @{file} cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
