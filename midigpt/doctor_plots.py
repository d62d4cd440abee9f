"""Pictures of an examination: small inline SVGs whose colours are the page's CSS variables."""

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midigpt.doctor import DRUMS, MANY, Examination, length_bins
from midigpt.doctor_advice import family_shares
from midigpt.general_midi import FAMILIES, PROGRAMS
from midigpt.page import ACCENT, BAR, LINE, QUIET, WIDTH, Plot, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP_PROGRAMS = 12
TOP_METERS = 8


def draw(examination: Examination) -> list[Plot]:
    """All pictures, or none where no music was measured."""
    if not examination.music:
        return []
    return [
        Plot(title, caption, svg(partial(plot, examination=examination), f"{title}: {caption}"))
        for title, caption, plot in PLOTS
    ]


def _bars(figure: "Figure", names: list[str], shares: list[float], colours: list[str] | str = BAR) -> None:
    """Horizontal bars from the top down, each with its percentage."""
    figure.set_size_inches(WIDTH, 0.2 + 0.21 * len(names))
    axes = figure.add_subplot()
    axes.barh(names, [100 * share for share in shares], color=colours, height=0.72)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.margins(y=0.01)
    axes.set_xlim(0, 118 * max(shares))
    for row, share in enumerate(shares):
        text = "under 0.1" if 0 < share < 0.001 else f"{100 * share:.1f}"
        axes.text(100 * share + max(shares), row, f"{text} %", va="center", fontsize=9, color=QUIET)


def _columns(figure: "Figure", edges: NDArray[np.floating], counts: NDArray[np.floating], unit: str, of: str) -> "Axes":
    """A histogram in percent; returns its axes."""
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    shares = 100 * counts / max(counts.sum(), 1e-9)
    axes.bar(edges[:-1], shares, width=np.diff(edges), align="edge", color=BAR, edgecolor="none", antialiased=False)
    axes.set_xlabel(unit)
    axes.set_title(f"% of the {of}", loc="left", fontsize=9, color=QUIET)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(1.08 * float(shares.max(initial=0)), 1e-3))
    return axes


def _families(figure: "Figure", examination: Examination) -> None:
    shares = family_shares(examination)
    order = [row for row in np.argsort(-shares[:16], kind="stable").tolist() if shares[row]]
    rows = [*order, *([16] if shares[16] else [])]
    names = [*FAMILIES, "drums"]
    _bars(
        figure,
        [names[row] for row in rows],
        [float(shares[row]) for row in rows],
        [ACCENT if row == 16 else BAR for row in rows],
    )


def _programs(figure: "Figure", examination: Examination) -> None:
    used: Counter[int] = Counter()
    for music in examination.music.values():
        used.update(np.flatnonzero(music.programs).tolist())
    drums = used.pop(DRUMS, 0)
    rows = [(f"{PROGRAMS[program]} ({program})", files) for program, files in used.most_common(TOP_PROGRAMS)]
    rows += [("drums", drums)] if drums else []
    shares = [files / len(examination.music) for _, files in rows]
    colours = [ACCENT if name == "drums" else BAR for name, _ in rows]
    _bars(figure, [name for name, _ in rows], shares, colours)


def _tempo(figure: "Figure", examination: Examination) -> None:
    edges = np.arange(30, 246, 5.0)
    tempos = np.array([music.tempo_bpm for music in examination.music.values()]).clip(30, 244.9)
    # Whole tempos are meant: 120 counts from 120 on, however the file's microseconds round.
    axes = _columns(figure, edges, np.histogram(np.round(tempos, 2), edges)[0].astype(float), "beats a minute", "files")
    axes.set_xticks([30, 60, 90, 120, 150, 180, 210, 240], ["≤ 30", "60", "90", "120", "150", "180", "210", "≥ 240"])


def _pitch(figure: "Figure", examination: Examination) -> None:
    axes = _columns(figure, np.arange(129) - 0.5, examination.total("pitches")[:128], "pitch", "notes without drums")
    axes.set_xticks(range(0, 128, 12), [f"C{octave}" for octave in range(-1, 10)])


def _velocity(figure: "Figure", examination: Examination) -> None:
    axes = _columns(figure, np.arange(129) - 0.5, examination.total("velocities")[:128], "MIDI velocity", "notes")
    axes.set_xlim(0.5, 127.5)
    axes.set_xticks([1, 16, 32, 48, 64, 80, 96, 112, 127])


def _lengths(figure: "Figure", examination: Examination) -> None:
    middles = length_bins()
    half = (middles[1] / middles[0]) ** 0.5
    counts = examination.total("lengths")[: len(middles)]
    edges = np.append(middles / half, middles[-1] * half)
    axes = _columns(figure, edges, counts, "beats (1 is a quarter note)", "notes without drums")
    axes.set_xscale("log", base=2)
    named = {2.0**-6: "≤ 1/64", 1 / 16: "1/16", 1 / 4: "1/4", 1.0: "1", 4.0: "4", 16.0: "16"}
    axes.set_xticks(list(named), list(named.values()))
    axes.minorticks_off()


def _together(figure: "Figure", examination: Examination) -> None:
    shares = examination.total("together")[: MANY + 1]
    axes = _columns(figure, np.arange(MANY + 2) - 0.5, shares, "notes sounding together", "playing time")
    axes.set_xticks([0, 2, 4, 6, 8, 10, 12, 14, 16], ["0", "2", "4", "6", "8", "10", "12", "14", "≥ 16"])


def _minutes(figure: "Figure", examination: Examination) -> None:
    edges = 2.0 ** np.arange(-6, 7.01, 0.25)
    minutes = np.array([music.seconds / 60 for music in examination.music.values()])
    counts = np.histogram(minutes.clip(edges[0], edges[-1] * 0.999), edges)[0].astype(float)
    axes = _columns(figure, edges, counts, "length", "files")
    axes.set_xscale("log", base=2)
    named = {1 / 60: "1 s", 5 / 60: "5 s", 0.25: "15 s", 1.0: "1 min", 4.0: "4 min", 15.0: "15 min", 60.0: "1 h"}
    axes.set_xticks(list(named), list(named.values()))
    axes.minorticks_off()


def _meters(figure: "Figure", examination: Examination) -> None:
    count = Counter(music.meter for music in examination.music.values()).most_common()
    shown = count if len(count) <= TOP_METERS else count[: TOP_METERS - 1]
    other = sum(files for _, files in count[len(shown) :])
    rows = [*shown, *([("others", other)] if other else [])]
    _bars(figure, [meter for meter, _ in rows], [files / len(examination.music) for _, files in rows])


PLOTS = (
    ("Instruments", "Share of all notes, by General MIDI family. Drums apart.", _families),
    ("Programs", "The most frequent, by the share of files that use them; numbers count from 0.", _programs),
    ("Meter", "Share of files, by the first time signature; without one it is 4/4.", _meters),
    ("Tempo", "The first of each file; without one it is 120.", _tempo),
    ("Length of files", "From the first note to the last, at the file's first tempo. Log scale.", _minutes),
    ("Notes together", "Polyphony of the whole file, without drums and pedal; every file counts the same.", _together),
    ("Pitch", "C4 is middle C, MIDI note 60.", _pitch),
    ("Loudness", "Velocity; single high columns come from steps set by hand or by a program.", _velocity),
    ("Note lengths", "As written, without the sustain pedal; 1/4 beat is a sixteenth. Log scale.", _lengths),
)
