"""What an engine is said to run on, and what it tells of its pool."""

from __future__ import annotations

import pytest

from jevons.base.errors import ConfigError
from jevons.engine.openai import read_pool
from jevons.engine.specs import parse_spec


@pytest.mark.parametrize(
    ("text", "chip", "chips"),
    [
        ("http://a:1", "", 1),
        ("http://a:1,chip=h200", "h200", 1),
        ("http://a:1,chip=8xh200", "h200", 8),
        ("http://a:1,kv=tcp://a:2,chip=16xtpu-v7", "tpu-v7", 16),
    ],
)
def test_chips_of_an_engine_are_named_with_it(text: str, chip: str, chips: int) -> None:
    spec = parse_spec(text)

    assert (spec.chip, spec.chips) == (chip, chips)


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1:1",
        "http://a..b:1",
        "http://a b:1",
        "http://a:1/b c",
        "http://a:1/\u00e9",
        "http://a:0",
        "http://a\n:1",
    ],
)
@pytest.mark.parametrize("more", ["", ",addresses=each"])
def test_what_no_request_could_be_sent_to_is_no_url(url: str, more: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(url + more)

    assert str(caught.value) == f"engines: must look like http://HOST:PORT, got {url!r}"


def test_a_password_that_would_not_be_sent_is_refused_and_not_told() -> None:
    with pytest.raises(ConfigError, match="must name no user and no password") as caught:
        parse_spec("http://me:secret@a:1")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://a", "https://a.b.:1/x/", "http://[::1]:1", "http://10.0.0.1:1", "http://my_host:1"]
)
def test_names_and_addresses_are_urls(url: str) -> None:
    assert parse_spec(url).url == url


@pytest.mark.parametrize(
    ("page", "blocks"),
    [
        ('vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="4096"} 1.0\n', 4096),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n', None),
        ("vllm:num_requests_running 3\n", None),
        ("", None),
    ],
)
def test_the_blocks_of_a_pool_are_read_from_vllms_metrics(page: str, blocks: int | None) -> None:
    assert read_pool(page) == blocks
