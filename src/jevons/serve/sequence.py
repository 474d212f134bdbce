"""One output sequence on its way from tokens to text: what was sent, what is held back, what a retry would need."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import msgspec

from jevons.base.ids import RequestId, WorkerId
from jevons.facts.request import Step, TokenLogprob, Work
from jevons.policy.route import Placement
from jevons.serve.openai import TokenText
from jevons.serve.stream import Delta
from jevons.serve.tokenizer import Detokenizer, StopFinder, Tokenizer


class Sequence:
    """One choice of an answer.

    `work` says what was asked, `tokens` what came: together they are all that going on elsewhere needs, since every
    draw depends on the seed and the token's number alone.
    """

    def __init__(self, index: int, work: Work, tokenizer: Tokenizer, stops: Seq[str]) -> None:
        self.index = index
        self.work = work
        self.tokens: list[int] = []
        self.cached_tokens: int | None = None
        self.finish: str | None = None
        self.worker: WorkerId | None = None
        self.placement: Placement | None = None  # the first
        self.first_s: float | None = None
        self.failed: list[WorkerId] = []  # workers that were lost under it
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopFinder(stops) if stops else None

    @property
    def started(self) -> bool:
        return bool(self.tokens)

    def work_as(self, id: RequestId, *, hand_over: bool) -> Work:
        """What is left of the work, under the name of one placement."""
        return msgspec.structs.replace(self.work, id=id, emitted=list(self.tokens), hand_over=hand_over)

    def push(self, step: Step) -> Delta:
        """Take what an engine step produced. Sets `finish` when the sequence is over, by a stop string too."""
        if step.cached_tokens is not None and self.cached_tokens is None:
            self.cached_tokens = step.cached_tokens
        self.tokens += step.tokens
        self.finish = step.finish
        # The token that stops an answer is not part of its text.
        shown = step.tokens[:-1] if step.finish == "stop" else step.tokens
        text = self._detokenizer.push(shown)
        if self.finish is not None:
            text += self._detokenizer.flush()
        return Delta(self._until_stop(text), self._logprobs(step.tokens, step.logprobs), self.finish)

    def _until_stop(self, text: str) -> str:
        if self._stops is None:
            return text
        text, stopped = self._stops.push(text)
        if stopped:
            self.finish = "stop"
        elif self.finish is not None:
            text += self._stops.flush()
        return text

    def _logprobs(self, tokens: Seq[int], logprobs: Seq[TokenLogprob]) -> list[TokenText]:
        return [self._token_text(token, logprob) for token, logprob in zip(tokens, logprobs, strict=False)]

    def _token_text(self, token: int, logprob: TokenLogprob) -> TokenText:
        text, raw = self._tokenizer.token_text, self._tokenizer.token_bytes
        return TokenText(text(token), raw(token), logprob, [(text(id), raw(id), value) for id, value in logprob.top])
