"""The copy meter: the longest passage of a take that stands in the training songs, in any key.

A passage is a run of instants at which notes begin. Two instants are the same if they have the same set of pitch
classes (of drums: of keys) and the same time until the next instant, on the grid: octaves, doublings, loudness and
lengths of notes don't matter. All of a passage is moved by one number of keys, drums by none. The time of its last
instant counts, what leads to its first does not. There is no least length: one note repeated a hundred times is a
passage, and so is a plain drum beat. So read a figure beside those of held-out music, as the
judge gives them.

`make train-bin` writes the index beside train.bin:

    copies.moments.bin    int64 (N,) midigpt.instants' moments of all training documents, after each document a 0
    copies.suffixes.bin   int32 (N,) the suffix array of each block of moments, counted from the block's beginning
    copies.docs.bin       int64 (D, 6) of each document, in the song layout of each part: where its moments begin, the
                          number of its song in copies.songs.txt, which of the song's documents or parts it is (from
                          1), its first onset in grid steps, its meter (two numbers)
    copies.songs.txt      the songs' names, a line each

and in meta.json, under "copies", where each block ends, and the number D. A block holds as many whole documents, or
parts, as have less than two million moments together, so that memory does not grow with the music. (Of a longer one
only so many are kept.)
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from midigpt.files import UserError, make, read_json, replacing
from midigpt.header import program_text
from midigpt.instants import moment_time, moved, read_instants
from midigpt.language import TRACKS, Language, encode
from midigpt.normal import GRID, program_marks
from midigpt.score import IntArray, Score
from midigpt.suffixes import MOST, longest_beginnings, sort_suffixes

MOMENT, SUFFIX, DOC = np.dtype("<i8"), np.dtype("<i4"), np.dtype("<i8")
END = 0  # of a document; no moment is 0
BANDS = 100  # songs of which is kept what plays in them
_NOWHERE = -1  # in no document, and less than all that is in one
_NAMES = ("moments.bin", "suffixes.bin", "docs.bin", "songs.txt")


# --- writing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passages:
    """What of some songs goes into the index."""

    songs: list[str]
    moments: bytes  # MOMENT, END after each document or part
    docs: IntArray  # (D, 6) as in copies.docs.bin, counted from these moments and songs
    bands: list[tuple[str, ...]]  # of each song the marks of its parts, as in the song layout


def read_passages(some: Sequence[tuple[str, list[str]]], language: Language = TRACKS) -> Passages:
    """Read songs: of each its name, and its documents."""
    instants = read_instants([text for _, texts in some for text in texts], language)
    count = np.bincount(instants.part, minlength=len(instants.headers))
    first = np.cumsum(count) - count
    at = np.arange(len(instants.part)) - first[instants.part]
    is_kept = at < MOST - 1
    kept = np.minimum(count, MOST - 1)
    start = np.cumsum(kept + 1) - kept - 1
    moments = np.full(int(np.sum(kept + 1)), END, MOMENT)
    moments[(start[instants.part] + at)[is_kept]] = instants.moment[is_kept]

    onset = np.append(instants.onset, 0)[first] * (count > 0)
    song = np.repeat(np.arange(len(some)), [len(texts) for _, texts in some])[instants.text]
    track = np.arange(1, len(song) + 1) - np.searchsorted(song, song)
    meter = np.array([header.meter or (4, 4) for header in instants.headers], np.int64).reshape(-1, 2).T
    playing: list[list[str]] = [[] for _ in some]  # the programs of each song's parts
    for number, header, notes in zip(song.tolist(), instants.headers, count.tolist(), strict=True):
        if notes:
            playing[number].append(program_text(header.program, header.is_drum))
    docs = np.stack([start, song, track, onset, *meter], 1)
    return Passages([name for name, _ in some], moments.tobytes(), docs, [tuple(program_marks(its)) for its in playing])


class Writer:
    """Writes the index of passages as they come; a block's suffixes are sorted as soon as it is full."""

    def __init__(self, moments: IO[bytes], suffixes: IO[bytes], docs: IO[bytes], songs: IO[bytes]) -> None:
        self.blocks: list[int] = []  # where each ends
        self.documents = 0  # or parts
        self.programs: Counter[str] = Counter()  # in how many songs each plays; "d" is drums
        self._bands: list[tuple[bytes, tuple[str, ...]]] = []  # of some songs, by a hash of their names
        self._moments, self._suffixes, self._docs, self._songs = moments, suffixes, docs, songs
        self._block: list[IntArray] = []  # parts of the block that is not yet full
        self._size = self._total = self._songs_written = 0

    def add(self, some: Passages) -> None:
        moments = np.frombuffer(some.moments, MOMENT)
        docs = some.docs + np.array([self._total, self._songs_written, 0, 0, 0, 0])
        self._docs.write(docs.astype(DOC).tobytes())
        self._songs.write("".join(f"{name}\n" for name in some.songs).encode())
        self._moments.write(some.moments)
        self._total += len(moments)
        self._songs_written += len(some.songs)
        self.documents += len(docs)
        for name, band in zip(some.songs, some.bands, strict=True):
            self.programs.update({mark.partition(".")[0] for mark in band})
            self._bands.append((hashlib.sha256(name.encode()).digest(), band))
        self._bands = sorted(self._bands)[:BANDS]
        ends = np.append(some.docs[1:, 0], len(moments)) if len(some.docs) else some.docs[:, 0]
        begin = 0
        while begin < len(moments):
            fits = int(np.searchsorted(ends, begin + MOST - self._size, side="right"))
            end = int(ends[fits - 1]) if fits else 0
            if end > begin:
                self._block.append(moments[begin:end])
                self._size, begin = self._size + end - begin, end
            if begin < len(moments):
                self.close_block()

    @property
    def bands(self) -> list[tuple[str, ...]]:
        """The marks of the parts of BANDS songs, drawn by their names, or of all if they are fewer."""
        return [band for _, band in self._bands]

    def close_block(self) -> None:
        if self._size:
            self._suffixes.write(sort_suffixes(np.concatenate(self._block)).astype(SUFFIX).tobytes())
            self.blocks.append(self._size + (self.blocks[-1] if self.blocks else 0))
        self._block, self._size = [], 0


@contextmanager
def writer(folder: Path) -> Iterator[Writer]:
    """A writer of train/copies.*; the files have their names when all is well at the end."""
    with ExitStack() as stack:
        paths = [stack.enter_context(replacing(folder / f"copies.{name}")) for name in _NAMES]
        out = Writer(*(stack.enter_context(path.open("wb")) for path in paths))
        yield out
        out.close_block()


# --- asking ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A passage of a take that stands in a training song."""

    notes: int  # of the take
    seconds: float  # in the take's tempo
    start_beat: float  # in the take, from 0
    song: str  # the file's name
    track: int  # its document, data/SONG_TRACK.txt, or in the song layout its part: from 1, in their order
    bar: int  # there, from 1
    beat: float  # in this bar, from 1; a beat is a quarter note


@dataclass(frozen=True)
class CopyIndex:
    """The training songs, to look passages up in. Files are mapped, so only what is looked at is in memory."""

    moments: IntArray  # (N,)
    suffixes: NDArray[np.int32]  # (N,)
    blocks: list[int]  # where each ends
    docs: IntArray  # (D, 6)
    songs: list[str]

    def longest(self, text: str) -> Copy | None:
        """The passage of a track's document (TRACKS) with the most notes that stands in the training songs, or None.

        Of several in the take it is the first; of several places where it stands, any, but always the same. Raises
        LanguageError where the document's header is none.
        """
        take = read_instants([text])
        count = len(take.moment)
        if not count:
            return None
        (header,) = take.headers
        keys = 1 if header.is_drum else 12
        query = np.concatenate([np.append(moved(take.moment, key), _NOWHERE) for key in range(keys)])
        starts = (np.arange(count)[:, None] + np.arange(keys) * (count + 1)).ravel()  # all keys of a place together
        place = np.repeat(np.arange(count), keys)
        notes = np.append(0, np.cumsum(take.notes))
        best = (0, 0, 0, 0)  # notes, instants, and where they begin: in the take, in the index
        for begin, end in zip([0, *self.blocks], self.blocks, strict=False):
            length, found = longest_beginnings(self.moments[begin:end], self.suffixes[begin:end], query, starts)
            gain = notes[place + length] - notes[place]
            at = int(np.argmax(gain))
            if (gain[at], -place[at]) > (best[0], -best[2]):
                best = (int(gain[at]), int(length[at]), int(place[at]), begin + int(found[at]))
        if not best[0]:
            return None
        steps = int(moment_time(take.moment[best[2] : best[2] + best[1]]).sum())
        seconds = steps / GRID * 60 / (header.tempo_bpm or 120)
        return Copy(best[0], seconds, int(take.onset[best[2]]) / GRID, *self._where(best[3]))

    def longest_in(self, score: Score) -> Copy | None:
        """Likewise of a score, part by part; None if it has no notes."""
        found = [self.longest(document.text) for document in encode(score)]
        return min(filter(None, found), key=lambda copy: (-copy.notes, copy.start_beat), default=None)

    def _where(self, at: int) -> tuple[str, int, int, float]:
        """Song, track, bar and beat of a moment."""
        start, song, track, onset, *meter = self.docs[np.searchsorted(self.docs[:, 0], at, side="right") - 1].tolist()
        steps = onset + int(moment_time(self.moments[start:at]).sum())
        bar, rest = divmod(steps, GRID * 4 * meter[0] / meter[1])
        return self.songs[song], track, int(bar) + 1, rest / GRID + 1


def open_copies(root: Path) -> CopyIndex:
    """The index that `make train-bin` made. Raises UserError where it is missing or not that of train.bin."""
    folder = root / "train"
    moments, *others = (folder / f"copies.{name}" for name in _NAMES)
    meta = read_json(folder / "meta.json") if (folder / "meta.json").exists() else {}
    if not isinstance(meta.get("copies"), dict) or not all(path.exists() for path in (moments, *others)):
        again = make(root, "train-bin")
        raise UserError(f"{folder} has no index of its songs for finding copies; make it with: {again}")
    index = map_index(folder, meta["copies"]["blocks"])
    total = index.blocks[-1] if index.blocks else 0
    tokens = (folder / "train.bin").stat().st_size // 2 if (folder / "train.bin").exists() else -1
    train = meta["train"]
    found = (len(index.moments), len(index.suffixes), len(index.docs), len(index.songs), tokens)
    if found != (total, total, meta["copies"]["documents"], train["songs"], train["tokens"]):
        raise UserError(f"{moments} is not of the train.bin beside it; make both with: {make(root, 'train-bin')}")
    return index


def map_index(folder: Path, blocks: list[int]) -> CopyIndex:
    """The files that `writer` wrote to a folder, unchecked."""
    moments, suffixes, docs, names = (folder / f"copies.{name}" for name in _NAMES)
    songs = names.read_text(encoding="utf-8").split("\n")[:-1]
    found = _mapped(moments, MOMENT), _mapped(suffixes, SUFFIX)
    return CopyIndex(*found, blocks, _mapped(docs, DOC).reshape(-1, 6), songs)


def _mapped(path: Path, dtype: np.dtype) -> NDArray:
    size = path.stat().st_size
    return np.asarray(np.memmap(path, dtype, mode="r", shape=size // dtype.itemsize)) if size else np.empty(0, dtype)
