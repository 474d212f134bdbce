"""What a real vLLM has besides one pool: data-parallel ranks; what its offloading to host memory says on a CPU.

Small models with weights by chance; what they say means nothing, what they have cached is predicted and reported.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.vllm.conftest import SERVED, Door, Vllm, program
from tests.vllm.listen import SMALL

pytestmark = pytest.mark.vllm

CLIENT_S = 60.0
UP_S = 60.0
OUTCOME_S = 10.0
ROUNDS = 8
POOL = ("--num-gpu-blocks-override", "40")
REFUSAL = "CPU Offloading is currently only supported on CUDA-alike and XPU GPUs"

WaitUntil = Callable[[Callable[[], bool], float, str], float]
Launch = Callable[..., Vllm]
Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def small_model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes one of a kind that `small_models` knows."""

    def make(kind: str) -> Path:
        made = tmp_path_factory.mktemp(kind) / "model"
        maker = Path(__file__).with_name("small_models.py")
        subprocess.run([program().parent / "python", maker, kind, model_dir, made], check=True, capture_output=True)
        return made

    return make


@pytest.fixture
def before(wait_until: WaitUntil) -> Iterator[Callable[[Vllm, int], Door]]:
    """Starts a jevons before one vLLM of so many ranks, with the index of each exact."""
    doors: list[Door] = []

    def start(vllm: Vllm, ranks: int) -> Door:
        door = Door("--engine", vllm.attach)
        doors.append(door)
        wait_until(lambda: exact(door) == ranks, UP_S, f"{ranks} workers are up, their index exact")
        return door

    yield start
    for door in doors:
        door.stop()


def exact(door: Door) -> int:
    return sum(w["health"] == "up" and w["index"] == "exact" for w in door.snapshot()["workers"])


def talk(door: Door, wait_until: WaitUntil) -> list[Outcome]:
    """Five conversations in turn, which share their beginnings two by two; some are salted. Returns what came of each
    request, one after another."""
    rng, outcomes = random.Random("talk"), list[Outcome]()

    def made_up(tokens: int) -> list[int]:
        return [rng.randrange(1_000, 40_000) for _ in range(tokens)]

    beginnings = [made_up(200), made_up(90)]
    chats = [[*beginnings[number // 2 % 2], *made_up(20)] for number in range(5)]
    with openai.OpenAI(base_url=door.url + "/v1", api_key="none", max_retries=0, timeout=CLIENT_S) as client:
        for turn in range(ROUNDS * len(chats)):
            chat = turn % len(chats)
            extra: dict[str, Any] = {"return_token_ids": True, "ignore_eos": True}
            extra |= {"cache_salt": "tenant"} if chat == 4 else {}
            answer: Any = client.completions.create(
                model=SERVED, prompt=chats[chat], max_tokens=20, temperature=0, extra_body=extra
            )
            outcomes.append(outcome_of(door, outcomes, wait_until))
            chats[chat] = [*chats[chat], *answer.choices[0].token_ids, *made_up(rng.randrange(5, 40))]
            if len(chats[chat]) > 500:
                chats[chat] = [*beginnings[chat // 2 % 2], *made_up(20)]
    return outcomes


def outcome_of(door: Door, known: list[Outcome], wait_until: WaitUntil) -> Outcome:
    seen = {outcome["id"] for outcome in known}

    def fresh() -> list[Outcome]:
        return [outcome for outcome in door.recent() if outcome["id"] not in seen]

    wait_until(lambda: len(fresh()) == 1, OUTCOME_S, "the outcome is there")
    return fresh()[0]


def unlike(outcomes: list[Outcome]) -> list[tuple[int, int]]:
    """Cached tokens where they are not as predicted: predicted, reported."""
    told = [(outcome["predicted_cached_tokens"], outcome["cached_tokens"]) for outcome in outcomes]
    return [(predicted, reported) for predicted, reported in told if predicted != reported]


def hits(outcomes: list[Outcome]) -> int:
    return sum(bool(outcome["cached_tokens"]) for outcome in outcomes)


def said(what: str, outcomes: list[Outcome]) -> str:
    right = len(outcomes) - len(unlike(outcomes))
    return f"{what}: cached tokens as predicted for {right} of {len(outcomes)} requests, {hits(outcomes)} of them hits"


def test_each_data_parallel_rank_is_a_worker_that_has_cached_what_is_predicted(
    launch_vllm: Launch,
    small_model: Callable[[str], Path],
    before: Callable[[Vllm, int], Door],
    wait_until: WaitUntil,
    measured: list[str],
) -> None:
    vllm = launch_vllm(*SMALL, *POOL, model=small_model("full"), ranks=2)
    door = before(vllm, 2)

    outcomes = talk(door, wait_until)

    workers = {worker["id"] for worker in door.snapshot()["workers"]}
    measured.append(said("two data-parallel ranks", outcomes))
    assert unlike(outcomes) == []
    assert hits(outcomes) >= len(outcomes) // 2
    assert {outcome["worker"] for outcome in outcomes} == workers
    assert {id.rpartition("@")[2] for id in workers} == {"0", "1"}
    vllm.stop()


def test_vllms_own_copier_refuses_a_cpu_which_is_why_there_is_one_of_ours(
    launch_vllm: Launch, small_model: Callable[[str], Path]
) -> None:
    with pytest.raises(AssertionError, match="ended by itself") as ended:
        launch_vllm(*SMALL, *POOL, "--kv-offloading-size", "1", model=small_model("full"))

    assert REFUSAL in str(ended.value)
