"""The judge's page: figures, what overlaps how far, the distributions, piano rolls, copies."""

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from midigpt.judge import HELD_OUT, REAL, SHUFFLED, TAKES, Copied, Group, Judgement, Piece, Row, copied_notes
from midigpt.likeness import Likeness, density, make_axis, place
from midigpt.page import ACCENT, BAR, INK, LINE, QUIET, Plot, cards, figures, svg, whole_page
from midigpt.score import IntArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLLS = 3  # piano rolls of takes, and as many of held-out pieces
COPIES = 10  # takes by name, those with the longest copied passages
COLOURS = {TAKES: ACCENT, REAL: BAR, SHUFFLED: QUIET}
TICKS = 9  # of a histogram's axis, at most

READING = (
    "<b>Overlap</b> is the area that the distribution of a feature over the takes has in common with that over the"
    " held-out pieces: 1 if they are the same. Two finite samples never are, so read a figure between"
    " <i>real against real</i>, training pieces against held-out ones, which is as good as it gets, and"
    " <i>shuffled</i>, whose notes are those of the held-out pieces drawn at random. <b>KL</b> is the divergence of the"
    " takes from the held-out pieces in bits: 0 if they are the same. ± is a standard error over songs. A take can do"
    " well here and bore you: listen."
)
STYLE = """
table.features td.number small { display: inline; }
.scroll { overflow-x: auto; }
.scroll table { overflow-wrap: normal; }
.wide { max-width: 52rem; margin-bottom: 1rem; }
.key span { display: inline-block; width: .9rem; height: .3rem; margin: 0 .35rem .15rem 1rem; border-radius: .2rem; }
"""


def render(judgement: Judgement) -> str:
    """The page as text."""
    title = f"Takes of {judgement.model}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(basis(judgement))}</p>',
        figures(headline(judgement)),
        *(f"<p>{escape(remark[:1].upper() + remark[1:])}.</p>" for remark in judgement.remarks),
        "<h2>How like the held-out pieces</h2>",
        f"<p>{READING}</p>",
        *(_group(group) for group in judgement.groups),
        _copies(judgement),
        _rolls(judgement.groups[0]),
    ]
    return whole_page(title, parts, STYLE)


def basis(judgement: Judgement) -> str:
    """What the figures rest on."""
    given = ((name.replace("_", "-"), value) for name, value in judgement.drawing.items() if value is not None)
    drawn = ", ".join(f"{name} {value}" for name, value in given)
    sizes = "; ".join(
        f"{group.name}: {len(group.pieces[TAKES]):,} takes, {len(group.pieces[HELD_OUT]):,} held-out documents of"
        f" {len({piece.song for piece in group.pieces[HELD_OUT]}):,} songs, {len(group.pieces[REAL]):,} training"
        " documents"
        for group in judgement.groups
    )
    return f"Drawn with {drawn}. The first {judgement.notes} notes of each. {sizes[:1].upper()}{sizes[1:]}."


def headline(judgement: Judgement) -> list[tuple[str, str]]:
    """(figure, what it says)."""
    found = [
        (f"{judgement.valid:,} of {judgement.takes:,}", "takes are valid"),
        (
            f"{judgement.bits_per_note:.3f}",
            f"bits per note on {judgement.songs:,} held-out songs (by token frequencies alone"
            f" {judgement.unigram_bits_per_note:.3f})",
        ),
    ]
    for group in judgement.groups:
        takes, real, shuffled = (f"{group.mean_overlap(of):.2f}" for of in (TAKES, REAL, SHUFFLED))
        found.append((takes, f"mean overlap, {group.name} (real against real {real}, shuffled {shuffled})"))
    if judgement.copies:
        takes, real = (f"{np.median(copied_notes(judgement.copies[of])):.0f}" for of in (TAKES, HELD_OUT))
        found.append((f"{takes} notes", f"longest copy in the median take (in real held-out pieces {real})"))
    return found


def figure_and_error(value: float, error: float | None) -> str:
    """As 0.93 ±0.02."""
    return f"{value:.2f}" + ("" if error is None else f" ±{error:.2f}")


def means(row: Row) -> list[str]:
    """Of the takes, the training and the held-out pieces; empty for histograms."""
    return ["" if row.feature.bins else f"{row.values[of].mean():.2f}" for of in (TAKES, REAL, HELD_OUT)]


# --- what overlaps how far -------------------------------------------------------------------------------


def _group(group: Group) -> str:
    overview = svg(partial(_overview, rows=group.rows), f"Overlaps of {group.name}", 8.2, 0.7 + 0.27 * len(group.rows))
    key = "".join(
        f'<span style="background: var(--{colour})"></span>{name}'
        for name, colour in ((TAKES, "accent"), (HELD_OUT, "bar"), (SHUFFLED, "quiet"))
    )
    plots = [
        Plot(row.feature.name, f"{row.feature.unit}; {escape(row.feature.source)}", _distribution(row))
        for row in group.rows
    ]
    return (
        f"<h3>{group.name[:1].upper()}{group.name[1:]}</h3>\n"
        f'<figure class="card wide">{overview}</figure>\n{_table(group)}\n'
        f'<h2>Distributions: {group.name}</h2>\n<p class="key quiet">{key}</p>\n{cards(plots)}'
    )


def _table(group: Group) -> str:
    head = "<tr><th>feature" + "".join(
        f"<th class=number>{what}"
        for what in ("takes", "KL", REAL, "KL", SHUFFLED, "KL", "mean of takes", "training", HELD_OUT)
    )
    rows = []
    for row in group.rows:
        cells = []
        for of in (TAKES, REAL, SHUFFLED):
            cells += [_cell(row.likeness[of]), f"{row.likeness[of].divergence:.2f}"]
        cells += means(row)
        rows.append(
            f"<tr><td>{row.feature.name}<br><small>{row.feature.unit}</small></td>"
            + "".join(f'<td class="number">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    return f'<div class="scroll"><table class="features">\n{head}</tr>\n' + "\n".join(rows) + "\n</table></div>"


def _cell(likeness: Likeness) -> str:
    error = "" if likeness.overlap_error is None else f" <small>±{likeness.overlap_error:.2f}</small>"
    return f"{likeness.overlap:.2f}{error}"


def _overview(figure: "Figure", rows: Sequence[Row]) -> None:
    """A line a feature: the overlaps of all three, with their errors."""
    axes = figure.add_subplot()
    height = np.arange(len(rows))
    for of, marker in ((SHUFFLED, "o"), (REAL, "D"), (TAKES, "o")):
        found = [row.likeness[of] for row in rows]
        overlap = [likeness.overlap for likeness in found]
        errors = [likeness.overlap_error or 0 for likeness in found]
        axes.errorbar(
            overlap, height, xerr=errors, fmt=marker, color=COLOURS[of], markersize=5.5, elinewidth=1.2, label=of
        )
    axes.set_yticks(height, [row.feature.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.03)
    axes.set_xlabel("overlap with the held-out pieces")
    axes.grid(axis="both", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=9, labelcolor=QUIET)


# --- distributions ---------------------------------------------------------------------------------------


def _distribution(row: Row) -> str:
    draw = _histogram if row.feature.bins else _densities
    return svg(partial(draw, row=row), f"{row.feature.name} of takes, held-out and shuffled pieces", height=2.1)


def _densities(figure: "Figure", row: Row) -> None:
    real = row.values[HELD_OUT]
    axis = make_axis(real, len(real), row.feature.finest)
    curves = {of: density(axis, place(axis, row.values[of])) for of in (HELD_OUT, TAKES, SHUFFLED)}
    axes = _axes(figure, row.feature.unit)
    axes.fill_between(axis.points, curves[HELD_OUT], color=BAR, alpha=0.35, linewidth=0)
    axes.plot(axis.points, curves[SHUFFLED], color=QUIET, linewidth=1.2, linestyle=(0, (3, 2)))
    axes.plot(axis.points, curves[TAKES], color=ACCENT, linewidth=1.8)
    seen = np.concatenate([row.values[of] for of in curves]).clip(axis.points[0], axis.points[-1])
    margin = 0.05 * np.ptp(seen) + row.feature.finest
    axes.set_xlim(seen.min() - margin, seen.max() + margin)
    axes.set_ylim(0)


def _histogram(figure: "Figure", row: Row) -> None:
    mean = {of: row.values[of].mean(axis=0) for of in (HELD_OUT, TAKES, SHUFFLED)}
    axes = _axes(figure, row.feature.unit)
    edges = np.arange(len(row.feature.bins) + 1) - 0.5
    axes.bar(edges[:-1] + 0.5, mean[HELD_OUT], width=1, color=BAR, alpha=0.35, linewidth=0)
    axes.stairs(mean[SHUFFLED], edges, color=QUIET, linewidth=1.2, linestyle=(0, (3, 2)))
    axes.stairs(mean[TAKES], edges, color=ACCENT, linewidth=1.8)
    every = -(-len(row.feature.bins) // TICKS)
    offset = (len(row.feature.bins) // 2) % every  # so that the middle has a tick
    ticks = np.arange(len(row.feature.bins))[offset::every]
    axes.set_xticks(ticks, [row.feature.bins[tick] for tick in ticks])
    axes.set_xlim(edges[0], edges[-1])


def _axes(figure: "Figure", unit: str) -> "Axes":
    axes = figure.add_subplot()
    axes.set_xlabel(unit)
    axes.set_yticks([])
    return axes


# --- copies and piano rolls ------------------------------------------------------------------------------


def _copies(judgement: Judgement) -> str:
    if not judgement.copies:
        return ""
    longest = sorted((c for c in judgement.copies[TAKES] if c.copy), key=lambda c: -c.copy.notes)[:COPIES]
    rows = "\n".join(
        f'<tr><td>{escape(c.name)}</td><td class="number">{c.copy.notes}</td><td class="number">{c.copy.seconds:.1f}'
        f"</td><td>{escape(c.copy.song)}, part {c.copy.track}, bar {c.copy.bar}</td></tr>"
        for c in longest
    )
    notes = {of: copied_notes(some) for of, some in judgement.copies.items()}
    picture = svg(partial(_copied, notes=notes), "Longest copied passages of takes and held-out pieces", 8.2, 2.2)
    head = "<tr><th>take<th class=number>notes<th class=number>seconds<th>stands in</tr>"
    return (
        "<h2>Copied passages</h2>\n<p>The longest passage of each piece that stands in the training set, in any key, in"
        " notes. Music quotes itself: real held-out pieces, which the model has not seen, are the yardstick.</p>\n"
        f'<figure class="card wide">{picture}</figure>\n<table>\n{head}\n{rows}\n</table>'
    )


def _copied(figure: "Figure", notes: dict[str, IntArray]) -> None:
    axes = _axes(figure, "notes copied")
    edges = np.linspace(0, max(int(n.max(initial=1)) for n in notes.values()) + 1, 33).round()
    edges = np.unique(edges) - 0.5
    share = {of: np.histogram(n, edges)[0] / len(n) / np.diff(edges) for of, n in notes.items()}
    axes.bar(edges[:-1], share[HELD_OUT], np.diff(edges), align="edge", color=BAR, alpha=0.35, linewidth=0)
    axes.stairs(share[TAKES], edges, color=ACCENT, linewidth=1.8)


def copies_lines(copies: dict[str, list[Copied]]) -> list[str]:
    """The copied passages for the terminal."""
    lines = []
    for of, some in copies.items():
        notes = copied_notes(some)
        worst = some[int(notes.argmax())]
        where = f" ({worst.name}: {worst.copy.song}, bar {worst.copy.bar})" if worst.copy else ""
        lines.append(
            f"{of}: {np.median(notes):.0f} notes in the median, {np.percentile(notes, 90):.0f} in one of ten,"
            f" {notes.max()} at most{where}"
        )
    return lines


def _rolls(group: Group) -> str:
    plots = []
    for of, colour in ((TAKES, ACCENT), (HELD_OUT, BAR)):
        for piece in group.pieces[of][:: len(group.pieces[of]) // ROLLS][:ROLLS]:
            label = f"Piano roll of {piece.name}"
            picture = svg(partial(_roll, piece=piece, colour=colour), escape(label), height=2.0)
            tempo, meter = f"{piece.score.tempo_bpm:.0f} beats a minute", "/".join(map(str, piece.score.meter))
            plots.append(Plot(escape(piece.name), f"{of}; {meter}, {tempo}", picture))
    return f"<h2>To look at</h2>\n{cards(plots)}"


def _roll(figure: "Figure", piece: Piece, colour: str) -> None:
    from matplotlib.ticker import MaxNLocator, MultipleLocator

    score = piece.score
    axes = figure.add_subplot()
    beat = score.ticks_per_beat
    for track in score.tracks:
        axes.barh(track.pitch, track.duration / beat, left=track.onset / beat, height=0.9, color=colour, linewidth=0)
    pitches = np.concatenate([track.pitch for track in score.tracks])
    bar = score.meter[0] * 4 / score.meter[1]
    axes.xaxis.set_major_locator(MultipleLocator(bar * max(1, round(score.end / beat / bar / 8))))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(0, score.end / beat)
    axes.set_ylim(min(pitches.min() - 2, pitches.mean() - 8), max(pitches.max() + 2, pitches.mean() + 8))
    axes.set_xlabel("beats, ruled by bars", color=INK)
