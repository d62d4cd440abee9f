"""Pages that need nothing else: one HTML file with its pictures inside, for wide and narrow screens, light and dark.

Pictures are small SVGs whose colours are the page's CSS variables.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #1f2328; --quiet: #666d76;
  --line: #e2dfd8; --bar: #3b6ea8; --accent: #c8743a; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #1e2125; --ink: #e8e6e1; --quiet: #9ba1a9;
  --line: #353a40; --bar: #7aa7d9; --accent: #e0975f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .4rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .2rem 0 .5rem; max-width: 46rem; }
.quiet, small, caption { color: var(--quiet); font-size: .85rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1.2rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .9rem; }
.card, .figures div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem 1rem; }
.figures b { display: block; font-size: 1.4rem; line-height: 1.25; font-weight: 600; }
figure { margin: 0; }
figcaption { margin-bottom: .5rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line); }
th, td { text-align: left; vertical-align: top; padding: .4rem .7rem; border-top: 1px solid var(--line); }
th { font-weight: 600; font-size: .85rem; color: var(--quiet); }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
@media (max-width: 36rem) { body { padding: .8rem; } th, td { padding: .35rem .5rem; } }
"""
# Stand-ins that become CSS variables in the SVG, so that one picture serves light and dark.
INK, QUIET, LINE, BAR, ACCENT = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "var(--ink)", QUIET: "var(--quiet)", LINE: "var(--line)", BAR: "var(--bar)", ACCENT: "var(--accent)"}
PLOT_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "midigpt",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.left": False,
}
WIDTH, HEIGHT = 4.6, 2.5  # inches of 72 CSS pixels: about a phone's width


def whole_page(title: str, parts: Iterable[str], style: str = "") -> str:
    """The page of these parts, each HTML, without the empty ones; `style` is CSS that only this page needs."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def figures(cells: Iterable[tuple[str, str]]) -> str:
    """Large figures, each with what it counts."""
    shown = "".join(f"<div><b>{figure}</b><small>{what}</small></div>" for figure, what in cells)
    return f'<div class="figures">{shown}</div>'


def cards(plots: Iterable["Plot"]) -> str:
    """Pictures side by side."""
    drawn = "\n".join(
        f'<figure class="card"><figcaption><h3>{plot.title}</h3><small>{plot.caption}</small></figcaption>'
        f"{plot.svg}</figure>"
        for plot in plots
    )
    return f'<div class="plots">\n{drawn}\n</div>'


@dataclass(frozen=True)
class Plot:
    title: str
    caption: str
    svg: str


def svg(draw: Callable[["Figure"], None], label: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """What `draw` puts on a figure (inches), as an element of a page; `label` is read to those who don't see it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = StringIO()
        figure.savefig(out, format="svg", transparent=True)
    return _inline(out.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """matplotlib's SVG file as an element of a page: no header, no metadata, no ids, CSS colours."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    (box,) = re.findall(r'viewBox="[^"]*"', svg[: svg.index(">")])
    return f'<svg role="img" aria-label="{label}" {box}>' + svg[svg.index(">") + 1 :]
