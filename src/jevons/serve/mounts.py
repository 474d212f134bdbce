"""Pages of other rooms behind the door: who composes the server says which (`facts.page`)."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine, Mapping
from typing import Any

from jevons.base.errors import RequestError
from jevons.facts.page import Asked, Mount, Page
from jevons.serve.http import Reply, Request
from jevons.serve.openai import error_body


class Mounts:
    """A handler for a door that has nothing else, or for what a front does not know itself."""

    def __init__(self, mounts: Mapping[str, Mount]) -> None:
        self._mounts = mounts

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self._mounts)

    def has(self, path: str) -> bool:
        return path in self._mounts

    async def answer(self, request: Request, reply: Reply) -> None:
        """Raises RequestError if the page does."""
        kind = request.headers.get("content-type", "")
        page = self._mounts[request.path](Asked(request.method, request.query, request.body, kind))
        send(reply, await page if inspect.isawaitable(page) else page)

    def __call__(self, request: Request, reply: Reply) -> Coroutine[Any, Any, None]:
        return self._alone(request, reply)

    async def _alone(self, request: Request, reply: Reply) -> None:
        try:
            if not self.has(request.path):
                known = ", ".join(self.paths)
                raise RequestError(f"path: must be one of {known}, got {request.path[:100]!r}", status=404)
            await self.answer(request, reply)
        except RequestError as error:
            reply.send(error.status, error_body(str(error), error.status, error.param, error.code))


def send(reply: Reply, page: Page) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in page.headers.items())
    reply.send(page.status, page.body, page.content_type.encode("latin-1"), lines.encode("latin-1"))
