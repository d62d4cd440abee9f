"""Documents -> train.bin and val.bin; midigpt/sides.py reads them.

train/train.bin and train/val.bin are plain little-endian uint16 tokens without a header. Beside each lie
NAME.positions.bin, as plain uint32 the position of each token in musical time (midigpt/positions.py), and
NAME.docs.npy, int64 of shape (D, 2): for each document the index of its start token and that of its first token after
the header. train/meta.json says what they were made from. train/copies.* are the index of the training songs in which
midigpt/copies.py looks passages up.
"""

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import count, groupby, islice
from pathlib import Path
from typing import IO

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from midigpt import copies, workers
from midigpt.bpe import START
from midigpt.copies import Passages, read_passages
from midigpt.documents import Split, is_drawn, read_songs
from midigpt.files import UserError, make, read_json, replacing, write_json
from midigpt.header import LanguageError, keep_fields, split_header
from midigpt.index import Song, language, songs, totals
from midigpt.language import Language, in_key, read_language
from midigpt.positions import POSITIONS_A_STEP, POSITIONS_DTYPE, line_positions
from midigpt.score import IntArray
from midigpt.tokenizer import DTYPE, LineEncoder, file_sha256, load_tokenizer, tokenizer_path

SONGS_AT_ONCE = 64
MOVES = tuple(range(-6, 6))  # from a document's own key to those in which it can be written
MOST_NOTES = 50_000_000  # in all keys together, which take about a gigabyte
DROP_FIELD = 0.25  # of the header's fields, so that a model can be asked with any subset of them


@dataclass(frozen=True)
class Counts:
    """What one side of the split holds."""

    songs: int
    documents: int
    notes: int
    tokens: int  # of all its documents, in each of its keys
    keys: int

    @property
    def tokens_per_note(self) -> float:
        return self.tokens / max(self.notes * self.keys, 1)


def make_train_bin(
    root: Path, split: Split, processes: int = 1, init_from: Path | None = None, keys: int | None = None
) -> tuple[Counts, Counts]:
    """Pack all documents as tokens; returns the counts of the training and of the validation side.

    The tokens are those of the working folder's tokenizer, or of the checkpoint `init_from`. Each training document is
    written in so many `keys` (midigpt.language.in_key), or as many as usual. The same documents, tokenizer and split
    give the same bytes. Raises UserError where something is missing or the working folder's tokenizer was learned with
    another split, and so from songs that would be held out, and for keys that can't be.
    """
    spoken = language(root)
    keys = _keys(keys, spoken, totals(root, most_notes=sys.maxsize)[1])
    path = init_from / "tokenizer.json" if init_from else tokenizer_path(root)
    tokenizer = _tokenizer_of(init_from, spoken, root) if init_from else _tokenizer_learned_with(root, split)
    sha256 = file_sha256(path)
    folder = root / "train"
    pack = partial(pack_songs, root=root, split=split, language=spoken, tokenizer_json=path, sha256=sha256, keys=keys)
    with (
        _writer(folder, "train", keys) as train,
        _writer(folder, "val", 1) as val,
        copies.writer(folder) as index,
        tqdm(desc="train-bin", total=totals(root, 0)[0], unit="song", disable=None) as bar,
    ):
        for packed in _in_order(_tasks(songs(root)), pack, processes):
            for side, some in zip((train, val), packed.sides, strict=True):
                side.add(some)
                bar.update(some.songs)
            index.add(packed.passages)
        (folder / "meta.json").unlink(missing_ok=True)  # until the files it describes have their names
    counts = train.counts(), val.counts()
    write_json(
        folder / "meta.json",
        {
            "language": str(spoken),
            "tokenizer": sha256,
            "vocab_size": tokenizer.get_vocab_size(),
            "positions_a_step": POSITIONS_A_STEP,
            **asdict(split),
            "train": asdict(counts[0]),
            "val": asdict(counts[1]),
            "programs": dict(sorted(index.programs.items())),  # in how many training songs each plays
            "bands": index.bands,  # what plays together in some of them
            "copies": {"blocks": index.blocks, "documents": index.documents},
        },
    )
    return counts


def _keys(wished: int | None, language: Language, notes: int) -> int:
    """In how many keys each training document is written, where all have so many notes.

    As many as there are MOVES, up to MOST_NOTES: it keeps a model from learning a folder by heart (docs/encodings.md).
    """
    if wished is None:
        return max(min(len(MOVES), MOST_NOTES // max(notes, 1)), 1) if language.has_keys else 1
    if not 1 <= wished <= len(MOVES):
        raise UserError(f"--keys {wished} is not in 1..{len(MOVES)}")
    if wished > 1 and not language.has_keys:
        raise UserError(f"--keys {wished}: the encoding {language.encoding} can't write a document in other keys")
    return wished


def learned_split(root: Path) -> Split:
    """The split with which the working folder's tokenizer was learned. Raises UserError where there is none."""
    return Split.of(load_tokenizer(root)[1])


def _tokenizer_learned_with(root: Path, split: Split) -> Tokenizer:
    tokenizer, meta = load_tokenizer(root)
    learned = Split.of(meta)
    if split != learned:
        flags = f"--val-fraction {split.val_fraction} --seed {split.seed}"
        raise UserError(
            f"the tokenizer was learned with --val-fraction {learned.val_fraction} --seed {learned.seed} and has seen"
            f' songs that would now be held out; learn it again with: make tokenizer ARGS="{flags}"'
        )
    return tokenizer


def _tokenizer_of(checkpoint: Path, spoken: Language, root: Path) -> Tokenizer:
    """A checkpoint's tokenizer. Raises UserError where its language is another than that of the documents."""
    path, run = checkpoint / "tokenizer.json", checkpoint / "run.json"
    if not path.exists() or not run.exists():
        raise UserError(f"{checkpoint} is not a checkpoint of midigpt; give a folder like train/runs/NAME/best")
    theirs = read_json(run)["language"]
    try:
        known = read_language(theirs)
    except LanguageError as error:
        raise UserError(f"{checkpoint} speaks another language: {error}") from None
    if known != spoken:
        again = f'{make(root, "dataset")} ARGS="--layout {known.layout} --encoding {known.encoding}"'
        raise UserError(f"{checkpoint} speaks {theirs!r}, but the documents are in another language; run: {again}")
    return Tokenizer.from_file(str(path))


@dataclass(frozen=True)
class Task:
    """Songs to pack together: some, or all of a shard."""

    number: int
    songs: tuple[Song, ...]


@dataclass(frozen=True)
class Packed:
    """Documents of one side as tokens."""

    songs: int
    notes: int
    tokens: bytes  # DTYPE
    positions: bytes  # POSITIONS_DTYPE
    docs: IntArray  # (D, 2) of each its start token, and the first after its header


@dataclass(frozen=True)
class Batch:
    """Some songs, packed."""

    sides: tuple[Packed, Packed]  # training and validation
    passages: Passages  # of the training side


def _tasks(chosen: Iterable[Song]) -> Iterator[Task]:
    number = count()
    for shard, some in groupby(chosen, key=lambda song: song.shard):
        most = SONGS_AT_ONCE if shard is None else None  # a shard can only be read whole: once, in one task
        while part := tuple(islice(some, most)):
            yield Task(next(number), part)


def _in_order(tasks: Iterable[Task], pack: Callable[[Task], list[Batch]], processes: int) -> Iterator[Batch]:
    """The results of tasks in their order, whoever is done first."""
    if processes == 1:
        for task in tasks:
            yield from pack(task)
        return
    early: dict[int, list[Batch]] = {}
    due = 0
    for task, result in workers.run(pack, tasks, processes):
        if isinstance(result, workers.Died):
            raise UserError(f"a worker died while it packed songs ({result}); try fewer: --workers 1")
        early[task.number] = result
        while due in early:
            yield from early.pop(due)
            due += 1


def pack_songs(
    task: Task, root: Path, split: Split, language: Language, tokenizer_json: Path, sha256: str, keys: int
) -> list[Batch]:
    """Both sides of a task's songs, a few songs at a time.

    A process remembers the lines it has encoded.
    """
    if multiprocessing.parent_process():
        os.environ["RAYON_NUM_THREADS"] = "1"  # the other cores have workers of their own
    encode = _encoder(tokenizer_json, sha256, language)
    coming = read_songs(root, task.songs)
    packed = []
    at_once = max(SONGS_AT_ONCE // keys, 1)  # lines take far more memory than their tokens
    while some := list(islice(coming, at_once)):
        packed.append(_pack(some, encode, split, language, keys))
    return packed


def _pack(
    some: list[tuple[Song, list[str]]], encode: LineEncoder, split: Split, language: Language, keys: int
) -> Batch:
    lines: tuple[list[str], list[str]] = [], []
    begins: tuple[list[int], list[int]] = [], []  # where in these lines each document begins
    songs_of, notes = [0, 0], [0, 0]
    training: list[tuple[str, list[str]]] = []
    for song, texts in some:
        side = int(split.is_val(song))
        songs_of[side] += 1
        training += [] if side else [(song.name, texts)]
        for number, text in enumerate(texts, start=1):
            name = f"{song.name}_{number}"
            for move in (0,) if side else document_moves(name, keys):
                header, body = split_header(in_key(text, move, language))
                begins[side].append(len(lines[side]))
                header = drop_fields(header, f"{name} {move}" if move else name, is_val=side == 1)
                lines[side].extend((START, header, *body.splitlines(keepends=True)))
            notes[side] += language.module.count_notes(split_header(text)[1])
    packed = []
    for side in (0, 1):
        tokens, lengths, steps = encode(lines[side])
        at = np.append(0, np.cumsum(lengths))  # of each line
        first = np.array(begins[side], np.int64)  # of each document
        time = np.cumsum(steps) - steps
        time -= np.repeat(time[first], np.diff(first, append=len(time)))
        where = line_positions(time, lengths).astype(POSITIONS_DTYPE)
        docs = np.stack([at[first], at[first + 2]], axis=1)
        packed.append(Packed(songs_of[side], notes[side], tokens.tobytes(), where.tobytes(), docs))
    try:
        return Batch((packed[0], packed[1]), read_passages(training, language))
    except LanguageError as error:
        names = f"{training[0][0]} to {training[-1][0]}"
        raise UserError(f"one of the documents from {names} is none ({error}); delete it and make it again") from None


@lru_cache(maxsize=1)
def _encoder(path: Path, sha256: str, language: Language) -> LineEncoder:
    return LineEncoder(Tokenizer.from_file(str(path)), language)


class _Writer:
    """Writes one side. Nothing grows with the number of documents: all files are written as they come."""

    def __init__(self, out: IO[bytes], positions: IO[bytes], docs: IO[bytes], keys: int) -> None:
        self._out, self._positions, self._docs, self._keys = out, positions, docs, keys
        self._songs = self._documents = self._tokens = self._notes = 0
        self._write_docs_header()

    def add(self, some: Packed) -> None:
        self._out.write(some.tokens)
        self._positions.write(some.positions)
        self._docs.write((some.docs + self._tokens).astype("<i8").tobytes())
        self._songs += some.songs
        self._documents += len(some.docs)
        self._tokens += len(some.tokens) // DTYPE.itemsize
        self._notes += some.notes

    def finish(self) -> None:
        """Write into the header of the list of documents how many they are."""
        self._docs.seek(0)
        self._write_docs_header()

    def counts(self) -> Counts:
        return Counts(self._songs, self._documents // self._keys, self._notes, self._tokens, self._keys)

    def _write_docs_header(self) -> None:
        # Its length does not depend on the number: the format leaves room for an array to grow.
        header = {"descr": "<i8", "fortran_order": False, "shape": (self._documents, 2)}
        np.lib.format.write_array_header_1_0(self._docs, header)


@contextmanager
def _writer(folder: Path, name: str, keys: int) -> Iterator[_Writer]:
    with (
        replacing(folder / f"{name}.bin") as bin_path,
        replacing(folder / f"{name}.positions.bin") as positions_path,
        replacing(folder / f"{name}.docs.npy") as docs_path,
        bin_path.open("wb") as out,
        positions_path.open("wb") as where,
        docs_path.open("wb") as docs,
    ):
        writer = _Writer(out, where, docs, keys)
        yield writer
        writer.finish()


def document_moves(document: str, keys: int) -> list[int]:
    """Which MOVES a training document is written with: none, and others by a hash of its name."""
    others = [move for move in MOVES if move]
    others.sort(key=lambda move: hashlib.sha256(f"{document} {move}".encode()).digest())
    return [0, *others[: keys - 1]]


def drop_fields(header: str, document: str, is_val: bool, probability: float = DROP_FIELD) -> str:
    """A document's header as the model reads it.

    In training each field is dropped with the probability, by a hash of document and field; held-out documents keep
    all but the key, which says what is not in the lines.
    """
    if is_val:
        return keep_fields(header, lambda name: name != "key")
    return keep_fields(header, lambda name: not is_drawn(f"{document} {name}", probability))
