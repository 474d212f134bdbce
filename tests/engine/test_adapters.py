"""What vLLM tells of its adapters."""

from __future__ import annotations

import asyncio
from typing import Any

from jevons.engine.openai import OpenAIEngine, read_adapters
from jevons.engine.specs import parse_spec

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


class Listing(OpenAIEngine):
    """An engine that lists what it is given."""

    def __init__(self) -> None:
        super().__init__(parse_spec("http://127.0.0.1:1"))
        self.adapters_listed: list[str] = []

    async def get_json(self, path: str) -> Any:
        return {"data": [{"id": "m"}, *({"id": name, "parent": "m"} for name in self.adapters_listed)]}

    def numbers(self, *listed: str, anew: bool = False) -> dict[int, str]:
        self.adapters_listed = list(listed)
        assert list(asyncio.run(self.models(anew=anew))) == ["m"]
        return self.adapter_numbers


def test_adapters_are_numbered_as_they_are_listed_and_no_number_is_given_twice() -> None:
    engine = Listing()

    assert engine.numbers("poet", "clerk", anew=True) == {1: "poet", 2: "clerk"}
    assert engine.numbers("poet", "judge") == {1: "poet", 3: "judge"}
    assert engine.numbers("poet", "judge", "clerk") == {1: "poet", 3: "judge", 4: "clerk"}
    assert engine.numbers("poet", "judge", anew=True) == {1: "poet", 2: "judge"}
