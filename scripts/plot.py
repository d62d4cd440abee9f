"""Draw the curves of one or several runs, from their metrics.jsonl, to a PNG.

Example: python scripts/plot.py --runs waltzes tangos --x minutes --out curves.png
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from midigpt.files import UserError, make, parse_arguments, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {
    "tokens": ("tokens", "tokens seen"),
    "steps": ("step", "optimizer steps"),
    "minutes": ("minutes", "minutes of training"),
}
INK, QUIET, LINE = "#222222", "#707070", "#e2e2e2"
# Eight colours that the colour-blind tell apart (Okabe and Ito, 2008; the yellow darkened for white paper).
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b59f00", "#56b4e9", "#000000", "#e69f00"]
STYLE = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlepad": 20,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
}
TABLE_ROWS = 18


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    runs: tuple[str, ...] = ()
    """Names of runs, or folders of runs elsewhere; by itself all runs of the working folder."""
    x: Literal["tokens", "steps", "minutes"] = "tokens"
    """What the curves are drawn over."""
    out: Path | None = None
    """The picture, a .png; by itself train/runs/plot.png."""


@dataclass(frozen=True)
class Run:
    name: str
    records: list[dict[str, Any]]  # of metrics.jsonl

    def curve(self, x: str, y: str) -> tuple[list[float], list[float]]:
        """Two of a record's numbers, where it has both."""
        pairs = [(record.get(x), record.get(y)) for record in self.records]
        both = [(a, b) for a, b in pairs if a is not None and b is not None and math.isfinite(b)]
        return [a for a, _ in both], [b for _, b in both]

    def best(self, y: str) -> float:
        """The lowest value of all evaluations, infinite without any."""
        return min(self.curve("step", y)[1], default=math.inf)

    @property
    def best_bits(self) -> float:
        return min(self.best("val_bits_per_note"), self.best("average_val_bits_per_note"))


def find_runs(root: Path, names: tuple[str, ...]) -> list[Path]:
    """The folders of the runs that are meant; UserError where there is none of that name, or none at all."""
    folder = root / "train" / "runs"
    there = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
    if not there and not names:
        raise UserError(f"there are no runs in {folder} yet; train one with: {make(root, 'train')}")
    known = {path.name: path for path in there}
    for name in names:
        if name not in known and not (Path(name) / "metrics.jsonl").exists():
            others = f"there are {', '.join(known)}" if known else "there is none yet"
            raise UserError(f"there is no run {name} in {folder}; {others}")
    return [known.get(name, Path(name)) for name in dict.fromkeys(names)] if names else there


def read_run(folder: Path, x: str) -> Run:
    """A run's records, without a last line that is being written; UserError for other lines that are no records."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["step"]
            records.append(record)
        except (KeyError, TypeError, ValueError):
            if number < len(lines):
                raise UserError(f"{file}, line {number} is no record of the trainer's; take it out") from None
    if records and not any(AXES[x][0] in record for record in records):
        raise UserError(f"{file} says nothing of {x}; draw it over steps with --x steps")
    return Run(folder.resolve().name, records)


def draw(runs: list[Run], x: str) -> "Figure":
    """Four panels: train loss, validation, bits per note by position, and a table of the runs, best first."""
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    runs = sorted(runs, key=lambda run: run.best_bits)
    colours = COLOURS if len(runs) <= len(COLOURS) else colormaps["turbo"].resampled(len(runs))(range(len(runs)))
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 8), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        (train, val), (position, table) = figure.subplots(2, 2)
        for axes in (train, val, position):
            axes.set_axisbelow(True)
        _draw_train(train, runs, colours, x)
        _draw_val(val, runs, colours, x)
        _draw_position(position, runs, colours)
        _draw_table(table, runs, colours)
        return figure


def _draw_train(axes: "Axes", runs: list[Run], colours: Any, x: str) -> None:
    curves = [run.curve(AXES[x][0], "train_loss") for run in runs]
    smooth = [_smooth(ys) for _, ys in curves]
    noisy = [ys != calm for (_, ys), calm in zip(curves, smooth, strict=True)]
    _title(axes, "Training loss", "nats per token" + "; thick: smoothed" * any(noisy))
    for (xs, ys), calm, is_noisy, colour in zip(curves, smooth, noisy, colours, strict=False):
        axes.plot(xs, calm, color=colour, linewidth=1.6, **_dots(xs, 3.5))
        if is_noisy:
            axes.plot(xs, ys, color=colour, linewidth=0.7, alpha=0.35)
    _finish(axes, curves, runs, x)


def _draw_val(axes: "Axes", runs: list[Run], colours: Any, x: str) -> None:
    _title(axes, "Held-out songs", "bits per note; thick: averaged weights, thin: raw ones")
    drawn = []
    for run, colour in zip(runs, colours, strict=False):
        for name, width in (("val_bits_per_note", 0.8), ("average_val_bits_per_note", 1.8)):
            xs, ys = run.curve(AXES[x][0], name)
            axes.plot(xs, ys, color=colour, linewidth=width, **_dots(xs, 2 + width))
            drawn.append((xs, ys))
    _finish(axes, drawn, runs, x)


def _draw_position(axes: "Axes", runs: list[Run], colours: Any) -> None:
    _title(axes, "Where in the piece", "bits per note of held-out songs, at each run's last evaluation")
    bars = [_by_position(run) for run in runs]
    edges = sorted(set().union(*bars))
    if not edges:
        _say_nothing(axes)
        return
    for bits, colour in zip(bars, colours, strict=False):
        columns = [column for column, edge in enumerate(edges) if edge in bits]
        axes.plot(columns, [bits[edges[column]] for column in columns], "o-", color=colour, linewidth=1.6, markersize=4)
    last = [f"{edge} on" for edge in edges[-1:]]
    axes.set_xticks(range(len(edges)), [f"{a}–{b - 1}" for a, b in pairwise(edges)] + last)
    axes.set_xlabel("notes of the piece")
    axes.margins(y=0.1)


def _by_position(run: Run) -> dict[int, float]:
    """From the first note of each stretch of the piece to bits per note in it, of the last evaluation that says so."""
    tables = [record["bits_per_note_by_position"] for record in run.records if record.get("bits_per_note_by_position")]
    return {int(edge): bits for edge, bits in tables[-1].items() if bits is not None} if tables else {}


def _draw_table(axes: "Axes", runs: list[Run], colours: Any) -> None:
    _title(axes, "Runs", "lowest bits per note on held-out songs, best run first")
    axes.axis("off")
    columns = {"run": 0.05, "steps": 0.52, "minutes": 0.68, "raw": 0.84, "averaged": 1.0}
    shown = runs if len(runs) <= TABLE_ROWS else runs[: TABLE_ROWS - 1]
    pitch = 1 / max(len(shown) + 2, 12)
    for name, left in columns.items():
        axes.text(left, 1 - pitch / 2, name, color=QUIET, ha="left" if name == "run" else "right", va="center")
    for row, (run, colour) in enumerate(zip(shown, colours, strict=False), 1):
        y = 1 - (row + 0.5) * pitch
        axes.plot([0, 0.035], [y, y], color=colour, linewidth=3, solid_capstyle="butt")
        name = run.name if len(run.name) <= 26 else f"{run.name[:25]}…"
        axes.text(columns["run"], y, name, va="center", parse_math=False)
        for column, text in {
            "steps": f"{max(record['step'] for record in run.records):,}",
            "minutes": _number(max(run.curve("step", "minutes")[1], default=math.inf), 1),
            "raw": _number(run.best("val_bits_per_note"), 3),
            "averaged": _number(run.best("average_val_bits_per_note"), 3),
        }.items():
            axes.text(columns[column], y, text, ha="right", va="center")
    if len(shown) < len(runs):
        more = f"and {len(runs) - len(shown)} more"
        axes.text(columns["run"], 1 - (len(shown) + 1.5) * pitch, more, color=QUIET, va="center")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "–"


def _title(axes: "Axes", title: str, subtitle: str) -> None:
    axes.set_title(title, fontweight="bold")
    axes.text(0, 1.025, subtitle, transform=axes.transAxes, color=QUIET)


def _dots(xs: list[float], size: float) -> dict[str, Any]:
    """Points where there are few, so that a single one is seen."""
    return {"marker": "o", "markersize": size} if len(xs) <= 30 else {}


def _say_nothing(axes: "Axes") -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, color=QUIET, ha="center", va="center")


def _smooth(ys: list[float]) -> list[float]:
    """Means of the middle half of what lies around, so that a spike leaves no bump; few points are left as they are."""
    most = min(len(ys) // 80, 50)
    if not most:
        return ys
    smooth = []
    for middle in range(len(ys)):
        reach = min(most, middle)  # the steep beginning is not drawn out
        around = sorted(ys[middle - reach : middle + reach + 1])
        kept = around[len(around) // 4 : len(around) - len(around) // 4]
        smooth.append(sum(kept) / len(kept))
    return smooth


def _finish(axes: "Axes", curves: list[tuple[list[float], list[float]]], runs: list[Run], x: str) -> None:
    """Units and limits. How a run begins, and where it explodes, may leave the panel: else the rest would lie flat."""
    from matplotlib.ticker import EngFormatter

    curves = [curve for curve in curves if curve[0]]
    if not curves:
        _say_nothing(axes)
        return
    axes.set_xlabel(AXES[x][1])
    if x != "minutes":
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    longest = max(record.get(AXES[x][0], 0) for run in runs for record in run.records)
    axes.set_xlim(0, 1.02 * longest)
    low, high = min(min(ys) for _, ys in curves), max(max(ys) for _, ys in curves)
    top = max(_top(xs, ys, longest / 10) for xs, ys in curves)
    if high - low > 1.5 * (top - low) > 0:
        axes.set_ylim(low - 0.05 * (top - low), top + 0.1 * (top - low))
        axes.text(1, 1.025, f"up to {high:,.3g}", transform=axes.transAxes, color=QUIET, ha="right")


def _top(xs: list[float], ys: list[float], begun: float) -> float:
    """Up to where a curve must be seen: nearly all of it once it has begun, but nothing above its start.

    Of a run that has only just begun it is the lowest point.
    """
    import numpy as np

    late = [y for x, y in zip(xs, ys, strict=True) if x > begun]
    return min(ys[0], float(np.quantile(late, 0.98))) if late else min(ys)


def main(args: Args) -> None:
    out = args.out or args.root / "train" / "runs" / "plot.png"
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out} must end in .png")
    folders = find_runs(args.root, args.runs)
    read = [read_run(folder, args.x) for folder in folders]
    runs = [run for run in read if run.records]
    if not runs:
        raise UserError(f"{' and '.join(run.name for run in read)} wrote no metrics yet; wait for the first line")
    for run in read:
        if not run.records:
            print(f"  {run.name} wrote no metrics yet and is left out")
    figure = draw(runs, args.x)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png")
    best = min(runs, key=lambda run: run.best_bits)
    bits = best.best_bits
    result = f"best {bits:.3f} bits per note: {best.name}" if math.isfinite(bits) else "no evaluation yet"
    print(f"plot: {out}; {len(runs)} run{'s' * (len(runs) > 1)}, {result}")


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
