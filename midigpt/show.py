"""A score to look at: a piano roll, .png."""

from pathlib import Path

from midigpt.files import replacing
from midigpt.score import Score


def draw_piano_roll(score: Score, path: Path, title: str = "") -> None:
    """Write a piano roll as .png: time in beats to the right, pitch upwards, a colour a track, loud notes darker."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    beats = score.end / score.ticks_per_beat
    pitches = [int(pitch) for track in score.tracks for pitch in track.pitch] or [60]
    figure = Figure(figsize=(min(max(8.0, beats / 6), 40.0), 5), dpi=110, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="beats", ylabel="MIDI note (60 is middle C)")
    bar = score.meter[0] * 4 / score.meter[1]
    axes.xaxis.set_major_locator(MultipleLocator(bar * max(1, round(beats / bar / 32))))
    axes.yaxis.set_major_locator(MultipleLocator(12))
    axes.grid(color="0.88")
    axes.set_axisbelow(True)
    for number, track in enumerate(score.tracks):
        start = track.onset / score.ticks_per_beat
        end = (track.onset + track.duration) / score.ticks_per_beat
        lines = [((s, p), (e, p)) for s, e, p in zip(start, end, track.pitch, strict=True)]
        colour = to_rgb(f"C{number % 10}")
        shades = [(*colour, 0.35 + 0.65 * velocity / 127) for velocity in track.velocity]
        name = "drums" if track.is_drum else f"program {track.program}"
        axes.add_collection(LineCollection(lines, colors=shades, linewidths=4, capstyle="butt", label=name))
    axes.set_xlim(0, max(beats, 1))
    axes.set_ylim(min(pitches) - 3, max(pitches) + 3)
    if 1 < len(score.tracks) <= 20:
        axes.legend(loc="upper right", fontsize="small", ncols=4)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
