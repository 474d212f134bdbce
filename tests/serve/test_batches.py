"""Requests of several prompts."""

from __future__ import annotations

from tests.serve.test_relay import Engine, ask, completion, run, whole

from jevons.serve.app import Server


def test_all_prompts_of_a_request_count_against_its_engine() -> None:
    async def talk(engines: list[Engine], server: Server) -> None:
        prompts = [list(range(100)), list(range(1_000, 1_300))]
        [answer] = await ask(server, "/v1/completions", completion(prompt=prompts))

        assert answer.status == 200
        assert [outcome.prompt_tokens for outcome in server.router.snapshot().recent] == [400]
        assert len(engines[0].asked) == 1

    run([whole], talk)
