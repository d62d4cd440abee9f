"""The doctor: what is in a folder of MIDI files. It reads the index and the files, and changes neither.

The verdicts come from the index. The music is measured in the MIDI files, before anything is rounded.
midigpt.doctor_advice says what to make of it, midigpt.doctor_page shows it.
"""

import os
import random
import re
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from midigpt import workers
from midigpt.files import UserError, make, printable
from midigpt.index import data_folder, open_index
from midigpt.midi_bytes import MidiError
from midigpt.rescue import rescue
from midigpt.score import IntArray, Score
from midigpt.storage import Folder

FloatArray = NDArray[np.float64]

SEED = 0  # of the sample: the same files every time
DRUMS = 128  # the place of drums behind the 128 programs
SHORT = 1 / 16  # beats: a 64th note
LENGTHS_PER_OCTAVE = 4  # note lengths are counted in this many bins for each doubling ...
LENGTH_OCTAVES = (-6, 5)  # ... from 1/64 beat to 32 beats; what is beyond counts in the last bins
MANY = 16  # notes sounding together are counted up to this many
GRID = np.array([0, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1])  # of a beat: sixteenths and eighth triplets
GRID_TOLERANCE = 1 / 48  # beats; of onsets spread evenly a quarter would be on the grid


@dataclass(frozen=True)
class File:
    """A row of the index."""

    path: str  # below raw_data
    state: str
    reason: str | None  # of a refusal
    remark: str | None  # how it was rescued
    duplicate_of: str | None  # name of the file whose music it repeats
    song: str | None  # equal for files with one music; before clustering, the fingerprint
    documents: int
    notes: int

    @property
    def shown(self) -> str:
        """The path for people: nothing in it moves a terminal's cursor."""
        return printable(self.path)


@dataclass(frozen=True)
class Music:
    """What was measured in one file. Seconds are those of its first tempo; "pitched" leaves drums out."""

    tracks: int
    notes: int
    seconds: float  # from the first note's beginning to the last one's end
    tempo_bpm: float
    meter: str
    programs: IntArray  # (129,) notes by General MIDI program; the last: drums
    pitches: IntArray  # (128,) pitched notes by MIDI note number
    velocities: IntArray  # (128,) notes by velocity
    lengths: IntArray  # (bins,) pitched notes by length in beats, bins as in length_bins
    together: FloatArray  # (MANY + 1,) share of the time that so many pitched notes sound; the last: or more
    mean_together: float  # pitched notes that sound together, over the time that any does
    short_share: float  # of the pitched notes: shorter than SHORT
    on_grid: float  # share of onsets
    longest_note: float  # seconds, pitched
    longest_silence: float  # seconds, between two notes


@dataclass(frozen=True)
class Examination:
    """A folder's index, and the music of its converted files or of a sample of them."""

    files: tuple[File, ...]
    music: dict[str, Music]  # path below raw_data: what is in it
    lost: dict[str, str]  # path below raw_data of a converted file that can't be measured any more: why

    @property
    def converted(self) -> list[File]:
        return self.by_state("converted")

    def by_state(self, state: str) -> list[File]:
        return [file for file in self.files if file.state == state]

    @property
    def is_sample(self) -> bool:
        return len(self.music) + len(self.lost) < len(self.converted)

    @property
    def hours(self) -> float:
        """Hours of music in all converted files, scaled up from those drawn; lost ones count as silent."""
        measured = sum(music.seconds for music in self.music.values()) / 3600
        return measured * len(self.converted) / max(len(self.music) + len(self.lost), 1)

    def total(self, column: str) -> FloatArray:
        """The sum of a column of Music, such as "pitches", over the measured files; zeros where none was."""
        rows = [getattr(music, column) for music in self.music.values()]
        return np.sum(rows, axis=0, dtype=np.float64) if rows else np.zeros(DRUMS + 1)


def examine(root: Path, sample: int, processes: int) -> Examination:
    """Read the index and measure at most `sample` converted files, drawn by SEED.

    Raises UserError where there is no index, or nothing in it.
    """
    with closing(open_index(root)) as index:
        rows = index.execute(
            "SELECT path, state, reason, remark, duplicate_of, coalesce(song, music), tracks, notes"
            " FROM files ORDER BY name"
        ).fetchall()
        raw_data = data_folder(index, root, "raw_data")
    if not rows:
        raise UserError(f"no MIDI files are known yet; put some into {raw_data} and run: {make(root, 'index')}")
    files = tuple(File(os.fsdecode(path), *rest) for path, *rest in rows)
    paths = [file.path for file in files if file.state == "converted"]
    if len(paths) > sample:
        paths = random.Random(SEED).sample(paths, sample)
    music: dict[str, Music] = {}
    lost: dict[str, str] = {}
    results = workers.run(partial(measure_file, raw_data=raw_data), paths, processes)
    for path, result in tqdm(results, total=len(paths), desc="doctor", unit="file", disable=None):
        if isinstance(result, Music):
            music[path] = result
        else:
            lost[path] = str(result)
    return Examination(files, {path: music[path] for path in paths if path in music}, lost)


def measure_file(path: str, raw_data: Folder) -> Music | str:
    """The music of a MIDI file, or why it can't be measured."""
    (content,) = raw_data.read([path])
    if isinstance(content, OSError):
        return f"can't be read ({content.strerror or content})"
    try:
        return measure(rescue(content)[0])
    except MidiError as error:
        return str(error)
    except MemoryError:
        return "needs too much memory to be measured"


def measure(score: Score) -> Music:
    """Measure a score that has notes."""
    tracks = score.tracks
    is_drum = np.repeat([track.is_drum for track in tracks], [len(track) for track in tracks])
    onset, duration, pitch, velocity = (
        np.concatenate([getattr(track, column) for track in tracks])
        for column in ("onset", "duration", "pitch", "velocity")
    )
    end = onset + duration
    ticks = int(end.max() - onset.min())
    second = score.ticks_per_beat * score.tempo_bpm / 60  # ticks in a second
    programs = np.zeros(DRUMS + 1, np.int64)
    for track in tracks:
        programs[DRUMS if track.is_drum else track.program] += len(track)
    pitched = duration[~is_drum]
    beats = pitched / score.ticks_per_beat
    together, mean_together = _together(onset[~is_drum], end[~is_drum], ticks)
    return Music(
        tracks=len(tracks),
        notes=len(onset),
        seconds=ticks / second,
        tempo_bpm=score.tempo_bpm,
        meter=f"{score.meter[0]}/{score.meter[1]}",
        programs=programs,
        pitches=np.bincount(pitch[~is_drum], minlength=128),
        velocities=np.bincount(velocity, minlength=128),
        lengths=np.bincount(_length_bin(beats), minlength=len(length_bins())),
        together=together,
        mean_together=mean_together,
        short_share=float((beats < SHORT).mean()) if len(beats) else 0.0,
        on_grid=_on_grid(np.unique(onset) / score.ticks_per_beat),
        longest_note=int(pitched.max(initial=0)) / second,
        longest_silence=_longest_silence(onset, end) / second,
    )


def length_bins() -> FloatArray:
    """The middles of the bins of note lengths, in beats."""
    low, high = LENGTH_OCTAVES
    return 2.0 ** (np.arange(low * LENGTHS_PER_OCTAVE, high * LENGTHS_PER_OCTAVE + 1) / LENGTHS_PER_OCTAVE)


def _length_bin(beats: FloatArray) -> IntArray:
    low, high = LENGTH_OCTAVES
    octaves = np.log2(np.clip(beats, 2.0**low, 2.0**high))
    return np.rint((octaves - low) * LENGTHS_PER_OCTAVE).astype(np.int64)


def _together(onset: IntArray, end: IntArray, ticks: int) -> tuple[FloatArray, float]:
    """How many notes sound together: shares of the piece's `ticks`, and the mean while any sounds."""
    times = np.concatenate([onset, end])
    steps = np.repeat([1, -1], len(onset))
    order = np.argsort(times, kind="stable")
    sounding = np.cumsum(steps[order])[:-1].clip(0, MANY)
    spans = np.diff(times[order])
    shares = np.bincount(sounding, weights=spans, minlength=MANY + 1)
    shares[0] = 0
    heard = shares.sum()
    shares[0] = ticks - heard
    return shares / max(ticks, 1), float((end - onset).sum() / heard) if heard else 0.0


def _on_grid(beats: FloatArray) -> float:
    distance = np.abs((beats % 1)[:, None] - GRID).min(axis=1)
    return float((distance <= GRID_TOLERANCE).mean())


def _longest_silence(onset: IntArray, end: IntArray) -> int:
    """Ticks in which nothing sounds, between two notes."""
    order = np.argsort(onset, kind="stable")
    gaps = onset[order][1:] - np.maximum.accumulate(end[order])[:-1]
    return int(gaps.max(initial=0))


def kinds(reasons: Iterable[tuple[File, str | None]]) -> dict[str, list[File]]:
    """Files by kind of reason or remark, which is what stands before its details in brackets; most first."""
    groups: dict[str, list[File]] = {}
    for file, reason in reasons:
        if reason:
            kind = re.sub(r"\d+", "N", reason.partition(" (")[0])
            groups.setdefault(kind, []).append(file)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def duplicates(files: list[File]) -> list[list[File]]:
    """Groups of two and more converted files with one music, the largest first; the kept file begins each."""
    groups: dict[str, list[File]] = {}
    for file in files:
        if file.song:
            groups.setdefault(file.song, []).append(file)
    repeated = [sorted(group, key=lambda file: file.duplicate_of is not None) for group in groups.values()]
    return sorted((group for group in repeated if len(group) > 1), key=lambda group: -len(group))


def examples(files: list[File], shown: int = 3) -> str:
    """The first files by name, and how many more there are."""
    more = f" and {len(files) - shown:,} more" if len(files) > shown else ""
    return ", ".join(file.shown for file in files[:shown]) + more
