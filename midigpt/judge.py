"""The judge: takes against held-out pieces, beside the best and the worst there can be.

The ceiling is real against real: training pieces against the held-out ones. The floor is notes at random: each
pitch, length and time between notes drawn from those of all held-out pieces. All pieces are cut to the same number of
notes, for most features depend on it; parts with pitches and drums are judged apart.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np

from midigpt.copies import open_copies
from midigpt.documents import Split, read_songs
from midigpt.files import UserError, make
from midigpt.header import LanguageError, read_header, split_header
from midigpt.index import songs
from midigpt.language import decode
from midigpt.likeness import Likeness, Set, compare
from midigpt.metrics import FEATURES, Feature, FloatArray
from midigpt.normal import normalise
from midigpt.score import IntArray, Score, track_from_notes

TAKES, REAL, SHUFFLED = "takes", "real against real", "shuffled"  # what is compared with the held-out pieces
HELD_OUT = "held out"
SONGS = 500  # of each side that are read, at most
PIECES = 300  # held-out pieces of a group, at most
FEW = 10  # pieces, too few for a density
MOST_NOTES, LEAST_NOTES = 128, 16  # of a piece, where nothing else is asked for


@dataclass(frozen=True)
class Document:
    """A real document."""

    name: str  # of its song and track, as data/ has it
    song: str  # equal for all that are of one song
    text: str

    @property
    def notes(self) -> int:
        return split_header(self.text)[1].count("|")


@dataclass(frozen=True)
class Piece:
    """The beginning of a document."""

    name: str
    song: str
    text: str
    score: Score  # in normal form


@dataclass(frozen=True)
class Row:
    """One feature in all sets."""

    feature: Feature
    values: dict[str, FloatArray]  # of HELD_OUT and the others: (P,) numbers or (P, K) histograms
    likeness: dict[str, Likeness]  # of TAKES, REAL, SHUFFLED to HELD_OUT


@dataclass(frozen=True)
class Group:
    """Pieces that can be compared: all drums, or none."""

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


def read_side(root: Path, split: Split, is_val: bool, seed: int) -> list[Document]:
    """The documents of at most SONGS songs of one side of the split, drawn by a hash of their music and the seed.

    Raises UserError where the side is empty.
    """

    def chance(fingerprint: str) -> str:
        return hashlib.sha256(f"{seed} evaluate {fingerprint}".encode()).hexdigest()

    side = (song for song in songs(root) if split.is_val(song) == is_val)
    drawn = nsmallest(SONGS, side, key=lambda song: (chance(song.fingerprint), song.name))
    drawn.sort(key=lambda song: (song.shard is not None, song.shard or 0, song.name))  # a shard is read whole, once
    if not drawn:
        which = "held out" if is_val else "left to train on"
        raise UserError(f"no song is {which}; {_hold_out(root)}")
    return [
        Document(f"{song.name}_{number}", song.fingerprint, text)
        for song, texts in read_songs(root, drawn)
        for number, text in enumerate(texts, start=1)
    ]


def _hold_out(root: Path) -> str:
    again = make(root, "tokenizer", "train-bin")
    return f'hold out another share of the songs with: {again} ARGS="--val-fraction 0.2", and train a new run'


def usual_notes(documents: Sequence[Document]) -> int:
    """How many notes to cut pieces to: what three of four documents have, MOST_NOTES at most.

    Raises UserError where that is too short to be judged.
    """
    notes = min(int(np.percentile([document.notes for document in documents], 25)), MOST_NOTES)
    if notes < LEAST_NOTES:
        raise UserError(
            f"a quarter of the held-out documents have fewer than {LEAST_NOTES} notes; say how many notes of each"
            f" to compare, and shorter ones are left out: --notes {LEAST_NOTES}"
        )
    return notes


def beginning(name: str, song: str, text: str, notes: int) -> Piece | None:
    """The first notes of a document; None where it has fewer. Raises LanguageError for what is no document."""
    cut = first_notes(text, notes)
    return Piece(name, song, cut, _opening(normalise(decode([cut])), notes)) if cut else None


def first_notes(text: str, notes: int) -> str:
    """A document up to the line with the note of this number; "" where it has not so many. 0: all of it."""
    header, body = split_header(text)
    if not notes:
        return text
    lines = body.splitlines(keepends=True)
    total = np.cumsum([line.count("|") for line in lines])
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


def draw_pieces(documents: Iterable[Document], notes: int, is_drum: bool, most: int, seed: int) -> list[Piece]:
    """At most so many documents of drums, or of none, by chance; those with fewer notes are left out."""
    fit = [d for d in documents if d.notes >= notes and read_header(d.text).is_drum == is_drum]
    rng = np.random.default_rng([seed, is_drum])
    chosen = sorted(rng.permutation(len(fit))[:most].tolist())
    cut = (beginning(fit[n].name, fit[n].song, fit[n].text, notes) for n in chosen)
    return [piece for piece in cut if piece]


def shuffle(pieces: Sequence[Piece], notes: int, count: int, seed: int) -> list[Piece]:
    """Pieces of notes at random: each pitch, length, loudness and time between notes is one of the given pieces'."""
    tracks = [track for piece in pieces for track in piece.score.tracks]
    duration, pitch, velocity = (
        np.concatenate([getattr(track, column) for track in tracks]) for column in ("duration", "pitch", "velocity")
    )
    wait = np.concatenate([np.diff(track.onset) for track in tracks])
    rng = np.random.default_rng([seed, len(pieces)])
    shuffled = []
    for number in range(count):
        like = pieces[number % len(pieces)].score
        first = like.tracks[0]
        onset = int(first.onset[0]) + np.append(0, np.cumsum(rng.choice(wait, notes - 1)))
        columns = (onset, *(rng.choice(column, notes) for column in (duration, pitch, velocity)))
        track = track_from_notes([tuple(row) for row in np.stack(columns, 1).tolist()], first.program, first.is_drum)
        score = normalise(replace(like, tracks=(track,)))  # of notes in the same place one is left
        shuffled.append(Piece(f"shuffled {number + 1}", f"shuffled {number}", "", score))
    return shuffled


# --- the judgement ---------------------------------------------------------------------------------------


def judge(
    root: Path,
    takes: Sequence[str],
    held_out: Sequence[Document],
    training: Sequence[Document],
    notes: int,
    seed: int,
) -> tuple[list[Group], list[str]]:
    """Compare takes, valid texts of documents, with real ones; and sentences on what could not be compared.

    Raises UserError where there are too few of all to compare anything.
    """
    groups, remarks = [], []
    whole = [beginning(name, name, text, notes) for name, text in zip(take_names(len(takes)), takes, strict=True)]
    if short := sum(piece is None for piece in whole):
        remarks.append(f"{short} takes have fewer than {notes} notes and are not compared")
    for name, is_drum in (("pitched parts", False), ("drums", True)):
        written = [piece for piece in whole if piece and piece.score.tracks[0].is_drum == is_drum]
        real = draw_pieces(held_out, notes, is_drum, PIECES, seed)
        learned = draw_pieces(training, notes, is_drum, max(len(written), FEW), seed)
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


def is_valid(text: str) -> bool:
    """Whether a take is a document of the language that has notes."""
    try:
        return decode([text]).notes > 0
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
    return {name: [Copied(piece.name, index.longest(piece.text)) for piece in some] for name, some in pieces.items()}


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
