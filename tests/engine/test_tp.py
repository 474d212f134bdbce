"""A model split over ranks answers as on one, blocks move between both, and no rank outlives another."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from tests.processes import START_S, Jevons, until

from jevons.base.errors import ConfigError, EngineGone
from jevons.engine.reference import group
from jevons.engine.reference.leader import Leader
from jevons.engine.reference.runner import Abandoned, Cache, Runner, Sampled, Slice
from jevons.engine.reference.share import cuts, share_of
from jevons.engine.reference.tiny import TINY, write_random_model
from jevons.engine.reference.weights import compute_dtype
from jevons.facts.model import ModelShape
from jevons.facts.request import Sampling
from jevons.store import arena as store
from jevons.store.node import Page

BLOCKS, BLOCK_SIZE = 64, 16
SHAPES = {
    "3 kv heads": replace(TINY, heads=6, kv_heads=3, intermediate=200),
    "4 kv heads": replace(TINY, heads=4, kv_heads=4, qkv_bias=True, tied_embeddings=False),
}
GREEDY = Sampling(temperature=0, logprobs=5)
LOGPROB_OFF = 0.1  # what a rounded bf16 KV, or bf16 sums in another order, may do
# In KV as large as 5: two bits of bf16. Where products are in bf16 too, what enters a layer is rounded already.
KV_OFF = 0.05 if compute_dtype(torch.device("cpu")) is torch.float32 else 0.1
ENDS_S = 20.0


def tokens(count: int, seed: int = 0) -> list[int]:
    drawn: list[int] = torch.randint(0, TINY.vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


def generate(runner: Runner, prompt: Sequence[int], table: Sequence[int], *, computed: int = 0) -> list[Sampled]:
    """Six greedy tokens after `prompt`, whose first `computed` tokens are in the pages."""
    text, drawn = list(prompt), list[Sampled]()
    while len(drawn) < 6:
        [sampled] = runner.step([Slice(text[computed:], computed, table, GREEDY)])
        assert sampled is not None
        computed = len(text)
        text.append(sampled.token)
        drawn.append(sampled)
    return drawn


def check_alike(some: Sequence[Sampled], others: Sequence[Sampled]) -> None:
    """The same tokens, as likely within what rounding does; up to where it decides between two that are as likely."""
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.logprob is not None
        assert other.logprob is not None
        assert one.logprob.logprob == pytest.approx(other.logprob.logprob, abs=LOGPROB_OFF)
        if one.token != other.token:
            assert dict(one.logprob.top)[other.token] == pytest.approx(one.logprob.logprob, abs=LOGPROB_OFF)
            assert dict(other.logprob.top)[one.token] == pytest.approx(other.logprob.logprob, abs=LOGPROB_OFF)
            return  # from here on they answer different texts


def followers_of(pid: int) -> list[int]:
    """The processes that `pid` started and that still run; those of `jevons.engine.reference.rank` only."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in children if b"jevons.engine.reference.rank" in command(child)]


def command(pid: int) -> bytes:
    """What a process was started with; nothing for one that is gone or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Arena:
    """Shared memory for some pages of a model of `shape`, seen as numbers."""

    def __init__(self, shape: ModelShape, pages: int, *runners: Runner) -> None:
        self.size = (pages, shape.layers, 2, shape.kv_heads, BLOCK_SIZE, shape.head_dim)
        self.page_bytes = 2 * int(np.prod(self.size[1:]))
        self.file = os.memfd_create("arena")
        os.truncate(self.file, pages * self.page_bytes)
        for runner in runners:
            self.attach_to(runner)

    def attach_to(self, runner: Runner) -> None:
        memory = store.Arena.attach(os.dup(self.file))
        runner.exchange.attach(memory)
        memory.close()

    def moves(self, table: Sequence[int]) -> list[Page]:
        """Block i of `table` from or to page i."""
        return [([place], i * self.page_bytes) for i, place in enumerate(table)]

    @property
    def pages(self) -> torch.Tensor:
        """All pages, [pages, layers, 2, kv_heads, block_size, head_dim]; a copy."""
        data = bytearray(os.pread(self.file, self.page_bytes * self.size[0], 0))
        return torch.frombuffer(data, dtype=torch.bfloat16).view(self.size)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=SHAPES, scope="module")
def shape(request: pytest.FixtureRequest) -> ModelShape:
    return SHAPES[request.param]


@pytest.fixture(scope="module")
def tiny_dir(shape: ModelShape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_random_model(path, shape)
    return path


@pytest.fixture(scope="module")
def one(tiny_dir: Path) -> Runner:
    return Runner(tiny_dir, Cache(BLOCKS, BLOCK_SIZE))


@pytest.fixture(scope="module")
def two(tiny_dir: Path) -> Iterator[Leader]:
    with closing(Leader(tiny_dir, Cache(BLOCKS, BLOCK_SIZE), ranks=2)) as leader:
        yield leader


@pytest.fixture
def arena(shape: ModelShape, one: Runner, two: Leader) -> Iterator[Arena]:
    made = Arena(shape, 4, one, two)
    os.posix_fallocate(made.file, 0, 4 * made.page_bytes)
    yield made
    os.close(made.file)


@pytest.mark.parametrize(
    ("total", "ranks", "unit", "expected"),
    [
        (3, 2, 1, [0, 2, 3]),
        (4, 3, 1, [0, 2, 3, 4]),
        (8, 8, 1, list(range(9))),
        (1536, 2, 64, [0, 768, 1536]),
        (200, 2, 64, [0, 128, 200]),
        (576, 2, 64, [0, 320, 576]),
    ],
)
def test_parts_are_as_even_as_whole_units_allow(total: int, ranks: int, unit: int, expected: list[int]) -> None:
    assert cuts(total, ranks, unit) == expected


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("wide", [3, 128, 1500])
def test_together_the_ranks_have_every_head_and_number_once(ranks: int, wide: int) -> None:
    shape = replace(TINY, heads=9, kv_heads=3, intermediate=wide)
    shares = [share_of(shape, rank, ranks) for rank in range(ranks)]
    assert [head for share in shares for head in share.kv_heads] == list(range(3))
    assert [number for share in shares for number in share.wide] == list(range(wide))
    assert all(share.part.heads == 3 * share.part.kv_heads > 0 < share.part.intermediate for share in shares)


def test_more_ranks_than_kv_heads_are_refused(tmp_path: Path) -> None:
    write_random_model(tmp_path, TINY)
    with pytest.raises(ConfigError, match="tensor_parallel: must be at most 2, this model's kv heads, got 3"):
        Leader(tmp_path, Cache(BLOCKS, BLOCK_SIZE), ranks=3)


def test_a_device_on_which_ranks_cannot_sum_is_refused(tmp_path: Path) -> None:
    write_random_model(tmp_path, TINY)
    with pytest.raises(ConfigError, match="device, tensor_parallel: ranks can be on cpu or cuda, got mps and 2"):
        Leader(tmp_path, Cache(BLOCKS, BLOCK_SIZE), ranks=2, device="mps")


def test_two_ranks_answer_as_one_does(one: Runner, two: Leader) -> None:
    for seed, count in enumerate((3, 40, 150)):
        prompt = tokens(count, seed)
        check_alike(generate(two, prompt, range(10)), generate(one, prompt, range(10)))


def test_a_batch_of_chunks_and_decodes_is_answered_too(one: Runner, two: Leader) -> None:
    texts, tables = [tokens(n, seed=n) for n in (33, 70, 20)], [range(3), range(5, 10), range(20, 22)]
    answers = []
    for runner in (one, two):
        runner.step([Slice(text[:-1], 0, table, None) for text, table in zip(texts[:2], tables, strict=False)])
        decodes = [Slice(texts[i][-1:], len(texts[i]) - 1, tables[i], GREEDY) for i in (0, 1)]
        answers.append([s for s in runner.step([decodes[0], Slice(texts[2], 0, tables[2], GREEDY), decodes[1]]) if s])
    check_alike(*answers)


def test_a_page_copied_out_of_two_ranks_holds_the_heads_of_one(
    shape: ModelShape, one: Runner, two: Leader, arena: Arena
) -> None:
    prompt = tokens(4 * BLOCK_SIZE)
    for runner in (one, two):
        runner.step([Slice(prompt, 0, [7, 3, 9, 4], None)])
    two.exchange.copy_out(arena.moves([7, 3, 9, 4]), slice(0, 1))
    assert not arena.pages[:, 1:].any()
    two.exchange.copy_out(arena.moves([7, 3, 9, 4]), slice(1, None))
    for head in range(shape.kv_heads):
        ours, theirs = (kv[:, :, :, head].float() for kv in (arena.pages, one.pages[[7, 3, 9, 4]]))
        assert theirs.abs().max() > 1
        assert (ours - theirs).abs().max() < KV_OFF


def test_ranks_tell_of_no_layer_since_one_does_not_know_how_far_the_others_are(two: Leader) -> None:
    told: list[int] = []
    two.step([Slice(tokens(20), 0, range(2), None)], on_layer=lambda layers, of: told.append(layers))
    assert told == []


@pytest.mark.parametrize("to_two", [False, True])
def test_a_prefix_computed_on_other_ranks_is_continued(one: Runner, two: Leader, arena: Arena, *, to_two: bool) -> None:
    source, target = (one, two) if to_two else (two, one)
    prompt = tokens(3 * BLOCK_SIZE + 5, seed=8)
    expected = generate(target, prompt, range(10, 14))
    source.step([Slice(prompt[: 3 * BLOCK_SIZE], 0, [7, 3, 9], None)])
    source.exchange.copy_out(arena.moves([7, 3, 9]))
    target.exchange.copy_in(arena.moves([30, 41, 32]))
    check_alike(generate(target, prompt, [30, 41, 32, 50], computed=3 * BLOCK_SIZE), expected)


def test_a_block_that_comes_back_to_the_same_ranks_is_the_same_bits(two: Leader, arena: Arena) -> None:
    prompt, computed = tokens(2 * BLOCK_SIZE + 1, seed=3), 2 * BLOCK_SIZE
    two.step([Slice(prompt[:computed], 0, [1, 2], None)])
    two.exchange.copy_out(arena.moves([1, 2]))
    before = arena.pages
    two.exchange.copy_in(arena.moves([20, 21]))
    two.exchange.copy_out(arena.moves([20, 21]))
    assert torch.equal(arena.pages.view(torch.int16), before.view(torch.int16))
    stayed, moved = ([*table, 30] for table in ([1, 2], [20, 21]))
    assert generate(two, prompt, moved, computed=computed) == generate(two, prompt, stayed, computed=computed)


def test_blocks_are_copied_while_steps_compute_others(two: Leader, arena: Arena) -> None:
    prompt = tokens(60, seed=5)
    expected = generate(two, prompt, range(10))
    two.step([Slice(tokens(4 * BLOCK_SIZE, seed=6), 0, range(40, 44), None)])
    two.exchange.copy_out(arena.moves(range(40, 44)))
    before = arena.pages
    with ThreadPoolExecutor(1) as mover:
        work = [
            mover.submit(copy, arena.moves(range(40, 44)))
            for copy in (two.exchange.copy_in, two.exchange.copy_out) * 20
        ]
        assert generate(two, prompt, range(10)) == expected
        for each in work:
            each.result(ENDS_S)
    assert torch.equal(arena.pages, before)


def test_a_step_given_up_on_all_ranks_can_be_computed_again(two: Leader) -> None:
    prompt = tokens(100, seed=9)
    expected = generate(two, prompt, range(10))
    with pytest.raises(Abandoned):
        two.step([Slice(prompt, 0, range(10), None)], lambda: True)
    assert generate(two, prompt, range(10)) == expected


def test_a_step_given_up_at_its_last_layer_is_finished(shape: ModelShape, two: Leader) -> None:
    asked = iter([False] * (shape.layers - 1) + [True])
    [sampled] = two.step([Slice(tokens(20), 0, range(10), GREEDY)], lambda: next(asked))
    assert sampled is not None
    assert generate(two, tokens(20), range(10))[0] == sampled


def test_many_steps_and_copies_leave_nothing_behind(two: Leader, arena: Arena) -> None:
    [follower] = followers_of(os.getpid())

    def work(times: int) -> None:
        for i in range(times):
            two.step([Slice(tokens(30 + i % 7), 0, range(10), GREEDY)])
            two.exchange.copy_out(arena.moves([0, 1]))
            two.exchange.copy_in(arena.moves([0, 1]))
            arena.attach_to(two)

    work(10)
    pids = (os.getpid(), follower)
    files, memory = [open_files(pid) for pid in pids], [resident_bytes(pid) for pid in pids]
    work(60)
    assert [open_files(pid) for pid in pids] == files
    assert all(resident_bytes(pid) - before < 2 << 20 for pid, before in zip(pids, memory, strict=True))


def test_in_invariant_mode_three_ranks_give_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    write_random_model(tmp_path, SHAPES["3 kv heads"])
    one, other = tokens(50), tokens(19, seed=1)
    with closing(Leader(tmp_path, Cache(BLOCKS, BLOCK_SIZE), ranks=3, invariant=True)) as leader:
        alone = [generate(leader, prompt, range(5))[0] for prompt in (one, other)]
        leader.step([Slice(one[:21], 0, range(5), None)])
        together = leader.step([Slice(one[21:], 21, range(5), GREEDY), Slice(other, 0, range(5, 8), GREEDY)])
    assert together == alone


def test_a_rank_that_dies_within_a_step_ends_the_step_and_says_so(tmp_path: Path) -> None:
    write_random_model(tmp_path, TINY)
    with closing(Leader(tmp_path, Cache(BLOCKS, BLOCK_SIZE), ranks=2)) as leader:
        pid = followers_of(os.getpid())[-1]

        def kill() -> bool:
            os.kill(pid, signal.SIGKILL)
            return False

        with ThreadPoolExecutor(1) as engine:
            step = engine.submit(leader.step, [Slice(tokens(100), 0, range(10), GREEDY)], kill)
            with pytest.raises(EngineGone, match="rank 1 of 2 ended with code -9"):
                step.result(ENDS_S)
        for copy in (leader.exchange.copy_out, leader.exchange.copy_in):
            with pytest.raises(EngineGone, match="rank 1 of 2 ended with code -9"):
                copy([])


def test_a_rank_that_hangs_ends_the_step_and_its_death_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_model(tmp_path, TINY)
    monkeypatch.setattr(group, "DEADLINE", timedelta(seconds=3))
    told: queue.SimpleQueue[EngineGone] = queue.SimpleQueue()
    with closing(Leader(tmp_path, Cache(BLOCKS, BLOCK_SIZE), ranks=2)) as leader:
        leader.watch(told.put)
        pid = followers_of(os.getpid())[-1]
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineGone, match="the ranks lost each other"):
            leader.step([Slice(tokens(10), 0, [0], GREEDY)])
        os.kill(pid, signal.SIGKILL)
        assert str(told.get(timeout=ENDS_S)) == "rank 1 of 2 ended with code -9"


def test_a_rank_that_cannot_start_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_model(tmp_path, TINY)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineGone, match="rank 1 of 2 ended with code 1"):
        Leader(tmp_path, Cache(BLOCKS, BLOCK_SIZE), ranks=2)


LEADER = """
import sys, torch
from pathlib import Path
from jevons.engine.reference.leader import Leader
from jevons.engine.reference.runner import Abandoned, Cache, Runner, Sampled, Slice
torch.set_num_threads(1)
leader = Leader(Path(sys.argv[1]), Cache(64, 16), ranks=2)
print("ready", flush=True)
while True:
    leader.step([Slice(list(range(100)), 0, range(10), None)])
"""


def test_no_rank_outlives_a_leader_that_is_killed(tmp_path: Path) -> None:
    write_random_model(tmp_path, TINY)
    with subprocess.Popen([sys.executable, "-c", LEADER, tmp_path], stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"ready\n"
        [follower] = followers_of(leader.pid)
        leader.kill()
    until(lambda: not command(follower), ENDS_S, "the follower ends")


@pytest.mark.model
def test_the_embedded_model_continues_a_prefix_that_two_ranks_computed(model_dir: Path) -> None:
    france = [504, 3575, 282, 4649, 314]  # The capital of France is
    prompt = [*range(1000, 1000 + 2 * BLOCK_SIZE - len(france)), *france]
    one = Runner(model_dir, Cache(8, BLOCK_SIZE))
    with closing(Leader(model_dir, Cache(8, BLOCK_SIZE), ranks=2)) as two:
        arena = Arena(one.shape, 2, one, two)
        computed = generate(one, prompt, range(4))
        check_alike(generate(two, prompt, range(4)), computed)
        two.exchange.copy_out(arena.moves([0]))
    one.exchange.copy_in(arena.moves([6]))
    check_alike(generate(one, prompt, [6, 1, 2, 3], computed=BLOCK_SIZE), computed)
    os.close(arena.file)


def ask(server: Jevons) -> str:
    body = {"model": "smol", "prompt": "The capital of France is", "max_tokens": 2, "temperature": 0}
    request = urllib.request.Request(
        server.url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=START_S) as response:
        text: str = json.loads(response.read())["choices"][0]["text"]
        return text


@pytest.fixture
def serve(model_dir: Path) -> Iterator[Callable[..., Jevons]]:
    running: list[Jevons] = []

    def start(*flags: str) -> Jevons:
        running.append(Jevons("--model", str(model_dir), "--served-name", "smol", *flags))
        until(lambda: running[-1].healthy() == ["w0"], START_S)
        return running[-1]

    yield start
    for server in running:
        assert server.stop() == 0


@pytest.mark.model
def test_a_server_answers_with_a_worker_of_two_ranks_and_replaces_it_with_one_of_them(
    serve: Callable[..., Jevons],
) -> None:
    server = serve("--workers", "1", "--tensor-parallel", "2", "--kv-bytes", str(16 << 20))
    assert ask(server).startswith(" Paris")
    pid = server.worker("w0")["pid"]
    [follower] = followers_of(pid)
    os.kill(follower, signal.SIGKILL)
    until(lambda: server.healthy() == ["w0"] and server.worker("w0")["pid"] != pid, START_S)
    assert ask(server).startswith(" Paris")
    assert any("rank 1 of 2 ended with code -9" in line for line in server.lines)
