"""Endpoints picked for a gateway of somebody else's: the same placements as behind our own door, told as IP:PORT.

Endpoints   where the gateway reaches the attached engines
Picker      a request, as far as it is known ──▶ Pick: one engine, counted against it, and who is next
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress

import msgspec

from jevons.base.errors import NoWorker, RequestError
from jevons.base.ids import RequestId, WorkerId
from jevons.control.router import Router
from jevons.engine.http_client import Address
from jevons.engine.specs import RANK_HEADER
from jevons.facts.worker import Health
from jevons.policy.route import Placement
from jevons.serve.admission import Admission
from jevons.serve.call import CHAT, COMPLETIONS, MAX_ATTEMPTS, Call
from jevons.serve.extproc import SUBSET
from jevons.serve.fleet import Attached, Fleet
from jevons.serve.http import Request
from jevons.serve.openai import UNREADABLE
from jevons.serve.pool import RESOLVE_S, joined, literal, look_up
from jevons.serve.prompts import Prompts

log = logging.getLogger("jevons.picker")

# Gateway API Inference Extension: the name of the model a request is for, as its body-based router found it, and the
# one that the engine is to be asked for instead.
MODEL = "x-gateway-model-name"
REWRITES = ("x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite", "x-llm-d-router-model-name-rewrite")
# Of a prompt that is not known only the size counts; what is longer than most contexts counts as that.
UNKNOWN_BYTES_PER_TOKEN, UNKNOWN_MOST_TOKENS = 4, 32_768


class Pick(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes."""

    id: RequestId
    placement: Placement
    endpoints: str  # IP:PORT of its engine, then of those to try next, after commas
    call: Call | None  # None: placed by load, its prompt is not known
    request: Request
    headers: dict[str, str]  # to set in the request
    body: bytes | None = None  # what the engine gets instead of the client's; None: the client's

    @property
    def worker(self) -> WorkerId:
        return self.placement.worker


class Endpoints:
    """Where the gateway reaches each attached engine. Engines named by their address are known as soon as they come up;
    names are looked up again every `RESOLVE_S`, and when one of them comes up: it may be elsewhere now.

    Data-parallel ranks share an endpoint; which of them is meant, a header tells.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._told: set[str] = set()  # what was said once
        self._named: dict[Address, str] = {}  # where those named by DNS were when they were last found
        self._is_due = asyncio.Event()
        self.of: dict[WorkerId, str] = {}
        self.workers: dict[str, dict[int | None, WorkerId]] = {}  # at each endpoint, by rank
        self.most_ranks = 1  # at one endpoint
        fleet.on_join = self.joined

    async def keep(self) -> None:
        """Keep them fresh, until cancelled."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_due.wait(), RESOLVE_S)
            self._is_due.clear()
            await self.refresh()

    def engine(self, worker: WorkerId) -> Attached:
        return self._fleet.attached[worker]

    def find(self, worker: WorkerId) -> Attached | None:
        """None: it was let go."""
        return self._fleet.attached.get(worker)

    def rank(self, worker: WorkerId) -> int | None:
        return self.engine(worker).engine.spec.rank

    def joined(self, worker: WorkerId) -> None:
        """It has come up."""
        self.of = dict(self.of)  # another one: who looked at the last sees that
        self._seat(worker)
        if literal(self.engine(worker).engine.spec.address.host) is None:
            self._is_due.set()

    async def refresh(self) -> None:
        """Look up all names. Who is not found any more keeps the last address: its health tells what is there."""
        named: dict[Address, str] = {}
        for address in {attached.engine.spec.address for attached in list(self._fleet.attached.values())}:
            if literal(address.host) is None and not address.base:
                found = await self._find(address) or self._named.get(address)
                named |= {} if found is None else {address: found}
        self._named, self.of, self.workers, self.most_ranks = named, {}, {}, 1
        for id in self._fleet.attached:
            self._seat(id)

    def _seat(self, id: WorkerId) -> None:
        """It is at its endpoint, if that is known and nobody else's."""
        attached = self.engine(id)
        address, rank = attached.engine.spec.address, attached.engine.spec.rank
        endpoint = self._endpoint(address)
        if endpoint is None:
            return
        known = self.workers.get(endpoint, {}).items()
        there = {other: worker for other, worker in known if worker != id and self.find(worker) is not None}
        if there and (None in there or rank is None or rank in there):
            self._say(f"engine {attached.url}: {endpoint} is another engine's too, nothing is sent to it")
            return
        self.of[id], self.workers[endpoint] = endpoint, there | {rank: id}
        self.most_ranks = max(self.most_ranks, len(there) + 1)

    def _endpoint(self, address: Address) -> str | None:
        if address.base:
            self._say(f"engine {address.authority}{address.base}: a gateway sends to IP:PORT, not to a path below it")
            return None
        ip = literal(address.host)
        return self._named.get(address) if ip is None else joined(ip, address.port)

    async def _find(self, address: Address) -> str | None:
        try:
            found = await look_up(address.host, address.port)
        except OSError as error:
            self._say(f"engine {address.authority}: its name cannot be looked up: {error.strerror}")
            return None
        if len(found) > 1:
            hint = "addresses=each attaches an engine at each"
            self._say(f"engine {address.authority}: has {len(found)} addresses, all goes to {found[0]}; {hint}")
        return joined(found[0], address.port)

    def _say(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("%s", what)


class Outside(Collection[WorkerId]):
    """Workers that cannot be picked now: those behind our own door, and those outside the subset. Engines come and go
    while a request waits, so who they are is looked at again whenever that is asked.
    """

    def __init__(self, router: Router, endpoints: Endpoints, subset: frozenset[str] | None) -> None:
        self._router = router
        self._endpoints = endpoints
        self._subset = subset
        self._found: tuple[int, dict[WorkerId, str], frozenset[WorkerId]] = -1, {}, frozenset()

    def __contains__(self, worker: object) -> bool:
        return worker in self._now()

    def __iter__(self) -> Iterator[WorkerId]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def _now(self) -> frozenset[WorkerId]:
        seatings, of, found = self._found
        if seatings != self._router.seatings or of is not self._endpoints.of:
            seatings, of, subset = self._router.seatings, self._endpoints.of, self._subset
            allowed = of.keys() if subset is None else {id for id, endpoint in of.items() if endpoint in subset}
            found = frozenset(self._router.workers()).difference(allowed)
            self._found = seatings, of, found
        return found


class Picker:
    """Picks with the router that places behind our own door, and counts in its account.

    Args:
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        router: Router,
        endpoints: Endpoints,
        prompts: Prompts,
        admission: Admission,
        now_s: Callable[[], float],
    ) -> None:
        self._router = router
        self._endpoints = endpoints
        self._prompts = prompts
        self._admission = admission
        self._placements = admission.placements
        self._now_s = now_s
        self._outside = Outside(router, endpoints, None)

    @property
    def is_ready(self) -> bool:
        """Whether any engine can be picked."""
        return any(self._router.roster.health(id) is Health.UP for id in self._endpoints.of)

    async def pick(self, request: Request, subset: frozenset[str] | None, arrived_s: float) -> Pick:
        """Pick for a request whose whole body is known: by its prompt, where it has one.

        Args:
            subset: endpoints that alone may be picked; None: all.
            arrived_s: by the same clock.

        Raises:
            RequestError: the body is no request for the path, or too long for its model.
            TooLate: it asked to be refused rather than be late, and would be.
            NoWorker: none of those that may be picked is there.
        """
        avoid, sent = self._others(subset), request.body
        request.body = _rewritten(sent, _renamed(request)) if sent else sent
        body = None if request.body is sent else request.body
        if not sent or not request.path.endswith((CHAT, COMPLETIONS)):
            return self.pick_by_load(request, subset, body)
        request.path = CHAT if request.path.endswith(CHAT) else COMPLETIONS
        call = Call(request, arrived_s)
        try:
            call.prompts = await self._prompts.encode(call.asked)
            call.model = self._prompts.model_of(call.model)
        except RequestError as error:
            if error.code != "model_not_found":
                raise
            return self.pick_by_load(request, subset, body)  # an adapter, maybe: its engine knows
        id = call.attempt()
        ranked = self._router.rank(
            call.prompt,
            salt=call.asked.cache_salt or "",
            model=call.model,
            session=call.session,
            avoid=avoid,
            promise=call.promise,
            output_tokens=call.asked.output_limit,
            most=MAX_ATTEMPTS * self._endpoints.most_ranks,
            now_s=self._now_s(),
        )
        placement = await self._admission.enter(call, id, avoid)
        pick = Pick(
            id=id,
            placement=placement,
            endpoints=self._named(placement, ranked),
            call=call,
            request=request,
            headers=self._of_rank(placement)
            | ({"x-request-id": call.id} if "x-request-id" not in request.headers else {}),
            body=body,
        )
        return self._begun(pick)

    def pick_by_load(self, request: Request, subset: frozenset[str] | None, body: bytes | None = None) -> Pick:
        """Pick for a request whose prompt is not known, or that has none: the engine where it waits least.

        Args:
            body: what the engine gets instead of the client's; None: the client's.

        Raises:
            NoWorker: none of those that may be picked is there.
        """
        return self._begun(msgspec.structs.replace(self._by_load(request, self._others(subset)), body=body))

    def _by_load(self, request: Request, avoid: Collection[WorkerId]) -> Pick:
        model = self._model(request)
        id = RequestId(f"picked-{secrets.token_hex(12)}")
        tokens = [0] * _guessed_tokens(request)
        # Nobody has its blocks: a salt of its own keeps them from looking like those of the next one.
        most = MAX_ATTEMPTS * self._endpoints.most_ranks
        now_s = self._now_s()
        ranked = self._router.rank(tokens, salt=id, model=model, avoid=avoid, most=most, now_s=now_s)
        placement = self._router.place(id, tokens, now_s, salt=id, model=model, avoid=avoid)
        endpoints = self._named(placement, ranked)
        headers = self._of_rank(placement)
        return Pick(id=id, placement=placement, endpoints=endpoints, call=None, request=request, headers=headers)

    def moved(self, pick: Pick, endpoint: str) -> Pick:
        """The gateway went to another than the first endpoint: account for it there.

        Returns:
            The same pick if it did not, or if that endpoint is nobody we can place on.
        """
        if self._endpoints.find(pick.worker) is None:
            return pick
        worker = self._endpoints.workers.get(endpoint, {}).get(self._endpoints.rank(pick.worker))
        if worker is None or worker == pick.worker:
            return pick
        avoid = [id for id in self._router.workers() if id != worker]
        try:
            if pick.call is None:
                again = self._by_load(pick.request, avoid)
            else:
                id = pick.call.attempt()
                placement = self._placements.place(pick.call, id, pick.call.prompt, avoid)
                again = msgspec.structs.replace(pick, id=id, placement=placement)
        except NoWorker:
            return pick
        self.over(pick)
        return self._begun(again)

    def heard(self, pick: Pick) -> None:
        """Something of its answer went by: its engine lives."""
        engine = self._endpoints.find(pick.worker)
        if engine is not None:
            engine.heard()

    def over(self, pick: Pick, *, is_answered: bool = False) -> None:
        """It is over, whichever way; may be told twice, the second time when its engine is gone.

        Args:
            is_answered: its answer came to its end.
        """
        self._placements.done(pick.id, is_answered=is_answered)
        engine = self._endpoints.find(pick.worker)
        if engine is not None:
            engine.leave(pick.id)

    def _begun(self, pick: Pick) -> Pick:
        """Its engine owes an answer: whether it lives is looked at more often."""
        self._endpoints.engine(pick.worker).enter(pick.id)
        return pick

    def _others(self, subset: frozenset[str] | None) -> Outside:
        """Raises NoWorker where all are."""
        of = self._endpoints.of
        if not of or (subset is not None and subset.isdisjoint(of.values())):
            told = "none is attached" if subset is None else f"none of {SUBSET} is attached: {_some(subset)}"
            raise NoWorker(f"no endpoint can be picked: {told}")
        return self._outside if subset is None else Outside(self._router, self._endpoints, subset)

    def _named(self, placement: Placement, ranked: Iterable[Placement]) -> str:
        """The endpoint of the placement, and those to try next: each has the rank that the header names."""
        at, rank = self._endpoints, self._endpoints.rank(placement.worker)
        others = [at.of[p.worker] for p in ranked if p.worker in at.of]  # who left while it waited is none of them
        order = dict.fromkeys([at.of[placement.worker], *(e for e in others if rank in at.workers[e])])
        return ",".join(list(order)[:MAX_ATTEMPTS])

    def _of_rank(self, placement: Placement) -> dict[str, str]:
        rank = self._endpoints.rank(placement.worker)
        return {} if rank is None else {RANK_HEADER: str(rank)}

    def _model(self, request: Request) -> str | None:
        """The model it is for, if it is told and served here: other workers cannot answer it."""
        name = _renamed(request) or request.headers.get(MODEL) or _model_in(request.body)
        return self._prompts.model_of(name) if name in self._prompts.models() else None


def _renamed(request: Request) -> str | None:
    """The model that the engine is to be asked for, where that is another than the client's."""
    return next((request.headers[name] for name in REWRITES if name in request.headers), None)


class _Model(msgspec.Struct):
    model: str | None = None


def _model_in(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_Model).model
    except UNREADABLE:
        return None


def _rewritten(body: bytes, model: str | None) -> bytes:
    """The same request for another model; what cannot be read stays, and is refused where it is read."""
    if model is None:
        return body
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except UNREADABLE:
        return body
    return msgspec.json.encode({**fields, "model": msgspec.Raw(msgspec.json.encode(model))})


def _guessed_tokens(request: Request) -> int:
    """From 1: English has about four bytes a token."""
    declared = request.headers.get("content-length", "")
    size_bytes = len(request.body) or (int(declared) if declared.isdecimal() else 0)
    return max(1, min(size_bytes // UNKNOWN_BYTES_PER_TOKEN, UNKNOWN_MOST_TOKENS))


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (", …" if len(names) > 4 else "") if names else "it is empty"
