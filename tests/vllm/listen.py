"""Writes down what a real vLLM tells while it answers prompts: `python tests/vllm/listen.py NAME ...`, of PLAYS.

One prompt after another, so that what vLLM reports as cached is the truth at a known place in what it told.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import zmq
from tests.heard import FOLDER, Asked, Heard, Told, write
from tests.vllm.conftest import BLOCK_SIZE, SERVED, Vllm, offloads, program

from jevons.engine.pull import pull

QUIET_MS = 1_000  # after which an engine has told all
ANSWER_S = 120.0
OUTPUT_TOKENS = 20
SMALL = ("--max-model-len", "640", "--max-num-seqs", "2", "--max-num-batched-tokens", "256")


class Play(NamedTuple):
    """What is started, and what it is asked."""

    kind: str  # of model
    flags: tuple[str, ...]
    seed: str
    rounds: int
    ranks: int = 1


PLAYS = {
    "windows": Play("windows", ("--num-gpu-blocks-override", "96"), "windows", 6),
    "offloads": Play("full", ("--num-gpu-blocks-override", "40", *offloads(48)), "offloads", 6),
    "offloads-chunks": Play("full", ("--num-gpu-blocks-override", "40", *offloads(96, 2)), "chunks", 6),
    "offloads-described": Play("full", ("--num-gpu-blocks-override", "40", *offloads(96, 2, True)), "described", 6),
    "offloads-windows": Play("windows", ("--num-gpu-blocks-override", "96", *offloads(60)), "both", 6),
    "ranks": Play("full", ("--num-gpu-blocks-override", "40"), "ranks", 8, 2),
}


class Listener:
    """Hears all ranks of one engine."""

    def __init__(self, held: ExitStack, first_port: int, ranks: int) -> None:
        context = held.enter_context(zmq.Context())
        self._sockets = [held.enter_context(context.socket(zmq.SUB)) for _ in range(ranks)]
        self._poller = zmq.Poller()
        for rank, socket in enumerate(self._sockets):
            socket.subscribe(b"")
            socket.connect(f"tcp://127.0.0.1:{first_port + rank}")
            self._poller.register(socket)

    def told(self) -> Iterator[Told]:
        """Until it is quiet."""
        while ready := dict(self._poller.poll(QUIET_MS)):
            for rank, socket in enumerate(self._sockets):
                if socket in ready:
                    _, seq, payload = socket.recv_multipart()
                    yield Told(rank, int.from_bytes(seq, "big"), payload)


def ask(url: str, rank: int, tokens: list[int], salt: str) -> tuple[int, list[int]]:
    """Cached tokens, and the answer's."""
    body: dict[str, Any] = {"model": SERVED, "prompt": tokens, "max_tokens": OUTPUT_TOKENS, "temperature": 0}
    body |= {"return_token_ids": True, "ignore_eos": True, **({"cache_salt": salt} if salt else {})}
    headers = {"content-type": "application/json", "x-data-parallel-rank": str(rank)}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=ANSWER_S) as reply:
        answer = json.load(reply)
    details = answer["usage"].get("prompt_tokens_details") or {}
    return details.get("cached_tokens") or 0, answer["choices"][0]["token_ids"]


def play(url: str, listener: Listener, chosen: Play) -> Iterator[Told | Asked]:
    """Conversations that share their beginnings two by two, one of them salted; some of what is asked comes again."""
    rng = random.Random(chosen.seed)

    def made_up(tokens: int) -> list[int]:
        return [rng.randrange(1_000, 40_000) for _ in range(tokens)]

    beginnings = [made_up(200), made_up(90)]
    chats = [[*beginnings[number // 2 % 2], *made_up(20)] for number in range(5)]
    yield from listener.told()
    for number in range(chosen.rounds * len(chats)):
        chat = number % len(chats) if number % 7 else rng.randrange(len(chats))
        rank, salt = chat % chosen.ranks, "tenant" if chat == 4 else ""
        if len(chats[chat]) > 480:
            chats[chat] = [*beginnings[chat // 2 % 2], *made_up(20)]
        cached, answer = ask(url, rank, chats[chat], salt)
        yield Asked(rank, chats[chat], salt, cached)
        yield from listener.told()
        chats[chat] = [*chats[chat], *answer, *made_up(rng.randrange(5, 60))]


def listen(name: str, folder: Path) -> Heard:
    chosen, tokenizer = PLAYS[name], pull("smollm2-135m")
    maker = [program().parent / "python", Path(__file__).with_name("small_models.py")]
    subprocess.run([*maker, chosen.kind, tokenizer, folder / "model"], check=True)
    flags = (*SMALL, *chosen.flags)
    server = Vllm(program(), folder / "model", folder / "log", *flags, ranks=chosen.ranks)
    with ExitStack() as held:
        held.callback(server.stop)
        listener = Listener(held, server.events, chosen.ranks)
        server.start()
        server.await_health()
        version = json.loads(urllib.request.urlopen(server.url + "/version").read())["version"]
        return Heard(f"vllm {version}", list(flags), chosen.ranks, list(play(server.url, listener, chosen)))


if __name__ == "__main__":
    if not sys.argv[1:] or set(sys.argv[1:]) - set(PLAYS):
        sys.exit(f"usage: listen.py NAME ..., of {', '.join(PLAYS)}; blocks are of {BLOCK_SIZE} tokens")
    FOLDER.mkdir(exist_ok=True)
    for each in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as made:
            heard = listen(each, Path(made))
        write(FOLDER / f"{each}.heard", heard)
        asked = [step for step in heard.steps if isinstance(step, Asked)]
        sys.stderr.write(f"{each}: {len(asked)} prompts, {sum(step.cached_tokens > 0 for step in asked)} hits\n")
