"""The anchored language's switches as bench/compare.py tries them: the same notes, written in other ways.

    ""            as midigpt/encodings/anchored.py writes them
    tonic         the header's key is not the mean pitch but the tonic of the major scale that fits the notes best
                  (midigpt/keys.py), the one nearest to the mean
    first note    the header's key is the first note that is no drum
    chained       the same, and a part's first note counts from its first in the line before, as in interval.py
    chained bars  chained from the header's key, but a part's first note in a bar counts from the header's key
    from the key  every pitch is a distance from the header's key
    across parts  the first note of a line is a distance from the header's key, the others count on, whatever their part
    high first    within a part the highest note first
    bars          ' in front of the first line of each bar
    note-offs     no lengths: a note ends where its part has a note of velocity 0

Tests compare the first and "chained" with the modules named.
"""

from collections.abc import Iterator
from fractions import Fraction

from midigpt.encodings.interval import time_text
from midigpt.header import DEFAULT_KEY, nearest_tempo, read_header
from midigpt.keys import find_scale
from midigpt.language import Language, encode
from midigpt.normal import GRID, VELOCITY_STEP, part_marks
from midigpt.score import Score

SWITCHES = ("tonic", "first note", "chained", "chained bars", "from the key", "across parts")
SWITCHES += ("high first", "bars", "note-offs")
Note = tuple[int, int, int, int, int]  # onset, part, pitch, velocity bin (0: its end), length in grid steps


def write_lines(score: Score, switch: str) -> tuple[str, list[str]]:
    """Header and lines of a normalised score (grid steps are its ticks) in the song layout."""
    marks = part_marks(score.tracks)
    notes = sorted(_notes(score, switch))
    pitched = [note for note in notes if not score.tracks[note[1]].is_drum]
    key = DEFAULT_KEY
    if pitched:
        key = pitched[0][2] if switch in ("first note", "chained") else _mean(score)
        if switch == "tonic":
            key += ((find_scale(score) or 0) - key + 6) % 12 - 6
    reference = dict.fromkeys(range(len(marks)), key)
    numerator, denominator = score.meter
    bar_steps = Fraction(4 * GRID * numerator, denominator)
    lines = [f"{time_text(notes[0][0])}\n"] if notes[0][0] else []
    part_now, bar_now = -1, -1
    instants = _instants(notes)
    ends = [instant[0][0] for instant in instants[1:]]
    ends.append(max(onset + length for onset, *_, length in instants[-1]))
    for instant, end in zip(instants, ends, strict=True):
        onset = instant[0][0]
        line_steps = max(end - onset, 1)
        bar = onset // bar_steps
        text = "'" if switch == "bars" and bar != bar_now else ""
        if switch == "chained bars" and bar != bar_now:
            reference = dict.fromkeys(reference, key)
        bar_now, running = bar, {}
        for _, part, pitch, velocity, length in _ordered(instant, switch):
            text += f"{marks[part]}@" if part != part_now else ""
            part_now = part
            if score.tracks[part].is_drum:
                text += f"{pitch}="
            else:
                interval = pitch - _counted_from(switch, part, running, reference, key)
                text += f"{abs(interval)}{'+' if interval >= 0 else '-'}"
            if part not in running:
                reference[part] = pitch
            if not score.tracks[part].is_drum:
                running[part] = running[-1] = pitch  # -1: of whatever part
            is_given = switch == "note-offs" or length == line_steps
            text += f"{velocity}{'' if is_given else ':' + time_text(length)}|"
        lines.append(f"{text}{time_text(line_steps)}\n")
    anchor = f" key={key}" if pitched else ""
    return f"# tempo={nearest_tempo(score.tempo_bpm)} meter={numerator}/{denominator}{anchor}\n", lines


def _mean(score: Score) -> int:
    """The mean pitch."""
    (document,) = encode(score, language=Language())
    key = read_header(document.header).key
    assert key is not None
    return key


def _counted_from(switch: str, part: int, running: dict[int, int], reference: dict[int, int], key: int) -> int:
    """The pitch that the next note of a part counts from."""
    if switch == "from the key":
        return key
    if switch == "across parts":
        return running.get(-1, key)
    return running.get(part, reference[part] if switch.startswith("chained") else key)


def _notes(score: Score, switch: str) -> Iterator[Note]:
    for part, track in enumerate(score.tracks):
        bins = (track.velocity + VELOCITY_STEP - 1) // VELOCITY_STEP
        columns = (track.onset, track.pitch, bins, track.duration)
        for onset, pitch, velocity, length in zip(*(column.tolist() for column in columns), strict=True):
            yield onset, part, pitch, velocity, 0 if switch == "note-offs" else length
            if switch == "note-offs":
                yield onset + length, part, pitch, 0, 0


def _instants(notes: list[Note]) -> list[list[Note]]:
    instants: list[list[Note]] = []
    for note in notes:
        if not instants or instants[-1][0][0] != note[0]:
            instants.append([])
        instants[-1].append(note)
    return instants


def _ordered(instant: list[Note], switch: str) -> list[Note]:
    """Parts ascend; what ends comes before what begins at the same pitch."""
    direction = -1 if switch == "high first" else 1
    return sorted(instant, key=lambda note: (note[1], direction * note[2], note[3]))
