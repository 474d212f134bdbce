"""The process of one frontend of several, with the page."""

from __future__ import annotations

from jevons.cli.pages import live_pages
from jevons.serve.frontend import main

if __name__ == "__main__":
    main(live_pages)
