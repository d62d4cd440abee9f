"""MIDI files -> documents: each track of each indexed file becomes data/NAME_N.txt.

Documents are written under a temporary name and renamed, and a file's outcome is recorded after its last
document; a run begins by removing documents that the index does not know. So one that is interrupted at any
point, even by kill -9, is completed by the next.
"""

import hashlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from tqdm import tqdm

from midigpt import workers
from midigpt.files import UserError, printable
from midigpt.index import UNREADABLE, open_index
from midigpt.language import LANGUAGE, Document, LanguageError, encode
from midigpt.midi import read_midi
from midigpt.midi_bytes import MidiError

CRASHED = "crashed the reader"  # as the reason of a refusal
COMMIT_SECONDS = 1.0  # outcomes younger than this are lost by a kill, and made again
_DOCUMENT = re.compile(r".+_[1-9]\d*\.txt", re.DOTALL)


@dataclass(frozen=True)
class Job:
    path: str  # below raw_data
    name: str


@dataclass(frozen=True)
class Outcome:
    """What became of one file: documents, or the reason there are none."""

    tracks: int = 0
    notes: int = 0
    fingerprint: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Summary:
    """What a run did, and what there is now."""

    converted: int  # files, by this run
    removed: int  # files whose documents went because the MIDI file did
    left: int  # files still to be converted
    files: int  # converted in all
    documents: int
    notes: int
    refused: dict[str, str]  # path below raw_data/, for the terminal: reason


def make_dataset(root: Path, limit: int | None = None, processes: int = 1) -> Summary:
    """Convert what the index lists as new, at most `limit` files, and drop documents of files that are gone."""
    data = root / "data"
    with closing(open_index(root)) as index:
        shutil.rmtree(data / ".tmp", ignore_errors=True)
        (data / ".tmp").mkdir(parents=True)
        removed = _reconcile(index, data)
        new = index.execute("SELECT path, name FROM files WHERE state = 'new' ORDER BY name").fetchall()
        jobs = [Job(os.fsdecode(path), name) for path, name in new[:limit]]
        converted = 0
        convert = partial(convert_file, raw_data=root / "raw_data", data=data)
        for job, outcome in _recorded(index, workers.run(convert, jobs, processes), len(jobs)):
            if outcome.reason:
                _remove_documents(data, job.name)  # what a crash has left
            else:
                converted += 1
        totals = "SELECT count(*), total(tracks), total(notes) FROM files WHERE state = 'converted'"
        files, documents, notes = map(int, index.execute(totals).fetchone())
        refused = index.execute("SELECT path, reason FROM files WHERE state = 'refused' ORDER BY path").fetchall()
    (data / ".tmp").rmdir()
    named = {printable(os.fsdecode(path)): reason for path, reason in refused}
    return Summary(converted, removed, len(new) - len(jobs), files, documents, notes, named)


def _reconcile(index: sqlite3.Connection, data: Path) -> int:
    """Make data/ hold just the documents of converted files; returns how many files are gone.

    New again are files that were converted to another language or lack a document, and those that were
    refused for a reason that may have passed.
    """
    with index:
        gone = index.execute("DELETE FROM files WHERE state = 'removed'").rowcount
        index.execute(
            "UPDATE files SET state = 'new' WHERE state IN ('converted', 'refused') AND language != ?"
            " OR state = 'refused' AND (reason LIKE ? OR reason LIKE ?)",
            (LANGUAGE, f"{UNREADABLE}%", f"{CRASHED}%"),
        )
        there = {entry.name for entry in os.scandir(data)}
        expected: set[str] = set()
        lacking = []
        for name, tracks in index.execute("SELECT name, tracks FROM files WHERE state = 'converted'"):
            documents = {f"{name}_{number}.txt" for number in range(1, tracks + 1)}
            if documents <= there:
                expected |= documents
            else:
                lacking.append((name,))
        index.executemany("UPDATE files SET state = 'new' WHERE name = ?", lacking)
    for name in there - expected:
        if _DOCUMENT.fullmatch(name):
            (data / name).unlink()
    return gone


def _recorded(
    index: sqlite3.Connection, results: Iterator[tuple[Job, Outcome | workers.Died]], total: int
) -> Iterator[tuple[Job, Outcome]]:
    """Pass the results on, each written to the index; committed about once a second, and at the end."""
    committed = time.monotonic()
    try:
        for job, result in tqdm(results, total=total, desc="dataset", unit="file", disable=None):
            if isinstance(result, workers.Died):
                result = Outcome(reason=f"{CRASHED} ({result})")
            yield job, result
            index.execute(
                "UPDATE files SET state = ?, reason = ?, tracks = ?, notes = ?, fingerprint = ?, language = ?"
                " WHERE name = ?",
                (
                    "refused" if result.reason else "converted",
                    result.reason,
                    result.tracks,
                    result.notes,
                    result.fingerprint,
                    LANGUAGE,
                    job.name,
                ),
            )
            if time.monotonic() - committed > COMMIT_SECONDS:
                index.commit()
                committed = time.monotonic()
    finally:
        index.commit()


def convert_file(job: Job, raw_data: Path, data: Path) -> Outcome:
    """Write the documents of one MIDI file. Every fault of the file itself becomes a reason, not an error."""
    try:
        documents = encode(read_midi(raw_data / job.path))
    except (MidiError, LanguageError) as error:
        return Outcome(reason=str(error))
    except OSError as error:
        return Outcome(reason=f"{UNREADABLE} ({error.strerror})")
    try:
        for number, document in enumerate(documents, start=1):
            temporary = data / ".tmp" / f"{os.getpid()}.txt"
            temporary.write_bytes(document.text.encode("ascii"))
            temporary.replace(data / f"{job.name}_{number}.txt")
    except OSError as error:
        raise UserError(f"{data} can't be written ({error.strerror})") from None
    return Outcome(len(documents), sum(document.notes for document in documents), _fingerprint(documents))


def _remove_documents(data: Path, name: str) -> None:
    """Remove data/NAME_1.txt, data/NAME_2.txt and so on."""
    for number in count(1):
        try:
            (data / f"{name}_{number}.txt").unlink()
        except FileNotFoundError:
            break


def _fingerprint(documents: list[Document]) -> str:
    """A fingerprint of the music: the same for a copy, in whatever key, tempo or order of tracks."""
    bodies = sorted(document.body for document in documents)
    return hashlib.sha256("\n".join(bodies).encode()).hexdigest()[:16]
