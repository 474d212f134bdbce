"""What vLLM tells of its adapters."""

from __future__ import annotations

from jevons.engine.openai import read_adapters

# As vLLM 0.11 writes it: the value is the time, and lines of other states stay.
PAGE = """# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="2",running_lora_adapters="old",waiting_lora_adapters=""} 1.7641e+09
vllm:lora_requests_info{max_lora="2",running_lora_adapters="poet,clerk",waiting_lora_adapters="judge"} 1.7642e+09
vllm:num_requests_running{engine="0",model_name="m"} 2.0
"""


def test_the_newest_line_tells_which_adapters_run_or_are_waited_for() -> None:
    assert read_adapters(PAGE) == (["poet", "clerk", "judge"], 2)


def test_nothing_is_told_without_adapters() -> None:
    assert read_adapters("vllm:num_requests_running 1.0\n") is None
    assert read_adapters('vllm:lora_requests_info{max_lora="0",running_lora_adapters=""} 1.0') == ([], 1)
