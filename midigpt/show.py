"""A score to look at (piano roll, .png) and to listen to (.wav, where a renderer is installed)."""

import shutil
import subprocess
from pathlib import Path

from midigpt.files import UserError, replacing
from midigpt.score import Score

# Where Debian, Fedora, Arch and Homebrew put General MIDI soundfonts.
SOUNDFONT_FOLDERS = (
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/usr/share/sounds/sf3",
    "/opt/homebrew/share/soundfonts",
    "/usr/local/share/soundfonts",
)
RENDER_SECONDS = 120  # a renderer that takes longer is stopped


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


def find_renderer() -> tuple[str, Path]:
    """The fluidsynth program and a General MIDI soundfont. Raises UserError where one is missing."""
    program = shutil.which("fluidsynth")
    font = next((font for folder in SOUNDFONT_FOLDERS for font in sorted(Path(folder).glob("*.sf[23]"))), None)
    if not program or not font:
        raise UserError(
            "a .wav needs fluidsynth and a General MIDI soundfont (Debian: apt install fluidsynth fluid-soundfont-gm)"
        )
    return program, font


def render_wav(midi: Path, wav: Path) -> None:
    """Play a MIDI file into a .wav. Raises UserError where the renderer is missing or fails."""
    program, font = find_renderer()
    with replacing(wav) as temporary:
        command = [program, "-ni", "-g", "0.7", "-r", "44100", "-T", "wav", "-F", str(temporary), str(font), str(midi)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=RENDER_SECONDS)
        except subprocess.SubprocessError as error:
            raise UserError(f"{midi} could not be rendered ({error})") from None
