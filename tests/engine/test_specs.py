"""What an engine is said to run on, and what it tells of its pool."""

from __future__ import annotations

import pytest

from jevons.engine.openai import parse_spec, read_pool


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
