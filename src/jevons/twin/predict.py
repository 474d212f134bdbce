"""What is predicted of a case, with given shares."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from jevons.config.catalog import Catalog
from jevons.perf.closed import Loop, Seen, closed_loop
from jevons.perf.roofline import Engine, Group, Shares, Work, iteration, steady
from jevons.perf.room import room_tokens
from jevons.perf.split import Split, split_loop
from jevons.twin.points import LARGEST_GROUP, Case, fits_beside

_USUAL_GROUP = 8  # chips that are tried where the layout is free, unless the weights need more
_GROWTH = 1.25  # of users, from one try to the next


class Predictor:
    """Predicts cases; remembers what users of a loop see, for several metrics are of the same one."""

    def __init__(self, catalog: Catalog, requests: int = 1_500) -> None:
        self._catalog = catalog
        self._requests = requests  # simulated of a loop
        self._seen: dict[bytes, Seen] = {}

    def value(self, case: Case, shares: Shares) -> float:
        """In the unit that the point states."""
        value = self._plain(case, shares) * case.times
        return value if case.dividend is None else case.dividend / value

    def _plain(self, case: Case, shares: Shares) -> float:
        match case.what:
            case "tpot":
                return self.seen(case, shares).tpot_s
            case "ttft":
                return shares.wait * self.seen(case, shares).ttft_s + shares.request_s
            case "rate":
                assert case.layout is not None
                return self.seen(case, shares).output_rate / case.layout.group.chips
            case "best rate":
                return max(_best_rate(each, case) for each in self._engines(case, shares))
        engine = case.engine(self._catalog, shares)
        if case.what == "decode rate":
            return _decode_rate(engine, case)
        assert case.work is not None
        seconds = iteration(engine, case.work).seconds
        return seconds if case.what == "step" else case.work.prompt_tokens / seconds / engine.group.chips

    def seen(self, case: Case, shares: Shares) -> Seen:
        """What the users of a case's loop see, without the front end."""
        shares = msgspec.structs.replace(shares, request_s=0.0, wait=1.0)  # come after
        name = msgspec.msgpack.encode((case.key, case.model, case.layout, case.loop, shares))
        if name not in self._seen:
            self._seen[name] = self._loop(case, shares)
        return self._seen[name]

    def _loop(self, case: Case, shares: Shares) -> Seen:
        assert case.loop is not None
        assert case.layout is not None
        engine, loop, layout = case.engine(self._catalog, shares), case.loop, case.layout
        room = room_tokens(engine, loop.input_tokens + loop.output_tokens, case.habits.memory_share)
        loop = msgspec.structs.replace(loop, room_tokens=room, requests=self._requests)
        if layout.prefill is None:
            return closed_loop(engine, loop)
        prefill = case.engine(self._catalog, shares, layout.prefill)
        split = Split(
            prefill=prefill,
            prefill_workers=layout.prefill_workers or _enough(prefill, engine, layout.decode_workers, loop),
            decode=engine,
            decode_workers=layout.decode_workers,
            move_s_per_token=_move_s(prefill),
        )
        return split_loop(split, loop)

    def _engines(self, case: Case, shares: Shares) -> Iterator[Engine]:
        """Engines of the case's layout, or of all that are tried where it is free."""
        if case.layout is not None:
            yield case.engine(self._catalog, shares)
            return
        chip, model = self._catalog.chips[case.key.chip], self._catalog.models[case.model]
        most = int(min(_USUAL_GROUP, chip.domain_size.value if chip.domain_size else 1))
        fits = False  # more than that only where it must be
        for chips in (1, 2, 4, 8, LARGEST_GROUP):
            if not fits_beside(model, case.key.weights, chips, chip):
                continue
            if chips > most and fits:
                continue
            fits = True
            yield case.engine(self._catalog, shares, Group(tensor=chips))
            if model.moe is not None and chips > 1:
                yield case.engine(self._catalog, shares, Group(tensor=chips, attention=chips, experts=chips))


def _enough(prefill: Engine, decode: Engine, workers: int, loop: Loop) -> int:
    """Prefill workers that keep so many decode workers busy."""
    state = steady(decode, loop.users / workers, loop.input_tokens, loop.output_tokens)
    asked = loop.users / (loop.output_tokens * state.step_s)
    return math.ceil(asked * steady(prefill, 1, loop.input_tokens, loop.output_tokens).prompt_s)


def _move_s(prefill: Engine) -> float:
    """Of one token's keys and values, over all of a prefill worker's links."""
    rate = prefill.chip.scale_out_bytes_per_s or prefill.chip.scale_up_bytes_per_s
    if rate is None:
        return 0.0
    size = prefill.kv_bytes * sum(kind.elements(1) for kind in prefill.model.attention)
    return size / (rate.value * prefill.shares.link * prefill.group.chips)


def _best_rate(engine: Engine, case: Case) -> float:
    """Output tokens a second of one chip, with as many users as the limit, places and memory allow, at least one."""
    assert case.loop is not None
    prompt, output = case.loop.input_tokens, case.loop.output_tokens
    held = prompt + case.habits.reserve * output
    most = room_tokens(engine, held, case.habits.memory_share) / held
    users = max(1.0, min(most, case.habits.seats * engine.group.attention))
    while True:
        state = steady(engine, users, prompt, output, case.habits.apart)
        if users == 1 or case.tpot_limit_s is None or state.tpot_s <= case.tpot_limit_s:
            return users * output / (state.prompt_s + output * state.tpot_s) / engine.group.chips
        users = max(1.0, users / _GROWTH)


def _decode_rate(engine: Engine, case: Case) -> float:
    """Of one chip that decodes alone: the largest batch within the limit, at least one."""
    assert case.loop is not None
    context = case.loop.input_tokens
    batch = max(1.0, room_tokens(engine, context, case.habits.memory_share) / context)
    while True:
        seconds = iteration(engine, Work(decodes=batch, context_tokens=batch * context)).seconds
        seconds /= engine.shares.tokens_per_step
        if batch == 1 or case.tpot_limit_s is None or seconds <= case.tpot_limit_s:
            return batch / seconds / engine.group.chips
        batch = max(1.0, batch / _GROWTH)
