"""train.bin and val.bin, the two sides of the split, as midigpt/train_data.py has written them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigpt.files import UserError, make, read_json
from midigpt.header import LanguageError
from midigpt.language import TRACKS, Language, read_language
from midigpt.positions import POSITIONS_A_STEP, POSITIONS_DTYPE, Positions
from midigpt.score import IntArray
from midigpt.tokenizer import DTYPE, Tokens


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
    return _open(path, DTYPE)


def _open(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not path.exists():
        raise UserError(f"{path} does not exist yet; make it with: {make(path.parents[1], 'train-bin')}")
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="c")  # copy on write: what torch takes without complaint; nobody writes


@dataclass(frozen=True)
class Side:
    """One side of the split, ready to read."""

    tokens: Tokens  # (N,)
    positions: Positions  # (N,) in musical time
    docs: IntArray  # (D, 2) start of the document, first token after its header; ascending, each in its own key first
    notes: int  # in one key
    language: Language = TRACKS
    keys: int = 1  # in which each document is written

    @property
    def epoch_tokens(self) -> int:
        """So many are an epoch: all the music, in one key of each piece."""
        return len(self.tokens) // self.keys

    @property
    def ends(self) -> IntArray:
        """(D,) where each document ends."""
        return np.append(self.docs[:, 0], len(self.tokens))[1:]


def load_side(root: Path, name: str) -> tuple[Side, dict[str, Any]]:
    """The "train" or "val" side, and meta.json. Raises UserError where files are missing or don't fit."""
    folder = root / "train"
    tokens = open_tokens(folder / f"{name}.bin")
    where = _open(folder / f"{name}.positions.bin", POSITIONS_DTYPE)
    if not (folder / "meta.json").exists():
        raise UserError(f"{folder / 'meta.json'} is missing; make it again with: {make(root, 'train-bin')}")
    meta = read_json(folder / "meta.json")
    try:
        spoken = read_language(meta["language"])
    except LanguageError as error:
        again = make(root, "dataset", "tokenizer", "train-bin")
        raise UserError(f"{folder / name}.bin is in another language: {error}; run: {again}") from None
    docs_path = folder / f"{name}.docs.npy"
    docs = np.load(docs_path) if docs_path.exists() else np.empty((0, 2), np.int64)
    found = len(tokens), len(where), len(docs), POSITIONS_A_STEP
    keys = meta[name].get("keys", 1)  # what an older version wrote says nothing
    if found != (*[meta[name]["tokens"]] * 2, meta[name]["documents"] * keys, meta.get("positions_a_step")):
        raise UserError(
            f"{folder / name}.bin is not what meta.json beside it describes; run: {make(root, 'train-bin')}"
        )
    return Side(tokens, where, docs, meta[name]["notes"], spoken, keys), meta


def line_tokens(side: Side) -> Tokens:
    """The tokens that the measure counts: those of lines, without starts and headers, in each document's own key."""
    of_documents = zip(side.docs[:: side.keys, 1].tolist(), side.ends[:: side.keys].tolist(), strict=True)
    return np.concatenate([side.tokens[:0], *(side.tokens[first:end] for first, end in of_documents)])
