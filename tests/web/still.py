"""A fleet at one moment, and its pages."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from jevons.base.ids import RequestId, WorkerId
from jevons.config.catalog import read_catalog
from jevons.control.router import Router
from jevons.control.watch import Watch
from jevons.facts.page import Asked, Mount, Page
from jevons.facts.view import View
from jevons.facts.worker import WorkerFacts
from jevons.web.site import chat, site

GET = Asked("GET")


class Still:
    """A fleet at one moment, two seconds after it began."""

    def __init__(self, chip: str = "h100") -> None:
        self._chip = chip
        self.router, self.watch = Router(), Watch(0.0)
        self.router.join(WorkerFacts(id=WorkerId("w"), model="m", kind="k", chip=chip, chips=2))
        self.router.roster.heard(WorkerId("w"), 0.0)

    def place(self, id: str) -> None:
        placement = self.router.place(RequestId(id), [1, 2, 3], 1.0)
        self.watch.placed(RequestId(id), placement, 3, 1.0)

    def view(self, seen: int | None = None) -> View:
        watch = self.watch
        return View(
            source="live",
            title="m",
            began="0",
            now_s=2.0,
            policy="kv",
            workers=self.router.columns(seen),
            requests=watch.requests(),
            scatter=watch.scatter(),
            ttft=watch.ttft.times(2.0, 2.0),
            itl=watch.itl.times(2.0, 0.1),
            rates=watch.rates(2.0),
            reuse=watch.reuse({}),
            placed=watch.placed_count,
            under_way=watch.under_way,
            finished=watch.finished,
            chip_s={self._chip: 4.0},
        )


def answer(mounts: dict[str, Mount], path: str, asked: Asked = GET) -> Page:
    page = mounts[path](asked)
    return asyncio.run(_waited(page)) if inspect.isawaitable(page) else page


async def _waited(page: Any) -> Page:
    found: Page = await page
    return found


def pages(still: Still | None = None) -> dict[str, Mount]:
    return site(still or Still(), read_catalog(), {"chat": chat})
