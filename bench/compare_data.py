"""Pieces -> tokens in every way that bench/compare.py compares: the languages, their switches, and MidiTok.

All ways are given the same notes: scores normalised to the language's grid, velocity bins and pedal. A way's documents
are packed as `make train-bin` packs them: the same split, header fields dropped alike, the same BPE learner.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from compare_text import write_lines
from tokenizers import Tokenizer

from midigpt.bpe import START, base_alphabet, train_tokenizer
from midigpt.dataset import Options, make_dataset
from midigpt.documents import Split
from midigpt.index import data_folder, index_files, open_index, songs
from midigpt.language import Language, encode, in_key
from midigpt.normal import GRID
from midigpt.positions import POSITIONS_A_STEP
from midigpt.rescue import rescue
from midigpt.score import NO_PEDAL, Score, Track, moved
from midigpt.tokenizer import LineEncoder
from midigpt.train_data import DROP_FIELD, document_moves, drop_fields

SPLIT = Split(val_fraction=0.1, seed=0)
LEARN_NOTES = 1_000_000  # BPE learns from so many notes at most
PEERS = ("remi", "tsd")
MERGES = 2  # goes up when the same texts give other tokens than before


@dataclass(frozen=True)
class Way:
    """A way of writing music for a model."""

    name: str
    encoding: str = "anchored"  # a module of midigpt/encodings, or MidiTok's remi or tsd
    layout: str = "song"
    vocab_size: int = 1024  # 0: no merges
    keys: int = 1  # in which each training piece is written
    switch: str = ""  # see SWITCHES, and compare_text.py
    positions: str = "time"  # or "index"
    a_step: int = POSITIONS_A_STEP  # of positions that count time
    block_size: int = 256
    drop: float = DROP_FIELD  # probability of a header's field not to be there in training

    @property
    def is_peer(self) -> bool:
        return self.encoding in PEERS

    @property
    def data(self) -> dict[str, Any]:
        """What its tokens depend on."""
        names = ("encoding", "layout", "vocab_size", "keys", "switch", "drop")
        version = "" if self.is_peer else f"{Language(self.encoding, self.layout)}, merges {MERGES}"
        return {name: getattr(self, name) for name in names} | {"version": version}


@dataclass(frozen=True)
class Piece:
    name: str
    fingerprint: str
    score: Score


# --- pieces ----------------------------------------------------------------------------------------------


def index_corpus(folder: Path, work: Path) -> None:
    """Make `work` the working folder of a folder of MIDI files: which are duplicates, and which are held out."""
    index_files(work, str(folder))
    make_dataset(work, Options())


def load_pieces(work: Path, most_train: int, most_val: int) -> tuple[list[Piece], list[Piece]]:
    """Training and held-out pieces of a working folder, without duplicates, in the order of a hash.

    So the first pieces are a fair sample, and a smaller sample is part of a larger.
    """
    with closing(open_index(work)) as index:
        raw_data = data_folder(index, work, "raw_data")
        paths = dict(index.execute("SELECT name, path FROM files"))
    chosen = sorted(songs(work), key=lambda song: hashlib.sha256(song.fingerprint.encode()).digest())
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    for song in chosen:
        side = sides[SPLIT.is_val(song)]
        if len(side) < (most_val if SPLIT.is_val(song) else most_train):
            (content,) = raw_data.read([os.fsdecode(paths[song.name])])
            if not isinstance(content, OSError):
                side.append(Piece(song.name, song.fingerprint, rescue(content)[0]))
    return sides


def drawn(choices: Sequence[int], *names: object) -> int:
    """One of the choices, by a hash of the names."""
    return choices[int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:4], "big") % len(choices)]


def copies(piece: Piece, keys: int) -> list[Score]:
    """The piece in so many keys: its own, and others up to a tritone away."""
    return [moved(piece.score, by) for by in document_moves(piece.name, keys)]


# --- switches that change the notes ----------------------------------------------------------------------


def _each(change: Callable[[Track], Track]) -> Callable[[Score], Score]:
    return lambda score: replace(score, tracks=tuple(map(change, score.tracks)))


def _coarser(score: Score, steps: int) -> Score:
    """Onsets and ends on a grid of so many steps to the beat."""
    beat = score.ticks_per_beat

    def change(track: Track) -> Track:
        onset, end = ((2 * steps * t + beat) // (2 * beat) for t in (track.onset, track.onset + track.duration))
        track = replace(track, onset=onset, duration=np.maximum(end - onset, 1), pedal=track.pedal * steps // beat)
        return track.select(np.lexsort((track.pitch, track.onset)))

    return replace(score, tracks=tuple(map(change, score.tracks)), ticks_per_beat=steps)


SWITCHES: dict[str, Callable[[Score], Score]] = {
    "no pedal": _each(lambda track: replace(track, pedal=NO_PEDAL)),
    "grid 12": lambda score: _coarser(score, 12),
    "8 velocity bins": _each(lambda track: replace(track, velocity=(track.velocity - 1) // 16 * 16 + 12)),
    "1 velocity bin": _each(lambda track: replace(track, velocity=np.full(len(track), 92))),
}


# --- text ------------------------------------------------------------------------------------------------


def write_documents(way: Way, score: Score) -> list[tuple[str, list[str]]]:
    """Header and lines of each document of a normalised score."""
    language = Language(way.encoding, way.layout)
    if way.switch in SWITCHES or not way.switch:
        documents = encode(score, language=language)
        return [(d.header, d.body.splitlines(keepends=True)) for d in documents]
    return [write_lines(score, way.switch)]


@dataclass
class Packed:
    """One side in tokens, as midigpt.sides.Side has it, and what the measure needs."""

    tokens: list[np.ndarray]
    docs: list[tuple[int, int]]
    times: list[np.ndarray]  # grid steps from the document's beginning to the line of each token
    places: list[np.ndarray]  # of each token in its line
    size: int = 0

    def add(self, tokens: np.ndarray, times: np.ndarray, places: np.ndarray, header: int) -> None:
        """A document's tokens, its start token first; the first `header` of them are given."""
        self.docs.append((self.size, self.size + header))
        self.tokens.append(tokens)
        self.times.append(times)
        self.places.append(places)
        self.size += len(tokens)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        return {
            f"{name}_tokens": np.concatenate(self.tokens).astype(np.uint16),
            f"{name}_docs": np.array(self.docs, np.int64),
            f"{name}_times": np.concatenate(self.times).astype(np.int32),
            f"{name}_places": np.concatenate(self.places).astype(np.int32),
        }


def pack_text(way: Way, sides: dict[str, list[tuple[str, Score]]]) -> tuple[dict[str, np.ndarray], Tokenizer]:
    """Documents of each side as tokens, by a BPE learned from the training side."""
    language = Language(way.encoding, way.layout)
    written = {
        side: [(name, *document) for name, score in pieces for document in write_documents(way, score)]
        for side, pieces in sides.items()
    }
    more = "'" if way.switch == "bars" else ""
    size = way.vocab_size or len(base_alphabet(language)) + len(more) + 1
    tokenizer = train_tokenizer([*_to_learn(written["train"], language)], size, language, more)
    written["train"] = [copy for document in written["train"] for copy in _in_keys(way, language, *document)]
    encode_lines = LineEncoder(tokenizer, language)
    arrays: dict[str, np.ndarray] = {}
    for side, documents in written.items():
        packed = Packed([], [], [], [])
        for name, header, lines in documents:
            header = drop_fields(header, name, side != "train", way.drop)
            tokens, lengths, steps = encode_lines([START, header, *lines])
            places = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            packed.add(tokens, np.repeat(np.cumsum(steps) - steps, lengths), places, int(lengths[:2].sum()))
        arrays |= packed.arrays(side)
    return arrays, tokenizer


def _in_keys(
    way: Way, language: Language, name: str, header: str, lines: list[str]
) -> Iterator[tuple[str, str, list[str]]]:
    """A training document in as many keys as the way has."""
    for by in document_moves(name, way.keys):
        header_there, *lines_there = in_key(header + "".join(lines), by, language).splitlines(keepends=True)
        yield f"{name} {by}" if by else name, header_there, lines_there


def _to_learn(documents: list[tuple[str, str, list[str]]], language: Language) -> Iterator[str]:
    """Documents with about LEARN_NOTES notes."""
    notes = 0
    for _, header, lines in documents:
        body = "".join(lines)
        yield header + body
        notes += language.module.count_notes(body)
        if notes > LEARN_NOTES:
            return


# --- MidiTok ---------------------------------------------------------------------------------------------


def pack_peer(way: Way, sides: dict[str, list[tuple[str, Score]]]) -> tuple[dict[str, np.ndarray], Any]:
    """The same by MidiTok's REMI or TSD: its grid, bins, lengths and pitches set to hold what ours hold.

    One stream for all programs. The tempo is not written. The meter, which our header gives, REMI writes in each bar.
    """
    import miditok
    import symusic

    config = miditok.TokenizerConfig(
        pitch_range=(0, 127),
        beat_res={(0, 16): GRID},  # longer notes are cut
        num_velocities=16,
        special_tokens=["PAD", "BOS", "EOS"],
        use_programs=way.layout == "song",
        one_token_stream_for_programs=True,
        use_time_signatures=way.encoding == "remi",
        use_rests=False,
        use_tempos=False,
        drums_pitch_range=(0, 127),
        use_pitchdrum_tokens=True,
    )
    tokenizer = {"remi": miditok.REMI, "tsd": miditok.TSD}[way.encoding](config)
    loudness = np.asarray(tokenizer.velocities, np.int64)

    def read(score: Score) -> Any:
        out = symusic.Score(GRID)
        out.tempos.append(symusic.Tempo(0, 120))
        out.time_signatures.append(symusic.TimeSignature(0, *score.meter))
        for track in score.tracks:
            part = symusic.Track("", track.program, track.is_drum)
            columns = (track.onset, track.duration, track.pitch, loudness[(track.velocity + 7) // 8 - 1])
            for onset, duration, pitch, velocity in zip(*(column.tolist() for column in columns), strict=True):
                part.notes.append(symusic.Note(onset, duration, pitch, velocity))
            out.tracks.append(part)
        return out

    written = {side: [(name, read(score)) for name, score in pieces] for side, pieces in sides.items()}
    if way.vocab_size:
        with TemporaryDirectory() as folder:  # what it learns from has to be files
            files = [Path(folder) / f"{number}.mid" for number in range(len(written["train"]))]
            for file, (_, score) in zip(files, written["train"], strict=True):
                score.dump_midi(file)
            tokenizer.train(way.vocab_size, files_paths=files)
    start = tokenizer["BOS_None"]
    arrays: dict[str, np.ndarray] = {}
    for side, pieces in written.items():
        packed = Packed([], [], [], [])
        for _, score in pieces:
            found = tokenizer(score)
            sequence = found if not isinstance(found, list) else found[0]
            ids = np.array([start, *sequence.ids])
            packed.add(ids, np.zeros(len(ids)), np.arange(len(ids)), 1)
        arrays |= packed.arrays(side)
    return arrays, tokenizer
