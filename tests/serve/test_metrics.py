"""What /metrics tells of many workers is made in pieces, and read as one page."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from jevons.base.ids import RequestId, WorkerId
from jevons.control.router import Router
from jevons.facts.snapshot import Outcome
from jevons.facts.worker import WorkerFacts
from jevons.serve.metrics import MOST_LEFT, PORTION, Metrics

WORKERS = 2 * PORTION + 3


def busy() -> Metrics:
    router = Router()
    metrics = Metrics(router)
    for number in range(WORKERS):
        id = WorkerId(f"w{number:03}")
        router.join(WorkerFacts(id=id, model="m", kind="openai", sends_events=True))
        router.roster.heard(id, 0.0)
        metrics.placed(
            Outcome(
                id=RequestId(str(number)),
                worker=id,
                prompt_tokens=100 + number,
                predicted_ttft_s=1.0,
                ttft_s=2.0,
                predicted_cached_tokens=0,
                cached_tokens=16,
                device_s=0.0,
                saved_s=0.0,
                chip="",
            )
        )
    return metrics


def test_each_family_is_named_once_and_has_all_workers() -> None:
    page = b"".join(busy().pieces()).decode()
    named = [line for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(named) == len(set(named))
    told = {family.name: family.samples for family in text_string_to_metric_families(page)}
    assert sum(sample.value for sample in told["jevons_worker_up"]) == WORKERS
    assert [sample.value for sample in told["jevons_prompt_tokens"]] == [100 + number for number in range(WORKERS)]
    ratios = [s for s in told["jevons_ttft_measured_over_predicted"] if s.name.endswith("_count")]
    assert len(ratios) == WORKERS


def test_of_workers_that_are_no_more_the_latest_are_told_of() -> None:
    router = Router()
    metrics, stays = Metrics(router), WorkerId("stays")
    router.join(WorkerFacts(id=stays, model="m", kind="openai", sends_events=True))
    metrics.output_tokens.labels(stays).inc()
    for number in range(3 * MOST_LEFT):
        metrics.output_tokens.labels(f"pod-{number}").inc()
        metrics.itl.labels(f"pod-{number}").observe(0.1)
        metrics.requests.labels(f"endpoint-{number}", "200").inc()

    page = b"".join(metrics.pieces()).decode()
    told = {family.name: family.samples for family in text_string_to_metric_families(page)}
    latest = [f"pod-{number}" for number in range(2 * MOST_LEFT, 3 * MOST_LEFT)]
    assert [sample.labels["worker"] for sample in told["jevons_output_tokens"]] == ["stays", *latest]
    assert [s.labels["worker"] for s in told["jevons_itl_seconds"] if s.name.endswith("_count")] == latest
    assert len(told["jevons_requests"]) == 3 * MOST_LEFT


def test_no_piece_is_of_more_than_a_portion_of_the_workers() -> None:
    for piece in busy().pieces():
        lines = [line for line in piece.splitlines() if b'worker="' in line]
        assert len({line.partition(b'worker="')[2].partition(b'"')[0] for line in lines}) <= PORTION
