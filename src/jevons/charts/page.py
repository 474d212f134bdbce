"""A page that holds its pictures and the program that draws them, and fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from jevons.base.errors import ConfigError
from jevons.charts.picture import Picture

# Whatever a text in it says, a browser that shows the page asks no other host for anything.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A text that opens: its head is always seen, its lines when somebody asks."""

    head: str
    mark: str  # a few words, apart from the head
    lines: Sequence[str]


_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 16px 12px 32px; max-width: 860px; background: #fff; color: #222;
  font: 15px/1.45 system-ui, "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
h1 { font-size: 21px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 16px; margin: 0; }
figure { margin: 28px 0 0; break-inside: avoid; }
figcaption p { margin: 2px 0 8px; color: #444; font-size: 14px; }
details { border: 1px solid #ccc; border-radius: 6px; margin: 8px 0; padding: 8px 10px; font-size: 14px;
  overflow-wrap: anywhere; }
summary { cursor: pointer; }
summary b { display: block; margin: 2px 0 0 16px; }
details p { margin: 6px 0 0 16px; color: #444; }
.cards { margin-top: 28px; }
footer { margin-top: 32px; padding-top: 10px; border-top: 1px solid #ccc; font-size: 13px; color: #444;
  overflow-wrap: anywhere; }
footer p { margin: 3px 0; }
"""

# Names have places for several widths; everything else Plotly fits by itself.
_PROGRAM = """
const font = getComputedStyle(document.body).fontFamily;
const drawn = Promise.all(JSON.parse(document.getElementById("pictures").textContent).map((told) => {
  const place = document.getElementById(told.id);
  let shown;
  const draw = () => {
    const { data, layout, names } = structuredClone(told);
    const width = place.clientWidth - layout.margin.l - layout.margin.r;
    const { width_px, height_px, placed } = names.filter((each) => each.width_px <= width).at(-1) ?? names[0];
    if (width_px === shown) return;
    shown = width_px;
    place.style.height = `${height_px}px`;
    layout.height = height_px;
    layout.annotations = placed;
    layout.font.family = font;
    return Plotly.react(place, data, layout, { displayModeBar: false, responsive: true, typesetMath: false });
  };
  addEventListener("resize", draw);
  return draw();
}));
"""


def page(title: str, notes: Sequence[str], pictures: Sequence[Picture], cards: Sequence[Card] = ()) -> str:
    """One HTML file: the pictures, cards, and below them the notes: how far to trust it, and where figures are from.

    The same arguments give the same text. About 5 MB, nearly all of it Plotly's program.

    Raises:
        ConfigError: Plotly is not installed.
    """
    program = plotly_program()
    told = [
        {"id": f"picture-{i}", "data": p.data, "layout": p.layout, "names": p.names} for i, p in enumerate(pictures)
    ]
    # In a script element, text ends at its end tag and nowhere else: no `<` leaves none.
    data = msgspec.json.encode(told).decode().replace("<", "\\u003c")
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        "<noscript><p>The pictures are drawn by a script in this file, which asks no other host for anything.</p>"
        "</noscript>",
        *(_figure(i, picture) for i, picture in enumerate(pictures)),
        *(['<div class="cards">', *(_card(card) for card in cards), "</div>"] if cards else []),
        "<footer>",
        *(f"<p>{escape(note)}</p>" for note in notes),
        "</footer>",
        f'<script type="application/json" id="pictures">{data}</script>',
        f"<script>{program}</script>",
        f"<script>{_PROGRAM}</script>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def plotly_program() -> str:
    """Plotly's program for browsers.

    Raises:
        ConfigError: Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError("pictures need Plotly, which is not installed: pip install 'jevons[charts]'") from error
    return str(get_plotlyjs())


def _card(card: Card) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in card.lines)
    return f"<details><summary>{escape(card.head)}<b>{escape(card.mark)}</b></summary>{lines}</details>"


def _figure(i: int, picture: Picture) -> str:
    title, about = escape(picture.title), escape(picture.about)
    caption = f"<figcaption><h2>{title}</h2>" + (f"<p>{about}</p>" if about else "") + "</figcaption>"
    drawn = (
        f'<div id="picture-{i}" role="img" aria-label="{title}" style="height:{picture.names[-1].height_px}px"></div>'
    )
    return f"<figure>{caption}{drawn}</figure>"
