"""The documents in data/: which there are, what they say, and which are held out of training."""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from midigpt.files import UserError
from midigpt.header import LanguageError
from midigpt.index import Song, data_folder, document_names, language_of, open_index, shard_name
from midigpt.language import Language, check_document
from midigpt.storage import Folder


def is_drawn(text: str, fraction: float) -> bool:
    """Whether a text is among the given fraction of all, by its hash: chance that is always the same."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


@dataclass(frozen=True)
class Split:
    """Which songs are held out: those whose hash with the seed falls into the fraction.

    The hash is of the music itself, and all versions of a song share one: so they stay on one side. Adding files
    moves no song, unless one of them is a new version of it: then that song may change sides, as a whole.
    Raises UserError for a fraction outside 0..1.
    """

    val_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"--val-fraction {self.val_fraction} is not in 0..1; 0.05 holds out a song in twenty")

    @classmethod
    def of(cls, meta: dict[str, Any]) -> "Split":
        """The one that train/meta.json, or that of the tokenizer, says."""
        return cls(meta["val_fraction"], meta["seed"])

    def is_val(self, song: Song) -> bool:
        return is_drawn(f"{self.seed} {song.fingerprint}", self.val_fraction)


def read_songs(root: Path, chosen: Iterable[Song]) -> Iterator[tuple[Song, list[str]]]:
    """The texts of songs, song by song in the order given, of each song in the order of its tracks.

    Every line of a text ends in a newline, also its last. Songs of one shard should follow one another: each
    change of shard reads a whole one. Raises UserError where a document or shard is gone, changed or in no
    language of ours.
    """
    with closing(open_index(root)) as index:
        data, language = data_folder(index, root, "data"), language_of(index)
        at_hand, shard = None, {}
        for song in chosen:
            if song.shard is None:
                yield song, _read_documents(data, song, language)
                continue
            if song.shard != at_hand:
                at_hand, shard = song.shard, _read_shard(index, data, song.shard)
            yield song, shard[song.name]


def _read_documents(data: Folder, song: Song, language: Language) -> list[str]:
    names = document_names(song.name, song.tracks, language.layout)
    texts = []
    for name, content in zip(names, data.read(names), strict=True):
        path = f"{data}/{name}"
        try:
            text = _bytes(content, path).decode("utf-8")
            check_document(text, language)
        except (UnicodeDecodeError, LanguageError) as error:
            again = "delete it and make it again with: make dataset"
            raise UserError(f"{path} is no document ({error}); {again}") from None
        texts.append(text if text.endswith("\n") else text + "\n")  # as an editor may leave it
    return texts


def _read_shard(index: sqlite3.Connection, data: Folder, number: int) -> dict[str, list[str]]:
    """The texts in a shard by the name of their song."""
    name = shard_name(number)
    content = _bytes(next(data.read([name])), f"{data}/{name}")
    documents, sha256 = index.execute("SELECT documents, sha256 FROM shards WHERE number = ?", (number,)).fetchone()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{data}/{name} is not what was written there; delete it and make it again with: make dataset")
    texts = iter(content.decode("utf-8").removesuffix("\n").split("\n\n"))
    rows = index.execute(
        "SELECT name, tracks FROM files WHERE shard = ? AND state = 'converted' ORDER BY name", (number,)
    ).fetchall()
    if sum(tracks for _, tracks in rows) != documents:  # a file of it has changed or gone since
        raise UserError(f"{data}/{name} is older than the index; make it again with: make dataset")
    return {song: [text + "\n" for text in islice(texts, tracks)] for song, tracks in rows}


def _bytes(content: bytes | OSError, path: str) -> bytes:
    if isinstance(content, FileNotFoundError):
        raise UserError(f"{path} is missing; make it again with: make dataset")
    if isinstance(content, OSError):
        raise UserError(f"{path} can't be read ({content.strerror or content})")
    return content
