"""Score: the one in-memory form of music, arrays of notes that every stage passes on."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


OCTAVE = 12  # keys
NO_PEDAL: IntArray = np.empty((0, 2), np.int64)


@dataclass(frozen=True, eq=False)
class Track:
    """One part: note i sounds from onset[i] for duration[i] ticks.

    All note arrays have shape (N,) and are ordered by onset, then pitch.
    """

    program: int  # General MIDI program, 0..127
    is_drum: bool
    onset: IntArray  # (N,) ticks since the beginning of the piece
    duration: IntArray  # (N,) ticks
    pitch: IntArray  # (N,) MIDI note number, 0..127
    velocity: IntArray  # (N,) 1..127
    pedal: IntArray = field(default_factory=lambda: NO_PEDAL)  # (P, 2) ticks: sustain pedal down, up
    name: str = ""

    def __len__(self) -> int:
        return len(self.onset)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Track)
            and (self.program, self.is_drum, self.name) == (other.program, other.is_drum, other.name)
            and all(
                np.array_equal(getattr(self, column), getattr(other, column))
                for column in ("onset", "duration", "pitch", "velocity", "pedal")
            )
        )

    def select(self, rows: IntArray | NDArray[np.bool_]) -> "Track":
        """Some notes: those of a mask (N,), or in the order of indices."""
        columns = ("onset", "duration", "pitch", "velocity")
        return replace(self, **{column: getattr(self, column)[rows] for column in columns})

    @property
    def end(self) -> int:
        """The tick at which the last note ends; 0 without notes."""
        return int((self.onset + self.duration).max(initial=0))


def cut_repeats(onset: IntArray, end: IntArray, pitch: IntArray) -> IntArray:
    """The ends of notes, shape (N,), each no later than the next onset of its own pitch.

    Notes are ordered by onset, at least those of one pitch. A pitch may be any number from 0 on.
    """
    if len(pitch) and int(pitch.max()) < 1 << 16:
        pitch = pitch.astype(np.uint16)  # for which numpy has a radix sort
    order = np.argsort(pitch, kind="stable")
    again = np.flatnonzero(pitch[order[1:]] == pitch[order[:-1]])
    this, following = order[again], order[again + 1]
    cut = end.copy()
    cut[this] = np.minimum(end[this], onset[following])
    return cut


@dataclass(frozen=True)
class Score:
    """A piece: its tracks on one clock of `ticks_per_beat` ticks to the quarter note."""

    ticks_per_beat: int
    tracks: tuple[Track, ...]
    tempo_bpm: float = 120.0  # quarter notes a minute, of the first tempo; 120 is MIDI's default
    meter: tuple[int, int] = (4, 4)  # of the first time signature; 4/4 is MIDI's default

    @property
    def notes(self) -> int:
        return sum(len(track) for track in self.tracks)

    @property
    def end(self) -> int:
        """The tick at which the last note of any track ends."""
        return max((track.end for track in self.tracks), default=0)


def with_room(by: int, lowest: int, highest: int) -> int:
    """A move of so many keys, or an octave nearer, or none: the first for which there is room on the keyboard."""
    ways = (by, by - OCTAVE if by > 0 else by + OCTAVE)
    return next((way for way in ways if lowest + way >= 0 and highest + way < 128), 0)


def moved(score: Score, by: int) -> Score:
    """The score moved by so many keys, but for drums; where it has no room, see with_room."""
    pitches = [track.pitch for track in score.tracks if len(track) and not track.is_drum]
    if not pitches:
        return score
    by = with_room(by, min(int(p.min()) for p in pitches), max(int(p.max()) for p in pitches))
    return replace(score, tracks=tuple(t if t.is_drum else replace(t, pitch=t.pitch + by) for t in score.tracks))


def track_from_notes(
    notes: list[tuple[int, int, int, int]], program: int = 0, is_drum: bool = False, name: str = ""
) -> Track:
    """A track of (onset, duration, pitch, velocity) rows in any order; times in ticks."""
    table = np.array(sorted(notes, key=lambda note: (note[0], note[2])), np.int64).reshape(-1, 4)
    onset, duration, pitch, velocity = table.T
    return Track(program, is_drum, onset, duration, pitch, velocity, name=name)
