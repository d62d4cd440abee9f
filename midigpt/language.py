"""Languages: Score <-> text. A language is an encoding, which says how lines are written, and a layout.

A document is a header (header.py) and lines, of one track or of a whole song. docs/language.md is the specification.
"""

import importlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import ModuleType

import numpy as np

from midigpt import header as headers
from midigpt.encodings import MARK_ALPHABET, Row, Sheet, part_order
from midigpt.files import UserError
from midigpt.header import (
    DEFAULT_KEY,
    Header,
    LanguageError,
    keep_fields,
    nearest_tempo,
    program_text,
    read_header,
    shown,
    split_header,
)
from midigpt.normal import (
    GRID,
    MAX_RESOLUTION,
    VELOCITY_BINS,
    Layout,
    Notes,
    normal_notes,
    part_marks,
    song_order,
)
from midigpt.score import IntArray, Score, Track

ENCODINGS = sorted(path.stem for path in Path(__file__).with_name("encodings").glob("[a-z]*.py"))


@dataclass(frozen=True)
class Language:
    """What documents are written in. Raises UserError for an encoding that there is not."""

    encoding: str = "anchored"  # a module of midigpt/encodings
    layout: Layout = "song"

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise UserError(f"--encoding {self.encoding!r} is none; there are {', '.join(ENCODINGS)}")

    def __str__(self) -> str:
        """All that the texts depend on: documents, tokens and models of one language go together."""
        rounding = f"grid={GRID} velocity-bins={VELOCITY_BINS} pedal=on"
        return f"{self.encoding}-{self.module.VERSION} layout={self.layout} {rounding}"

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"midigpt.encodings.{self.encoding}")

    @property
    def alphabet(self) -> str:
        """The characters of whole documents."""
        return "".join(sorted({*headers.ALPHABET, *self.line_alphabet}))

    @property
    def line_alphabet(self) -> str:
        """The characters of lines."""
        return (self.module.ALPHABET or "\n") + (MARK_ALPHABET if self.is_song else "")

    @property
    def is_open(self) -> bool:
        """Whether lines have more characters than a vocabulary can: tokens are then made of bytes."""
        return self.module.ALPHABET is None

    @property
    def is_song(self) -> bool:
        """Whether all parts of a piece are one document."""
        return self.layout == "song"

    @property
    def has_keys(self) -> bool:
        """Whether a document can be written in several keys: see in_key()."""
        return hasattr(self.module, "moved")

    @property
    def is_anchored(self) -> bool:
        """Whether a part's first note in each line counts from the header's key, the piece's mean pitch."""
        return self.encoding == "anchored"

    @property
    def is_chained(self) -> bool:
        """Whether it counts from the part's first note in the line before; then the header's key is the first note."""
        return self.encoding == "interval"


TRACKS = Language("interval", "track")


def read_language(text: str) -> Language:
    """The language of that name, as str() gives it. Raises LanguageError for one that this version does not have."""
    match = re.match(r"([a-z]+)-\d+ layout=(track|song) ", text)
    if match and match[1] in ENCODINGS:
        language = Language(match[1], "song" if match[2] == "song" else "track")
        if str(language) == text:
            return language
    here = f"it has the encodings {', '.join(ENCODINGS)}, such as in {str(Language())!r}"
    raise LanguageError(f"{text!r} is no language of this version; {here}")


# --- Score -> text ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """A song, or a track, as text. Where pitches are intervals `body`, the lines, is the same in every key."""

    header: str  # with its newline
    body: str
    onset: IntArray = field(compare=False, repr=False)  # (N,) grid steps
    pitch: IntArray = field(compare=False, repr=False)  # (N,)

    @property
    def notes(self) -> int:
        return len(self.onset)

    @property
    def text(self) -> str:
        return self.header + self.body


def encode(score: Score, end: int | None = None, language: Language = TRACKS) -> list[Document]:
    """Write a score in normal form: a document for each track that has notes, or one for the song.

    Documents end with their last note, or, if `end` (grid steps) is given and later than that note's onset,
    there: a prompt runs to its cut. Raises LanguageError for a piece of more than MAX_TICKS steps.
    """
    return encode_batch([score], end, language)[0]


def encode_batch(
    scores: Sequence[Score], end: int | None = None, language: Language = TRACKS
) -> list[list[Document]]:
    """encode() of several scores at once: numpy's cost for each call is shared, which small files gain by."""
    tracks: list[Track] = []
    owner: list[int] = []  # of each track, the number of its score
    for number, score in enumerate(scores):
        some = song_order(score.tracks) if language.is_song else [track for track in score.tracks if len(track)]
        tracks += some
        owner += [number] * len(some)
    if not tracks:
        return [[] for _ in scores]
    notes = normal_notes(tracks, np.array([scores[number].ticks_per_beat for number in owner]))
    sheet = _song_sheet(notes, tracks, owner, end) if language.is_song else _track_sheet(notes, tracks, end)
    sheet = replace(sheet, keys=language.module.find_keys(sheet))
    bodies = language.module.write(sheet)
    shared = [f"tempo={nearest_tempo(s.tempo_bpm)} meter={s.meter[0]}/{s.meter[1]}" for s in scores]
    documents: list[list[Document]] = [[] for _ in scores]
    for start, stop, key, body in zip(sheet.starts, sheet.starts[1:], sheet.keys.tolist(), bodies, strict=False):
        part = int(sheet.notes.part[start])
        program = "" if language.is_song else f"program={program_text(tracks[part].program, tracks[part].is_drum)} "
        header = f"# {program}{shared[owner[part]]}{'' if key < 0 else f' key={key}'}\n"
        document = Document(header, body, sheet.notes.onset[start:stop], sheet.notes.pitch[start:stop])
        documents[owner[part]].append(document)
    return documents


def in_key(text: str, by: int, language: Language) -> str:
    """A document in normal form in another key, for training: numbers that say a pitch by themselves are higher `by`.

    In absolute pitch it is other music; what is anchored is the same, counted from a lower anchor, which the header
    names unless it is no MIDI note. Drums stay as they are, and so does all with 0.
    """
    header, body = split_header(text)
    its = read_header(header)
    if not by or its.is_drum:
        return text
    body, key = language.module.moved(body, DEFAULT_KEY if its.key is None else its.key, by)
    header = keep_fields(header, lambda name: name != "key")
    return (f"{header[:-1]} key={key}\n" if its.key is not None and 0 <= key < 128 else header) + body


def _track_sheet(notes: Notes, tracks: Sequence[Track], end: int | None) -> Sheet:
    starts = np.searchsorted(notes.part, np.arange(len(tracks) + 1)).tolist()
    return Sheet(notes, starts, np.array([track.is_drum for track in tracks]), [], end)


def _song_sheet(notes: Notes, tracks: Sequence[Track], owner: Sequence[int], end: int | None) -> Sheet:
    """The notes of all parts of each score together."""
    document = np.unique(owner, return_inverse=True)[1][notes.part]  # (N,)
    order = np.argsort(document << 32 | notes.onset, kind="stable")  # which leaves parts and pitches in order
    notes = Notes(*(getattr(notes, column)[order] for column in ("part", "onset", "end", "pitch", "bins")))
    starts = np.searchsorted(document, np.arange(document[-1] + 2)).tolist()
    by_score = groupby(zip(owner, tracks, strict=True), key=itemgetter(0))
    marks = [mark for _, parts in by_score for mark in part_marks([track for _, track in parts])]
    return Sheet(notes, starts, np.array([track.is_drum for track in tracks]), marks, end)


# --- text -> Score ---------------------------------------------------------------------------------------


def decode(documents: Iterable[str], language: Language = TRACKS) -> Score:
    """Read documents, in normal form or not, as the tracks of one score.

    Tempo and meter are those of the first document that names them. The clock is GRID ticks to the beat, or
    finer where a text's times need it. Raises LanguageError, which names document and line.
    """
    texts = list(documents)
    read: list[tuple[Header, list[Row], int]] = []
    for number, text in enumerate(texts, start=1):
        try:
            header = _read_header(text, language)
            first = 2 if text.startswith("#") else 1
            read.append((header, *language.module.read(split_header(text)[1], header, first, language.is_song)))
        except LanguageError as error:
            raise LanguageError(f"document {number}, {error}" if len(texts) > 1 else str(error)) from None
    resolution = math.lcm(GRID, *(clock for *_, clock in read))
    if resolution > MAX_RESOLUTION:
        clocks = ", ".join(map(str, sorted({clock for *_, clock in read})))
        raise LanguageError(f"documents with {clocks} ticks to the beat have no common clock")
    tempo = next((header.tempo_bpm for header, *_ in read if header.tempo_bpm), 120)
    meter = next((header.meter for header, *_ in read if header.meter), (4, 4))
    tracks = [track for header, rows, clock in read for track in _tracks(header, rows, resolution // clock)]
    return Score(resolution, tuple(tracks), float(tempo), meter)


def _read_header(text: str, language: Language) -> Header:
    header = read_header(text)
    if language.is_song and (header.is_drum or header.program is not None):
        raise LanguageError("line 1: the header of a song names no program; part marks do")
    return header


def _tracks(header: Header, rows: list[Row], scale: int) -> list[Track]:
    """The parts of a document that have notes, in their order."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row.mark, []).append(row)
    if "" in parts:
        return [_track(header.program or 0, header.is_drum, rows, scale)]
    named = sorted((part_order(mark), rows) for mark, rows in parts.items())
    return [_track(program, is_drum, rows, scale) for (is_drum, program, _), rows in named]


def _track(program: int, is_drum: bool, rows: list[Row], scale: int) -> Track:
    notes = sorted((row[1:] for row in rows), key=lambda row: (row[0], row[2]))
    onset, duration, pitch, velocity = np.array(notes, np.int64).reshape(-1, 4).T
    return Track(program, is_drum, onset * scale, duration * scale, pitch, velocity)


def check_document(text: str, language: Language = TRACKS) -> None:
    """A quick look whether text can be a document: LanguageError for prose, of course, and binary data.

    The header is read, the lines' characters and the first line's form are checked; not every line.
    """
    header = _read_header(text, language)
    body = split_header(text)[1]
    strange = "" if language.is_open else body.translate(dict.fromkeys(map(ord, language.line_alphabet)))
    if strange:
        raise LanguageError(f"{shown(strange)} has no place in a document's lines")
    if first := body.partition("\n")[0]:
        language.module.check_line(first, header, language.is_song)
