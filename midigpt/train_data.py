"""Documents -> train.bin and val.bin, and from there to batches.

train/train.bin and train/val.bin are plain little-endian uint16 tokens without a header. Beside each lies
NAME.docs.npy, int64 of shape (D, 2): for each document the position of its start token and that of its
first token after the header. train/meta.json says what they were made from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from midigpt.documents import Split, is_drawn, read_songs
from midigpt.files import UserError, make, read_json, replacing, write_json
from midigpt.index import songs, totals
from midigpt.language import LANGUAGE, keep_fields, split_header
from midigpt.score import IntArray
from midigpt.tokenizer import DTYPE, LINES_AT_ONCE, START, LineEncoder, Tokens, load_tokenizer

DROP_FIELD = 0.25  # of the header's fields, so that a model can be asked with any subset of them


# --- packing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """What one side of the split holds."""

    songs: int
    documents: int
    tokens: int
    notes: int


def make_train_bin(root: Path, split: Split) -> tuple[Counts, Counts]:
    """Pack all documents as tokens; returns the counts of the training and of the validation side.

    The same documents, tokenizer and split give the same bytes. Raises UserError where something is missing
    or the tokenizer was learned with another split, and so from songs that would be held out.
    """
    tokenizer, tokenizer_meta = load_tokenizer(root)
    learned = Split(tokenizer_meta["val_fraction"], tokenizer_meta["seed"])
    if split != learned:
        flags = f"--val-fraction {split.val_fraction} --seed {split.seed}"
        raise UserError(
            f"the tokenizer was learned with --val-fraction {learned.val_fraction} --seed {learned.seed} and has seen"
            f' songs that would now be held out; learn it again with: make tokenizer ARGS="{flags}"'
        )
    folder = root / "train"
    encoder = LineEncoder(tokenizer)
    with _packer(folder, "train", encoder) as train, _packer(folder, "val", encoder) as val:
        everything = tqdm(songs(root), desc="train-bin", total=totals(root, 0)[0], unit="song", disable=None)
        for song, texts in read_songs(root, everything):
            side = val if split.is_val(song) else train
            side.songs += 1
            for number, text in enumerate(texts, start=1):
                header, body = split_header(text)
                side.add(_header(header, f"{song.name}_{number}", is_val=side is val), body)
        train.flush()
        val.flush()
        (folder / "meta.json").unlink(missing_ok=True)  # until the files it describes have their names
    counts = train.counts(), val.counts()
    write_json(
        folder / "meta.json",
        {
            "language": LANGUAGE,
            "tokenizer": tokenizer_meta["sha256"],
            "vocab_size": tokenizer.get_vocab_size(),
            **asdict(split),
            "train": asdict(counts[0]),
            "val": asdict(counts[1]),
        },
    )
    return counts


class _Packer:
    """Writes documents of one side. Nothing grows with their number: both files are written as it goes."""

    def __init__(self, encoder: LineEncoder, out: IO[bytes], docs: IO[bytes]) -> None:
        self._encoder, self._out, self._docs = encoder, out, docs
        self._lines: list[str] = []  # of documents to be encoded
        self._begins: list[int] = []  # where in these lines each document begins
        self.songs = self._documents = self._tokens = self._notes = 0
        self._write_docs_header()

    def add(self, header: str, body: str) -> None:
        self._begins.append(len(self._lines))
        self._lines += START, header, *body.splitlines(keepends=True)
        self._notes += body.count("|")
        if len(self._lines) >= LINES_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what was added so far."""
        tokens, lengths = self._encoder(self._lines)
        position = self._tokens + np.append(0, np.cumsum(lengths))  # of each line
        begins = np.array(self._begins, np.int64)
        self._out.write(tokens.tobytes())
        self._docs.write(np.stack([position[begins], position[begins + 2]], axis=1).astype("<i8").tobytes())
        self._tokens += len(tokens)
        self._documents += len(begins)
        self._lines, self._begins = [], []

    def finish(self) -> None:
        """Write what is left, and into the header of the list of documents how many they are."""
        self.flush()
        self._docs.seek(0)
        self._write_docs_header()

    def counts(self) -> Counts:
        return Counts(self.songs, self._documents, self._tokens, self._notes)

    def _write_docs_header(self) -> None:
        # Its length does not depend on the number: the format leaves room for an array to grow.
        header = {"descr": "<i8", "fortran_order": False, "shape": (self._documents, 2)}
        np.lib.format.write_array_header_1_0(self._docs, header)


@contextmanager
def _packer(folder: Path, name: str, encoder: LineEncoder) -> Iterator[_Packer]:
    with (
        replacing(folder / f"{name}.bin") as bin_path,
        replacing(folder / f"{name}.docs.npy") as docs_path,
        bin_path.open("wb") as out,
        docs_path.open("wb") as docs,
    ):
        packer = _Packer(encoder, out, docs)
        yield packer
        packer.finish()


def _header(header: str, document: str, is_val: bool) -> str:
    """A document's header as the model reads it.

    In training each field is dropped with probability DROP_FIELD, by a hash of document and field; held-out
    documents keep all but the key, which says nothing of the lines.
    """
    if is_val:
        return keep_fields(header, lambda name: name != "key")
    return keep_fields(header, lambda name: not is_drawn(f"{document} {name}", DROP_FIELD))


# --- reading ---------------------------------------------------------------------------------------------


def read_data(start: int, end: int, path: Path = Path("train/train.bin")) -> Tokens:
    """The tokens of [start, end) as an array of shape (end - start,), by memory map: nothing else is read.

    Raises IndexError where the range is not within the file, UserError where there is no such file.
    """
    tokens = open_tokens(path)
    if not 0 <= start <= end <= len(tokens):
        raise IndexError(f"[{start}, {end}) is not within the {len(tokens)} tokens of {path}")
    return tokens[start:end]


def open_tokens(path: Path) -> Tokens:
    """A .bin file as a read-only memory map, shape (N,)."""
    if not path.exists():
        raise UserError(f"{path} does not exist yet; make it with: {make(path.parents[1], 'train-bin')}")
    if path.stat().st_size == 0:
        return np.empty(0, DTYPE)
    return np.memmap(path, DTYPE, mode="r")


@dataclass(frozen=True)
class Side:
    """One side of the split, ready to read."""

    tokens: Tokens  # (N,)
    docs: IntArray  # (D, 2) start of the document, first token after its header; ascending
    notes: int


def load_side(root: Path, name: str) -> tuple[Side, dict[str, Any]]:
    """The "train" or "val" side, and meta.json. Raises UserError where files are missing or don't fit."""
    folder = root / "train"
    tokens = open_tokens(folder / f"{name}.bin")
    if not (folder / "meta.json").exists():
        raise UserError(f"{folder / 'meta.json'} is missing; make it again with: {make(root, 'train-bin')}")
    meta = read_json(folder / "meta.json")
    if meta["language"] != LANGUAGE:
        raise UserError(
            f"{folder / name}.bin is in another language; run: {make(root, 'dataset', 'tokenizer', 'train-bin')}"
        )
    docs_path = folder / f"{name}.docs.npy"
    docs = np.load(docs_path) if docs_path.exists() else np.empty((0, 2), np.int64)
    if (len(tokens), len(docs)) != (meta[name]["tokens"], meta[name]["documents"]):
        raise UserError(
            f"{folder / name}.bin is not what meta.json beside it describes; run: {make(root, 'train-bin')}"
        )
    return Side(tokens, docs, meta[name]["notes"]), meta


def _ends(side: Side) -> IntArray:
    """(D,) where each document ends."""
    return np.append(side.docs[:, 0], len(side.tokens))[1:]


def line_tokens(side: Side) -> Tokens:
    """The tokens that the measure counts: those of lines, without starts and headers."""
    mask = np.zeros(len(side.tokens) + 1, np.int64)
    np.add.at(mask, side.docs[:, 1], 1)
    np.add.at(mask, _ends(side), -1)
    return side.tokens[np.cumsum(mask[:-1]) > 0]


def evaluation_windows(side: Side, block_size: int) -> list[tuple[int, int, int]]:
    """Windows (start, end, counted) that read every document from its start and count every line token once.

    A window's inputs are tokens [start, end - 1), its targets [start + 1, end), of which those at or after
    `counted` count. Documents longer than a block go on in windows half a block further, so that a counted
    target has at least half a block before it. Ordered by length, so that batches need little padding.
    """
    windows = []
    for (start, counted), end in zip(side.docs.tolist(), _ends(side).tolist(), strict=True):
        while counted < end:
            stop = min(start + block_size + 1, end)
            if counted < stop:
                windows.append((start, stop, counted))
            start, counted = start + max(block_size // 2, 1), max(counted, stop)
    return sorted(windows, key=lambda window: (window[1] - window[0], window))


# --- batches ---------------------------------------------------------------------------------------------


class Batches:
    """Training batches as a pure function of the step.

    Each epoch puts the documents into a new order, end to end; the epochs follow one another in one endless
    stream, cut into windows without gap. So every token is a target exactly once an epoch, and nothing is
    thrown away.
    """

    def __init__(self, side: Side, batch_size: int, block_size: int, seed: int) -> None:
        self.side, self.batch_size, self.block_size, self.seed = side, batch_size, block_size, seed
        self._lengths = _ends(side) - side.docs[:, 0]
        self._epoch = -1  # of the order at hand

    def __call__(self, step: int) -> tuple[IntArray, IntArray]:
        """Inputs and targets of a step, each of shape (batch_size, block_size)."""
        window = self.batch_size * self.block_size
        stream = self._read(step * window, (step + 1) * window + 1)
        shape = self.batch_size, self.block_size
        return stream[:-1].reshape(shape), stream[1:].reshape(shape)

    def _read(self, start: int, end: int) -> IntArray:
        """Tokens [start, end) of the endless stream."""
        length = len(self.side.tokens)
        parts = []
        for epoch in range(start // length, (end - 1) // length + 1):
            self._arrange(epoch)
            at = np.arange(max(start - epoch * length, 0), min(end - epoch * length, length))
            place = np.searchsorted(self._begins, at, side="right") - 1  # which document of the epoch
            parts.append(self.side.tokens[self.side.docs[self._order[place], 0] + at - self._begins[place]])
        return np.concatenate(parts).astype(np.int64)

    def _arrange(self, epoch: int) -> None:
        """Set the epoch's order of documents, (D,), and where each begins in the epoch, (D,)."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.side.docs))
            lengths = self._lengths[self._order]
            self._begins = np.cumsum(lengths) - lengths
