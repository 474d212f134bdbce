"""The page as commands compose it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jevons.config.catalog import read_catalog
from jevons.facts.page import Mount
from jevons.serve.app import Pages
from jevons.serve.front import Front
from jevons.serve.together import Together
from jevons.web.site import chat, site
from jevons.web.whatif import WhatIf


def live_pages(file: Path | None) -> Pages:
    """Of a server; `file`: what its catalog has besides.

    Raises:
        ConfigError: of that file.
    """
    catalog = read_catalog(file)

    def pages(server: Front | Together) -> Mapping[str, Mount]:
        return site(server, catalog, {"chat": chat, "what-if": WhatIf(server, catalog)})

    return pages
