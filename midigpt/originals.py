"""Which converted files are the same song, and which of them are left out because another has their music."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from midigpt.duplicates import Print, clusters, share_within
from midigpt.index import set_setting, setting

Dedupe = Literal["off", "exact", "music"]

DUPLICATE_SHARE = 0.5  # of a file's music that must be in another for it to be left out


def mark_duplicates(index: sqlite3.Connection, dedupe: Dedupe) -> None:
    """Name the song of every file, and the file that is used in place of each duplicate.

    All files with some of the same music are one song, whether or not duplicates are left out: so they are on one
    side of every split. A duplicate is a file most of which is in another that is kept, which has at least as
    many notes; so an arrangement of its own stays, and no music is lost.

    Does nothing where neither the files nor what is wanted have changed: a file that is new or changed has no
    song, and one that is no longer there, or refused now, is missing from the number of them.
    """
    converted = "FROM files WHERE state = 'converted'"
    (count, marked) = index.execute(f"SELECT count(*), count(song) {converted}").fetchone()
    done = f"{dedupe} {count}"
    if count == marked and setting(index, "dedupe") == done:
        return
    query = "SELECT name, notes, exact, music, grams FROM files JOIN prints USING (name) WHERE state = 'converted'"
    rows = index.execute(f"{query} ORDER BY name").fetchall()
    files = [_Music(row[0], row[1], row[2], row[3], np.frombuffer(row[4], np.uint32)) for row in rows]
    songs: dict[int, list[_Music]] = {}
    same_music = clusters([file.grams for file in files]).label.tolist()
    for file, label in zip(files, _joined([file.music for file in files], same_music), strict=True):
        songs.setdefault(label, []).append(file)
    marks: list[tuple[str, str | None, str]] = []
    for song in songs.values():
        name = min(file.music for file in song)
        kept: list[_Music] = []
        by_hash: dict[str, str] = {}  # the name of the kept file
        for file in sorted(song, key=lambda file: (-file.notes, file.name)):
            original = None
            if dedupe != "off":
                original = by_hash.get(file.exact if dedupe == "exact" else file.music)
            if dedupe == "music" and original is None:
                original = next((other.name for other in kept if _is_within(file, other)), None)
            if original is None:
                kept.append(file)
            by_hash.setdefault(file.exact if dedupe == "exact" else file.music, original or file.name)
            marks.append((name, original, file.name))
    with index:
        index.executemany("UPDATE files SET song = ?, duplicate_of = ? WHERE name = ?", marks)
        set_setting(index, "dedupe", done)


@dataclass(frozen=True)
class _Music:
    """What tells a converted file's music from another's."""

    name: str
    notes: int
    exact: str
    music: str
    grams: Print


def _is_within(file: _Music, other: _Music) -> bool:
    return share_within(file.grams, other.grams) >= DUPLICATE_SHARE


def _joined(keys: Sequence[str], labels: Sequence[int]) -> list[int]:
    """Cluster labels after joining the clusters that have a key in common."""
    parent = {label: label for label in labels}

    def top(label: int) -> int:
        while parent[label] != label:
            parent[label] = label = parent[parent[label]]
        return label

    first: dict[str, int] = {}
    for key, label in zip(keys, labels, strict=True):
        parent[top(label)] = top(first.setdefault(key, label))
    return [top(label) for label in labels]
