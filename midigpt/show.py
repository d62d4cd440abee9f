"""A score to look at: a piano roll, in rows like a printed score, each track in its colour."""

import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midigpt.files import printable, replacing
from midigpt.general_midi import DRUM_KINDS, PROGRAMS, drum_kind
from midigpt.score import Score, Track

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The first six are of Okabe and Ito (2008); each of the others was chosen to be as far as possible, in Oklab, from all
# before it, for normal eyes and three kinds of colour blindness (Machado et al. 2009).
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b59f00", "#690f1e", "#3c0096"]
COLOURS += ["#d21ec3", "#874b00", "#2d4b69", "#8778ff", "#875a78", "#d2a596", "#5a00ff", "#0000d2"]
DRUM_COLOUR = "#444444"
INK, QUIET = "#222222", "#707070"
BAR_LINE, BEAT_LINE, PROMPT_PAPER = "#bdbdbd", "#e6e6e6", "#f7efda"
BLACK_KEY = (0, 0, 0, 0.035)
PALE, FAINT = 0.2, 0.4  # shares of a colour: inside a prompt's notes, and in the softest note
BLACK_KEYS = (1, 3, 6, 8, 10)

LANE = 3.0  # semitones high is the lane of a kind of drum
STROKE = 1 / 8  # beats long is a stroke on a drum
# Inches.
ROW_WIDTH, NARROWEST = 14.0, 7.0
SEMITONE = 0.036
LEFT, RIGHT, BETWEEN, TITLE, LEGEND_LINE = 0.85, 0.2, 0.5, 0.35, 0.2
SMALLEST = 0.02  # of a note's length
DPI = 110
ROW_BEATS = 64
MAX_ROWS = 12  # a longer piece has more beats a row
MAX_BARS = 100_000  # what is beyond is not drawn
LEGEND_TRACKS = 32


def draw_piano_roll(
    score: Score, path: Path, title: str = "", cut: int | None = None, bars: Sequence[int] | None = None
) -> None:
    """Write a piano roll as .png: rows of bars from left to right, pitch upwards, drums in lanes below, loud is dark.

    What starts before the tick `cut` is a prompt: its notes are hollow, on tinted paper. `bars` are the ticks at which
    bars start, for a piece whose meter changes; by itself score.meter holds throughout.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = piano_roll_figure(score, printable(title), cut, bars)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the font lacks a letter of the title
        figure.savefig(temporary, format="png")


def piano_roll_figure(
    score: Score, title: str = "", cut: int | None = None, bars: Sequence[int] | None = None
) -> "Figure":
    """The picture that draw_piano_roll writes."""
    from matplotlib.figure import Figure

    starts = bar_starts(score, bars)
    rows = _rows(score, starts, cut)
    longest = max(end - start for start, end in rows)
    width = min(max(longest / score.ticks_per_beat / ROW_BEATS * ROW_WIDTH, NARROWEST), ROW_WIDTH)
    low, high, _ = _heights(score)
    height = (high - low) * SEMITONE

    legend = _legend(score)
    columns = max(1, int((width + LEFT) / (0.5 + 0.075 * max(len(name) for name, _ in legend)))) if legend else 1
    head = 0.1 + TITLE * bool(title) + LEGEND_LINE * -(-len(legend) // columns) + (0.15 if cut is None else 0.3)
    size = (LEFT + width + RIGHT, head + len(rows) * (height + BETWEEN))
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    left = LEFT / size[0]
    if title:
        top = 1 - 0.12 / size[1]
        figure.text(left, top, title, va="top", fontsize=12, color=INK, parse_math=False)
    if legend:
        _draw_legend(figure, legend, columns, (left, 1 - (0.05 + TITLE * bool(title)) / size[1]))
    for number, (start, end) in enumerate(rows):
        bottom = size[1] - head - number * (height + BETWEEN) - height
        box = (left, bottom / size[1], width * (end - start) / longest / size[0], height / size[1])
        piano_roll(figure.add_axes(box), score, cut, bars, (start, end))
    return figure


def bar_starts(score: Score, bars: Sequence[int] | None = None) -> NDArray[np.float64]:
    """The ticks of all bar lines, (bars + 1,), from 0 to the end; behind `bars` all are as long as its last."""
    numerator, denominator = score.meter
    known = np.unique(np.array([0, *(bars or ())], float))
    length = known[-1] - known[-2] if len(known) > 1 else score.ticks_per_beat * 4 * numerator / denominator
    more = min(max(int(np.ceil((score.end - known[-1]) / length)), 1 if len(known) == 1 else 0), MAX_BARS)
    return np.concatenate([known, known[-1] + length * np.arange(1, more + 1)])


def _rows(score: Score, starts: NDArray[np.float64], cut: int | None) -> list[tuple[float, float]]:
    """First and last tick of each row: as many bars as fit, of many a multiple of four. Silent rows are left out."""
    none = np.zeros(0, np.int64)
    onset = np.concatenate([none, *(track.onset for track in score.tracks)])
    end = np.concatenate([none, *(track.onset + track.duration for track in score.tracks)])
    first = int(np.searchsorted(starts[1:-1], onset.min(initial=score.end), side="right"))  # bars of silence before
    ticks = max(ROW_BEATS * score.ticks_per_beat, (starts[-1] - starts[first]) / MAX_ROWS)
    rows: list[tuple[float, float]] = []
    while first < len(starts) - 1:
        bars = max(int(np.searchsorted(starts, starts[first] + ticks * 1.001)) - 1 - first, 1)
        if bars >= 8 and first + bars < len(starts) - 1:
            bars -= bars % 4
        start, stop = float(starts[first]), float(starts[first + bars])
        if ((onset < stop) & (end > start)).any() or (cut is not None and start <= cut < stop) or not rows:
            rows.append((start, stop))
        first += bars
    return rows


def _heights(score: Score) -> tuple[float, float, dict[str, float]]:
    """The lowest and highest place on the pitch axis, and the lower edge of each kind of drum's lane."""
    pitched = [track.pitch for track in score.tracks if not track.is_drum and len(track)]
    kinds = {drum_kind(pitch) for track in score.tracks if track.is_drum for pitch in np.unique(track.pitch).tolist()}
    if pitched or not kinds:
        pitch = np.concatenate(pitched) if pitched else np.array([60])
        low, high = int(pitch.min()) - 2, int(pitch.max()) + 3
        missing = max(24 - (high - low), 0)
        low, high = low - missing // 2, high + -(-missing // 2)
    else:
        low = high = 60
    lowest = low - LANE * len(kinds)
    used = [kind for kind in DRUM_KINDS if kind in kinds]
    return lowest, high, {kind: lowest + LANE * place for place, kind in enumerate(used)}


def piano_roll(
    axes: "Axes",
    score: Score,
    cut: int | None = None,
    bars: Sequence[int] | None = None,
    window: tuple[float, float] | None = None,
) -> None:
    """Draw the ticks of a window, or all, onto axes of the size they will have; the others as draw_piano_roll."""
    starts = bar_starts(score, bars)
    start, end = window or (0.0, float(starts[-1]))
    axes.set_xlim(start, end)
    _rule(axes, score, starts)
    if cut is not None:
        _mark_cut(axes, cut, start, end)
    shortest = (end - start) / axes.get_window_extent().width * DPI * SMALLEST
    _, _, lanes = _heights(score)
    # Long notes lie under short ones.
    tracks = zip(score.tracks, track_colours(score), strict=True)
    for track, colour in sorted(tracks, key=lambda pair: -pair[0].duration.mean() if len(pair[0]) else 0):
        inside = (track.onset < end) & (track.onset + track.duration > start)
        if inside.any():
            _draw_notes(axes, track, inside, colour, cut, lanes, shortest, STROKE * score.ticks_per_beat)


def track_colours(score: Score) -> list[str]:
    """A colour for each track; drums have one that no other has."""
    pitched = iter(range(len(score.tracks)))
    return [DRUM_COLOUR if track.is_drum else COLOURS[next(pitched) % len(COLOURS)] for track in score.tracks]


def _rule(axes: "Axes", score: Score, starts: NDArray[np.float64]) -> None:
    """Bars, beats where there is room, octaves, keys and lanes of drums."""
    from matplotlib.collections import PolyCollection

    start, end = axes.get_xlim()
    inches = axes.get_window_extent().width / DPI
    low, high, lanes = _heights(score)
    pitched_low = low + LANE * len(lanes)
    axes.set_ylim(low, high)
    black = [key for key in range(int(pitched_low) + 1, int(high)) if key % 12 in BLACK_KEYS]
    keys = [[(start, key - 0.5), (start, key + 0.5), (end, key + 0.5), (end, key - 0.5)] for key in black]
    axes.add_collection(PolyCollection(keys, facecolors=BLACK_KEY, linewidths=0, zorder=0), autolim=False)

    inside = starts[(starts >= start) & (starts <= end)]
    numbers = np.flatnonzero((starts >= start) & (starts < end)) + 1
    step = next((step for step in (1, 4, 10, 20, 40, 100, 400, 1000) if len(numbers) / step < inches / 0.3), 10_000)
    numerator, denominator = score.meter
    beat = score.ticks_per_beat * 4 / denominator * (3 if denominator >= 8 and numerator % 3 == 0 else 1)
    if (end - start) / beat < inches / 0.1:
        for first, last in pairwise(starts.tolist()):
            if first < end and last > start:
                axes.vlines(np.arange(first + beat, last, beat), low, high, BEAT_LINE, linewidth=0.5, zorder=0.5)
    lines = inside if len(inside) < inches / 0.05 else inside[::step]
    axes.vlines(lines, low, high, BAR_LINE, linewidth=0.7, zorder=0.6)
    octaves = [key for key in range(0, 128, 12) if pitched_low < key < high]
    edges = list(lanes.values()) + ([pitched_low] if lanes else [])
    axes.hlines([key - 0.5 for key in octaves], start, end, BAR_LINE, linewidth=0.6, zorder=0.6)
    axes.hlines(edges, start, end, BEAT_LINE, linewidth=0.6, zorder=0.6)
    if lanes and pitched_low < high:
        axes.axhline(pitched_low, color=QUIET, linewidth=0.8, zorder=3)
    named = [number for number in numbers.tolist() if (number - 1) % step == 0] or numbers[:1].tolist()
    axes.set_xticks([starts[number - 1] for number in named], [str(number) for number in named])
    axes.set_yticks(
        [*octaves, *(lane + LANE / 2 for lane in lanes.values())], [*(f"C{key // 12 - 1}" for key in octaves), *lanes]
    )
    axes.tick_params(length=0, labelsize=7.5, labelcolor=QUIET, pad=3)
    for spine in axes.spines.values():
        spine.set(color=BAR_LINE, linewidth=0.7)


def _mark_cut(axes: "Axes", cut: int, start: float, end: float) -> None:
    """Tinted paper under the prompt; a line where the continuation begins, named on both sides."""
    if cut > start:
        axes.axvspan(start, min(cut, end), color=PROMPT_PAPER, zorder=-1, linewidth=0)
    if start <= cut < end:
        axes.axvline(cut, color=INK, linewidth=1.4, zorder=4)
        sides = [("left", 4, "continuation \N{BLACK RIGHT-POINTING SMALL TRIANGLE}")]
        sides += [("right", -4, "\N{BLACK LEFT-POINTING SMALL TRIANGLE} prompt")] if cut > start else []
        for side, away, text in sides:
            place = (cut, axes.get_ylim()[1])
            axes.annotate(text, place, (away, 2), textcoords="offset points", ha=side, fontsize=8.5, color=INK)


def _draw_notes(
    axes: "Axes",
    track: Track,
    inside: NDArray[np.bool_],
    colour: str,
    cut: int | None,
    lanes: dict[str, float],
    shortest: float,
    stroke: float,
) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgb

    onset, pitch, velocity = track.onset[inside], track.pitch[inside], track.velocity[inside]
    middle: Any
    end: Any  # (N,) each
    if track.is_drum:
        middle, half = np.array([lanes[drum_kind(key)] for key in pitch.tolist()]) + 0.5 * LANE, 0.4 * LANE
        end = onset + max(stroke, shortest)
    else:
        middle, half = pitch.astype(float), 0.45
        end = onset + np.maximum(track.duration[inside], shortest)
    low, high = middle - half, middle + half
    corners: Any = np.array([(onset, low), (onset, high), (end, high), (end, low)]).transpose(2, 0, 1)  # (N, 4, 2)
    share = (FAINT + (1 - FAINT) * velocity / 127)[:, None]  # (N, 1) of the colour in the white
    shade = np.array(to_rgb(colour)) * share + (1 - share)
    inner = np.where((onset < (-1 if cut is None else cut))[:, None], shade * PALE + (1 - PALE), shade)
    notes = PolyCollection(corners, facecolors=inner, edgecolors=shade * 0.85, linewidths=0.7, zorder=2)
    axes.add_collection(notes, autolim=False)


def _legend(score: Score) -> list[tuple[str, str]]:
    """The name and colour of each track that has notes, tracks of one name numbered; drums once."""
    parts = [
        ("drums" if track.is_drum else PROGRAMS[track.program], colour)
        for track, colour in zip(score.tracks, track_colours(score), strict=True)
        if len(track)
    ]
    often = Counter(name for name, _ in parts)
    seen: Counter[str] = Counter()
    legend = []
    for name, colour in parts:
        seen[name] += 1
        if name != "drums":
            legend.append((f"{name} {seen[name]}" if often[name] > 1 else name, colour))
    legend += [("drums", DRUM_COLOUR)] if seen["drums"] else []
    more = len(legend) - LEGEND_TRACKS
    return legend if more <= 0 else [*legend[:LEGEND_TRACKS], (f"and {more} more", "white")]


def _draw_legend(figure: "Figure", legend: list[tuple[str, str]], columns: int, place: tuple[float, float]) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        [Patch(color=colour) for _, colour in legend],
        [name for name, _ in legend],
        loc="upper left",
        bbox_to_anchor=place,
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.0,
        handleheight=0.8,
        columnspacing=1.4,
        borderaxespad=0,
        borderpad=0,
    )
