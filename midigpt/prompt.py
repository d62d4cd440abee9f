"""A prompt: a MIDI file to go on from, its bars, and what a model reads of it.

splice.py writes the file on.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from midigpt.files import UserError, counted, printable
from midigpt.general_midi import PROGRAMS
from midigpt.midi import Song, in_force, read_song
from midigpt.midi_bytes import MidiError
from midigpt.normal import GRID
from midigpt.score import NO_PEDAL, IntArray, Score, Track

OVERHANG = 1 / 4  # of a beat that a last note may ring beyond the beat of the cut


@dataclass(frozen=True)
class _Stretch:
    """Bars of one length."""

    tick: int  # where the first begins
    bar: int  # its number
    length: Fraction  # ticks of each


@dataclass(frozen=True)
class Prompt:
    """A MIDI file as it is, and as it is read. Ticks are the score's, bars are counted from 1."""

    path: Path
    data: bytes
    song: Song

    @property
    def score(self) -> Score:
        return self.song.score

    @property
    def seats(self) -> tuple[tuple[int, int], ...]:
        """Of each track of the score: the MTrk chunk and the channel, counted from 0."""
        return self.song.seats

    @property
    def tempos(self) -> tuple[tuple[int, float], ...]:
        """Ticks and BPM, ordered, the first at tick 0."""
        return self.song.tempos

    @property
    def meters(self) -> tuple[tuple[int, tuple[int, int]], ...]:
        """Ticks and time signatures, ordered, the first at tick 0."""
        return self.song.meters

    @cached_property
    def last_onset(self) -> int:
        return max(int(track.onset[-1]) for track in self.score.tracks if len(track))

    @property
    def bars(self) -> int:
        """The number of the bar in which the last note sounds to its end."""
        return self.bar_at(max(self.score.end - 1, self.last_onset))

    @cached_property
    def _stretches(self) -> list[_Stretch]:
        beat = self.score.ticks_per_beat
        stretches = [_Stretch(0, 1, _bar_ticks(beat, self.meters[0][1]))]
        for tick, meter in self.meters[1:]:
            last = stretches[-1]
            bars = (tick - last.tick - 1) // last.length + 1  # that begin at an earlier tick
            stretches.append(_Stretch(tick, last.bar + bars, _bar_ticks(beat, meter)))
        return stretches

    def bar_start(self, bar: int) -> int:
        """The first tick of a bar, also of one behind the file's end.

        A time signature begins a bar wherever it stands. Where bars are no whole number of ticks long, each
        begins at the first tick that lies in it.
        """
        stretch = self._stretches[bisect_right(self._stretches, bar, key=lambda stretch: stretch.bar) - 1]
        return stretch.tick + math.ceil((bar - stretch.bar) * stretch.length)

    def bar_at(self, tick: int) -> int:
        """The bar in which a tick lies."""
        number = bisect_right(self._stretches, tick, key=lambda stretch: stretch.tick)
        stretch = self._stretches[number - 1]
        bar = stretch.bar + (tick - stretch.tick) // stretch.length
        return bar if number == len(self._stretches) else min(bar, self._stretches[number].bar - 1)

    def tempo_at(self, tick: int) -> float:
        """Quarter notes a minute."""
        return in_force(self.tempos, tick)

    def meter_at(self, tick: int) -> tuple[int, int]:
        return in_force(self.meters, tick)

    def cut(self, at: int | None = None) -> int:
        """The tick where a continuation begins: the start of bar `at`, else the first beat from the last note's end on,
        but for an OVERHANG of played music.

        Beats are quarter notes from the beginning of the last note's bar, and the next bar's beginning. Either
        is a tick of the file; from any tick on the language counts its own grid, so a bar that begins off the
        beat (in 7/8 every second one) needs no more.

        Raises UserError for a bar with no note before it, and for one more than a bar behind the end.
        """
        if at is None:
            overhang = round(OVERHANG * self.score.ticks_per_beat)
            end = max(self.score.end - overhang, self.last_onset + 1)
            bar, beat = self.bar_at(end), self.score.ticks_per_beat
            start = self.bar_start(bar)
            tick = min(start - (start - end) // beat * beat, self.bar_start(bar + 1)) if end > start else start
        else:
            tick = self._start_to_cut(at)
        unit = self.song.file_tick
        return -(-tick // unit) * unit

    def _start_to_cut(self, at: int) -> int:
        if at < 2:
            raise UserError(f"--at {at} leaves nothing to go on from; bars count from 1, so 2 is the least")
        if at > self.bars + 1:
            raise UserError(
                f"--at {at} is behind the end of {printable(str(self.path))}, which has {counted(self.bars, 'bar')}"
            )
        tick = self.bar_start(at)
        first = min(int(track.onset[0]) for track in self.score.tracks if len(track))
        if first >= tick:
            raise UserError(
                f"{printable(str(self.path))} has no note before bar {at}; its first is in bar {self.bar_at(first)},"
                f" so give --at {self.bar_at(first) + 1} or more"
            )
        return tick

    def last_kept(self, cut: int) -> int:
        """The last tick whose events stay: the cut where no note starts there or later, else the tick before it."""
        return cut if self.last_onset < cut else cut - 1

    def steps(self, ticks: int) -> int:
        """A time on the language's grid, rounded as normalise() rounds."""
        beat = self.score.ticks_per_beat
        return (2 * GRID * ticks + beat) // (2 * beat)


def load_prompt(path: Path) -> Prompt:
    """Read a file to go on from. Raises UserError where it can't be read, or is no whole MIDI file with notes."""
    name = printable(str(path))
    try:
        data = path.read_bytes()
        return Prompt(path, data, read_song(data))
    except MidiError as error:
        raise UserError(f"{name} {error}; a prompt has to be a whole MIDI file with notes in it") from None
    except OSError as error:
        raise UserError(f"{name} can't be read ({error.strerror})") from None


def before(prompt: Prompt, cut: int, start: int = 0) -> Score:
    """What a model reads: the notes that start in [start, cut), onsets counted from `start`.

    All tracks are there, in the score's order; some may be empty. What sounds over the cut, pedals too, ends at it.
    Tempo, meter and programs are those with which continue_midi goes on. A note that starts so shortly before
    the cut that the grid would have it start there starts on the last tick that the grid puts before it.
    """
    beat = prompt.score.ticks_per_beat
    latest = max((beat * (2 * prompt.steps(cut - start) - 1) - 1) // (2 * GRID), 0)
    tracks = []
    for track, programs in zip(prompt.score.tracks, prompt.song.programs, strict=True):
        inside = track.select((track.onset >= start) & (track.onset < cut))
        end = np.minimum(inside.onset + inside.duration, cut) - start
        onset = np.minimum(inside.onset - start, latest)
        pedal = np.clip(track.pedal, start, cut) - start
        begun = track.onset[track.onset < cut]
        program = track.program
        if len(begun):  # the one in force at the part's last note, which continue_midi puts back
            program = in_force(((-1, 0), *programs), int(begun[-1]))
        pedal = pedal[pedal[:, 0] < pedal[:, 1]]
        inside = replace(inside, program=program, onset=onset, duration=end - onset, pedal=pedal)
        tracks.append(inside.select(np.lexsort((inside.pitch, onset))))
    return Score(beat, tuple(tracks), prompt.tempo_at(cut), prompt.meter_at(cut))


def after(prompt: Prompt, cut: int, track: Track, ticks_per_beat: int, start: int = 0) -> Track:
    """The way back: of a track decoded from what before(prompt, cut, start) gave, with lines added, those from the cut
    on, in the prompt's ticks from its beginning, as continue_midi takes them. `ticks_per_beat` is the track's.

    The grid step at which the model's window ends is the cut itself; onsets and ends are rounded from there.
    """
    unit = prompt.song.file_tick
    since = prompt.steps(cut - start) * ticks_per_beat // GRID
    late = track.select(track.onset >= since)

    def ticks(times: IntArray) -> IntArray:
        return cut + (2 * prompt.score.ticks_per_beat * (times - since) // (ticks_per_beat * unit) + 1) // 2 * unit

    onset, end = ticks(late.onset), ticks(late.onset + late.duration)
    return replace(late, onset=onset, duration=np.maximum(end - onset, unit), pedal=NO_PEDAL)


def describe_parts(prompt: Prompt) -> list[str]:
    """The score's tracks for the terminal, counted from 1: "2: violin (program 40), 312 notes"."""
    lines = []
    for number, track in enumerate(prompt.score.tracks, start=1):
        sound = "drums" if track.is_drum else f"{PROGRAMS[track.program]} (program {track.program})"
        name = printable(track.name).strip()
        lines.append(f"{number}: {sound}, {counted(len(track), 'note')}" + (f', named "{name[:40]}"' if name else ""))
    return lines


def _bar_ticks(beat: int, meter: tuple[int, int]) -> Fraction:
    return Fraction(4 * beat * meter[0], meter[1])
