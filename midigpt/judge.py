"""The judge: takes against held-out pieces, beside the best and the worst there can be.

The ceiling is real against real: training pieces against the held-out ones. The floor is notes at random: each
pitch, length and time between notes drawn from those of all held-out pieces. All pieces are cut to the same number of
notes, for most features depend on it; what is drums alone is judged apart.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from midigpt.copies import open_copies
from midigpt.documents import Split, read_songs
from midigpt.files import UserError, counted, make
from midigpt.header import LanguageError, split_header
from midigpt.index import songs
from midigpt.language import TRACKS, Language, Layout, decode
from midigpt.likeness import Likeness, Set, compare
from midigpt.metrics import FEATURES, Feature, FloatArray
from midigpt.normal import normalise
from midigpt.score import IntArray, Score, track_from_notes

TAKES, REAL, SHUFFLED = "takes", "real against real", "shuffled"  # what is compared with the held-out pieces
HELD_OUT = "held out"
SONGS = 500  # of each side that are read, at most
PIECES = 300  # held-out pieces of a group, at most
FEW = 10  # pieces, too few for a density
LEAST_NOTES = 16  # of a piece, where nothing else is asked for
MOST_NOTES = {"track": 128, "song": 512}  # likewise, by layout: of a song as many bars as of a track


@dataclass(frozen=True)
class Document:
    """A real document."""

    name: str  # as data/ has it: of its song, in track layout with the track's number
    song: str  # equal for all that are of one song
    text: str
    notes: int


@dataclass(frozen=True)
class Piece:
    """The beginning of a document."""

    name: str
    song: str
    score: Score  # in normal form

    @property
    def is_drum(self) -> bool:
        """Whether all of it is drums."""
        return all(track.is_drum for track in self.score.tracks)


@dataclass(frozen=True)
class Row:
    """One feature in all sets."""

    feature: Feature
    values: dict[str, FloatArray]  # of HELD_OUT and the others: (P,) numbers or (P, K) histograms
    likeness: dict[str, Likeness]  # of TAKES, REAL, SHUFFLED to HELD_OUT


@dataclass(frozen=True)
class Group:
    """Pieces that can be compared: drums alone, or all others."""

    name: str
    pieces: dict[str, list[Piece]]
    rows: list[Row]

    def mean_overlap(self, of: str) -> float:
        return float(np.mean([row.likeness[of].overlap for row in self.rows]))


@dataclass(frozen=True)
class Copied:
    """The longest passage of a piece that stands in the training set."""

    name: str  # of the piece
    copy: Any  # midigpt.copies.Copy; None where nothing is copied


@dataclass(frozen=True)
class Judgement:
    """All that is said of a model."""

    model: str
    drawing: dict[str, Any]  # how the takes were drawn
    notes: int  # of each piece, at most
    takes: int  # asked for
    valid: int
    bits_per_note: float
    unigram_bits_per_note: float
    songs: int  # held out, all of which bits per note are of
    documents: int
    groups: list[Group]
    copies: dict[str, list[Copied]]  # TAKES and HELD_OUT; empty where there is no index of copies
    remarks: list[str]


# --- pieces ----------------------------------------------------------------------------------------------


def read_side(root: Path, language: Language, split: Split, is_val: bool, seed: int) -> list[Document]:
    """The documents of at most SONGS songs of one side of the split, drawn by a hash of their music and the seed.

    Raises UserError where they are too few to compare.
    """

    def chance(fingerprint: str) -> str:
        return hashlib.sha256(f"{seed} evaluate {fingerprint}".encode()).hexdigest()

    side = (song for song in songs(root) if split.is_val(song) == is_val)
    drawn = nsmallest(SONGS, side, key=lambda song: (chance(song.fingerprint), song.name))
    drawn.sort(key=lambda song: (song.shard is not None, song.shard or 0, song.name))  # a shard is read whole, once
    count = language.module.count_notes
    documents = [
        Document(
            f"{song.name}_{number}" if not language.is_song else song.name,
            song.fingerprint,
            text,
            count(split_header(text)[1]),
        )
        for song, texts in read_songs(root, drawn)
        for number, text in enumerate(texts, start=1)
    ]
    if len(documents) < FEW:
        which = "held out" if is_val else "left to train on"
        too_few = f"{counted(len(documents), 'document')} {which}, too few to compare: {FEW} are needed"
        raise UserError(f"{too_few}; {_hold_out(root)}")
    return documents


def _hold_out(root: Path) -> str:
    again = make(root, "tokenizer", "train-bin")
    return f'hold out another share of the songs with: {again} ARGS="--val-fraction 0.2", and train a new run'


def usual_notes(documents: Sequence[Document], layout: Layout = "track") -> int:
    """How many notes to cut pieces to: what three of four documents have, MOST_NOTES at most.

    Raises UserError where that is too short to be judged.
    """
    notes = min(int(np.percentile([document.notes for document in documents], 25)), MOST_NOTES[layout])
    if notes < LEAST_NOTES:
        raise UserError(
            f"a quarter of the held-out documents have fewer than {LEAST_NOTES} notes; say how many notes of each"
            f" to compare, and shorter ones are left out: --notes {LEAST_NOTES}"
        )
    return notes


def beginning(name: str, song: str, text: str, notes: int, language: Language = TRACKS) -> Piece | None:
    """The first notes of a document; None where it has fewer. Raises LanguageError for what is no document."""
    cut = first_notes(text, notes, language)
    score = normalise(decode([cut], language)) if cut else None
    return Piece(name, song, _opening(score, notes)) if score and score.notes >= notes else None


def first_notes(text: str, notes: int, language: Language = TRACKS) -> str:
    """A document up to the line with the note of this number; "" where it has not so many. 0: all of it."""
    header, body = split_header(text)
    if not notes:
        return text
    lines = body.splitlines(keepends=True)
    total = np.cumsum([language.module.count_notes(line) for line in lines])
    if not len(total) or total[-1] < notes:
        return ""
    return header + "".join(lines[: int(np.searchsorted(total, notes)) + 1])


def _opening(score: Score, notes: int) -> Score:
    """What is left of a score, moved so that it begins in its first bar."""
    onset = np.concatenate([track.onset for track in score.tracks])
    bar = round(score.ticks_per_beat * 4 * score.meter[0] / score.meter[1])
    late = int(onset.min()) // bar * bar
    kept = np.zeros(len(onset), bool)
    kept[np.argsort(onset, kind="stable")[:notes]] = True
    tracks, start = [], 0
    for track in score.tracks:
        here = kept[start : start + len(track)]
        start += len(track)
        chosen = track.select(here)
        tracks.append(replace(chosen, onset=chosen.onset - late))
    return replace(score, tracks=tuple(track for track in tracks if len(track)))


def draw_pieces(
    documents: Iterable[Document], notes: int, is_drum: bool, most: int, seed: int, language: Language = TRACKS
) -> list[Piece]:
    """The beginnings of at most so many documents, by chance, all drums or not; those with fewer notes are left out."""
    fit = [document for document in documents if document.notes >= notes]
    order = np.random.default_rng([seed, is_drum]).permutation(len(fit)).tolist()
    cut = ((n, beginning(fit[n].name, fit[n].song, fit[n].text, notes, language)) for n in order)
    drawn = islice(((n, piece) for n, piece in cut if piece and piece.is_drum == is_drum), most)
    return [piece for _, piece in sorted(drawn, key=lambda pair: pair[0])]


def shuffle(pieces: Sequence[Piece], notes: int, count: int, seed: int) -> list[Piece]:
    """Pieces of notes at random: each pitch, length, loudness and time between notes is one of the given pieces'.

    Each has as many notes of drums as one of these, and as that has them theirs are of drums.
    """
    rng = np.random.default_rng([seed, len(pieces)])
    pools = {is_drum: _pool(pieces, is_drum) for is_drum in (False, True)}
    onsets = [np.sort(np.concatenate([track.onset for track in piece.score.tracks])) for piece in pieces]
    wait = np.concatenate([np.diff(onset) for onset in onsets])
    shuffled = []
    for number in range(count):
        like = pieces[number % len(pieces)].score
        onset = onsets[number % len(pieces)][0] + np.append(0, np.cumsum(rng.choice(wait, notes - 1)))
        of_drums = rng.permutation(np.concatenate([np.full(len(track), track.is_drum) for track in like.tracks]))
        tracks = []
        for is_drum, pool in pools.items():
            columns = [onset[of_drums == is_drum]]
            columns += [rng.choice(column, len(columns[0])) for column in pool]
            tracks.append(track_from_notes([tuple(row) for row in np.stack(columns, 1).tolist()], is_drum=is_drum))
        score = normalise(replace(like, tracks=tuple(tracks)))  # of notes in the same place one is left
        shuffled.append(Piece(f"shuffled {number + 1}", f"shuffled {number}", score))
    return shuffled


def _pool(pieces: Sequence[Piece], is_drum: bool) -> list[IntArray]:
    """Length, pitch and velocity of all notes of drums, or of all others, each (N,)."""
    tracks = [track for piece in pieces for track in piece.score.tracks if track.is_drum == is_drum]
    nothing = np.empty(0, np.int64)
    columns = ("duration", "pitch", "velocity")
    return [np.concatenate([nothing, *(getattr(track, column) for track in tracks)]) for column in columns]


# --- the judgement ---------------------------------------------------------------------------------------


def judge(
    root: Path,
    takes: Sequence[str],
    held_out: Sequence[Document],
    training: Sequence[Document],
    notes: int,
    seed: int,
    language: Language = TRACKS,
) -> tuple[list[Group], list[str]]:
    """Compare takes, valid texts of documents, with real ones; and sentences on what could not be compared.

    Raises UserError where there are too few of all to compare anything.
    """
    groups, remarks = [], []
    named = zip(take_names(len(takes)), takes, strict=True)
    whole = [beginning(name, name, text, notes, language) for name, text in named]
    if short := sum(piece is None for piece in whole):
        remarks.append(f"{short} takes have fewer than {notes} notes and are not compared")
    for name, is_drum in (("songs" if language.is_song else "pitched parts", False), ("drums", True)):
        written = [piece for piece in whole if piece and piece.is_drum == is_drum]
        real = draw_pieces(held_out, notes, is_drum, PIECES, seed, language)
        learned = draw_pieces(training, notes, is_drum, max(len(written), FEW), seed, language)
        sizes = {"takes": written, "held-out documents": real, "training documents": learned}
        few = " and ".join(f"{len(some)} {what}" for what, some in sizes.items() if len(some) < FEW)
        if few:
            if written or real:
                remarks.append(f"{name}: {few} with {notes} notes are too few to compare; {FEW} are needed")
            continue
        pieces = {TAKES: written, REAL: learned, SHUFFLED: shuffle(real, notes, len(written), seed), HELD_OUT: real}
        groups.append(Group(name, pieces, _rows(pieces, is_drum, seed)))
    if not groups:
        raise UserError(
            f"{'; '.join(remarks)}; ask for more takes (--takes) or shorter ones (--notes), or {_hold_out(root)}"
        )
    return groups, remarks


def take_names(count: int) -> list[str]:
    return [f"take-{number:04d}" for number in range(1, count + 1)]


def is_valid(text: str, language: Language = TRACKS) -> bool:
    """Whether a take is a document of the language that has notes."""
    try:
        return decode([text], language).notes > 0
    except LanguageError:
        return False


def _rows(pieces: dict[str, list[Piece]], is_drum: bool, seed: int) -> list[Row]:
    song = {name: np.unique([p.song for p in some], return_inverse=True)[1] for name, some in pieces.items()}
    rows = []
    for number, feature in enumerate(FEATURES):
        if is_drum and not feature.of_drums:
            continue
        measured = {name: np.array([feature.measure(p.score) for p in some]) for name, some in pieces.items()}
        sets = {}
        for name, values in measured.items():
            known = ~np.isnan(values.reshape(len(values), -1)).any(axis=1)
            sets[name] = Set(values[known], np.unique(song[name][known], return_inverse=True)[1])
        if min(len(some.values) for some in sets.values()) < FEW:
            continue
        others = {name: sets[name] for name in (TAKES, REAL, SHUFFLED)}
        likeness = compare(sets[HELD_OUT], others, feature.finest, np.random.default_rng([seed, number]))
        rows.append(Row(feature, {name: some.values for name, some in sets.items()}, likeness))
    return rows


def find_copies(root: Path, groups: Sequence[Group]) -> dict[str, list[Copied]]:
    """Of each take, and of as many held-out pieces, the longest passage that stands in the training set.

    Raises UserError where there is no index of that.
    """
    index = open_copies(root)
    pieces = {
        TAKES: [piece for group in groups for piece in group.pieces[TAKES]],
        HELD_OUT: [piece for group in groups for piece in group.pieces[HELD_OUT][: len(group.pieces[TAKES])]],
    }
    return {
        name: [Copied(piece.name, index.longest_in(piece.score)) for piece in some] for name, some in pieces.items()
    }


def copied_notes(copies: Sequence[Copied]) -> IntArray:
    """(P,) The notes of each piece's longest copied passage; 0 without."""
    return np.array([copied.copy.notes if copied.copy else 0 for copied in copies])


# --- as JSON ---------------------------------------------------------------------------------------------


def as_json(judgement: Judgement) -> dict[str, Any]:
    """What evaluation.json holds."""
    plain = {name: value for name, value in vars(judgement).items() if name not in ("groups", "copies")}
    return {
        **plain,
        "groups": {group.name: _group_json(group) for group in judgement.groups},
        "copies": {
            side: [{"name": c.name, **(asdict(c.copy) if c.copy else {"notes": 0})} for c in some]
            for side, some in judgement.copies.items()
        },
    }


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "pieces": {name: len(pieces) for name, pieces in group.pieces.items()},
        "songs": {name: len({piece.song for piece in pieces}) for name, pieces in group.pieces.items()},
        "mean_overlap": {name: group.mean_overlap(name) for name in (TAKES, REAL, SHUFFLED)},
        "features": {row.feature.name: _row_json(row) for row in group.rows},
    }


def _row_json(row: Row) -> dict[str, Any]:
    def summary(values: FloatArray) -> dict[str, Any]:
        if values.ndim > 1:
            return {"shares": dict(zip(row.feature.bins, values.mean(axis=0).tolist(), strict=True))}
        return {"mean": float(values.mean()), "deviation": float(values.std())}

    sets = {name: {"pieces": len(values), **summary(values)} for name, values in row.values.items()}
    for name, likeness in row.likeness.items():
        sets[name] |= asdict(likeness)
    return {"unit": row.feature.unit, "source": row.feature.source, **sets}
