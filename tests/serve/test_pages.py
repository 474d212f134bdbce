"""Pages of several frontends as those of one."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from jevons.serve.pages import Family, added, decode, encode, page_of, side_by_side, text


def page(requests: int, seconds: float, blocks: int) -> list[Family]:
    registry = CollectorRegistry()
    Counter("jevons_requests", "Requests.", ["status"], registry=registry).labels("200").inc(requests)
    Histogram("jevons_seconds", "Seconds.", buckets=(0.1, 1.0), registry=registry).observe(seconds)
    Gauge("jevons_blocks", "Blocks.", ["worker"], registry=registry).labels("a").set(blocks)
    Counter("jevons_worker_events", "Events.", ["fate"], registry=registry).labels("stored").inc(blocks)
    return decode(encode(page_of(registry)))


def lines(families: list[Family]) -> set[str]:
    return {line for line in text(families).decode().splitlines() if "_created" not in line}


def test_what_was_done_is_added_up() -> None:
    told = lines(added([page(2, 0.05, 7), page(3, 0.5, 7)]))

    assert 'jevons_requests_total{status="200"} 5.0' in told
    assert 'jevons_seconds_bucket{le="0.1"} 1.0' in told
    assert 'jevons_seconds_bucket{le="+Inf"} 2.0' in told
    assert "jevons_seconds_sum 0.55" in told
    assert not any("jevons_blocks" in line or "events" in line for line in told)


def test_what_is_believed_stands_side_by_side() -> None:
    told = lines(side_by_side({1: page(2, 0.05, 7), 0: page(3, 0.5, 6)}))

    assert 'jevons_blocks{frontend="0",worker="a"} 6.0' in told
    assert 'jevons_blocks{frontend="1",worker="a"} 7.0' in told
    assert 'jevons_worker_events_total{fate="stored",frontend="1"} 7.0' in told
    assert not any("requests" in line for line in told)


def test_a_page_says_since_when_the_first_has_counted() -> None:
    pages = [page(1, 0.1, 1), page(1, 0.1, 1)]
    since = [
        s.value for p in [*pages, added(pages)] for f in p for s in f.samples if s.name == "jevons_requests_created"
    ]

    assert since[2] == min(since[:2])
