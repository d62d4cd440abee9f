"""What a language can hold of a score: its notes on the grid, in velocity bins, one after another.

docs/language.md is the specification.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np

from midigpt.header import LanguageError, nearest_tempo, program_text
from midigpt.score import IntArray, Score, Track, cut_repeats

Layout = Literal["track", "song"]  # a document for each track, or one for all of them
Bins = TypeVar("Bins", int, IntArray)

GRID = 24  # steps to the beat: holds 32nds and triplets
VELOCITY_STEP = 8  # velocities to a loudness bin: 16 bins
VELOCITY_BINS = 128 // VELOCITY_STEP
MAX_TICKS = 2**31 - 1  # of a whole piece
MAX_RESOLUTION = 0x7FFF  # ticks per beat, as in a MIDI file


@dataclass(frozen=True)
class Notes:
    """The notes of all tracks in one table, in normal form: numpy is called once a file, not once a track.

    Each has shape (N,); ordered by part, onset, pitch; times in grid steps.
    """

    part: IntArray  # which of the tracks that have notes
    onset: IntArray
    end: IntArray
    pitch: IntArray
    bins: IntArray  # velocity bin, 1..VELOCITY_BINS


def song_order(tracks: Sequence[Track]) -> list[Track]:
    """Those of the tracks that have notes, as the parts of a song are ordered: by program, drums last."""
    return sorted((track for track in tracks if len(track)), key=lambda t: (t.is_drum, 0 if t.is_drum else t.program))


def part_marks(tracks: Sequence[Track]) -> list[str]:
    """What each track is called in a song: its program, or d for drums; the second of the same is 33.2."""
    return program_marks(program_text(track.program, track.is_drum) for track in tracks)


def program_marks(programs: Iterable[str]) -> list[str]:
    """What the parts of a song are called that play these programs, "d" for drums."""
    count = Counter[str]()
    marks = []
    for name in programs:
        count[name] += 1
        marks.append(name if count[name] == 1 else f"{name}.{count[name]}")
    return marks


def normalise(score: Score, layout: Layout = "track") -> Score:
    """What the language can hold of a score: decode(encode(score)) == normalise(score), both in the same layout.

    In this order: notes are lengthened to the release of the sustain pedal; onsets and ends are rounded to
    the grid on the absolute clock, halves up; a note lasts at least a step; notes of one track with the same
    onset and pitch are joined (greater velocity, later end); a note is cut where its pitch starts again.
    Velocities become the middle of their bin, the tempo the nearest of TEMPOS. Names, and tracks without
    notes, are dropped; in the song layout tracks come in the order of its parts. Raises LanguageError for a piece of
    more than MAX_TICKS steps.
    """
    tracks = song_order(score.tracks) if layout == "song" else [track for track in score.tracks if len(track)]
    notes = normal_notes(tracks, np.full(len(tracks), score.ticks_per_beat))
    velocity = velocity_of(notes.bins)
    normal = []
    for track, (start, stop) in zip(tracks, bounds(notes.part, len(tracks)), strict=True):
        onset, end, pitch, loudness = (a[start:stop] for a in (notes.onset, notes.end, notes.pitch, velocity))
        program = 0 if track.is_drum else track.program
        normal.append(Track(program, track.is_drum, onset, end - onset, pitch, loudness))
    return Score(GRID, tuple(normal), float(nearest_tempo(score.tempo_bpm)), score.meter)


def normal_notes(tracks: Sequence[Track], ticks_per_beat: IntArray) -> Notes:
    """The normal form of tracks, (P,), each with its own clock, (P,)."""
    part = np.repeat(np.arange(len(tracks)), [len(track) for track in tracks])
    onset, duration, pitch, velocity = (
        np.concatenate([getattr(track, column) for track in tracks] or [np.empty(0, np.int64)])
        for column in ("onset", "duration", "pitch", "velocity")
    )
    end = onset + duration
    for (start, stop), track in zip(bounds(part, len(tracks)), tracks, strict=True):
        if len(track.pedal) and not track.is_drum:
            end[start:stop] = held_ends(end[start:stop], track.pedal)

    beat = ticks_per_beat[part]
    onset, end = ((2 * GRID * ticks + beat) // (2 * beat) for ticks in (onset, end))
    end = np.maximum(end, onset + 1)
    bins = (velocity + (VELOCITY_STEP - 1)) // VELOCITY_STEP

    if len(end) and (latest := int(end.max())) > MAX_TICKS:
        raise LanguageError(f"the piece is {latest} steps long; {MAX_TICKS} is the most")
    place = part << 40 | onset << 7 | pitch  # onsets have 31 bits
    step = np.diff(place)
    if (step < 0).any():  # rounding has put notes on one onset that were not
        order = np.argsort(place, kind="stable")
        part, onset, end, pitch, bins = (a[order] for a in (part, onset, end, pitch, bins))
        step = np.diff(place[order])
    if (step == 0).any():
        first = np.flatnonzero(np.concatenate(([1], step)))  # of each group to be joined
        end, bins = np.maximum.reduceat(end, first), np.maximum.reduceat(bins, first)
        part, onset, pitch = part[first], onset[first], pitch[first]
    return Notes(part, onset, cut_repeats(onset, end, part << 7 | pitch), pitch, bins)


def velocity_of(bins: Bins) -> Bins:
    """The velocities that bins stand for: their middle."""
    return bins * VELOCITY_STEP - VELOCITY_STEP // 2


def bounds(part: IntArray, parts: int) -> list[tuple[int, int]]:
    """Where each part's notes begin and end."""
    cuts = np.searchsorted(part, np.arange(parts + 1)).tolist()
    return list(pairwise(cuts))


def held_ends(end: IntArray, pedal: IntArray) -> IntArray:
    """The ends of notes with the sustain pedal: a note whose pedal is down at its end lasts until the release."""
    down, up = pedal.T
    held = np.searchsorted(down, end, side="right") - 1  # the last pedal pressed by the note's end
    return np.where((held >= 0) & (end < up[held]), up[held], end)
