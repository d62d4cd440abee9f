"""MIDI files -> documents: each track of each indexed file becomes data/NAME_N.txt.

The data folder is always a function of the index and of raw_data/: documents are written under a temporary
name and renamed, N ascending, and a file's outcome is recorded after its last document. So a run that is
interrupted at any point, even by kill -9, is completed by the next one.
"""

import hashlib
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from midigpt import workers
from midigpt.files import UserError
from midigpt.index import open_index
from midigpt.language import LANGUAGE, Document, encode
from midigpt.midi import MidiError, read_midi

COMMIT_SECONDS = 1.0  # outcomes younger than this are lost by a kill, and made again


@dataclass(frozen=True)
class Job:
    path: str  # below raw_data
    name: str


@dataclass(frozen=True)
class Outcome:
    """What became of one file: documents, or the reason there are none."""

    tracks: int = 0
    notes: int = 0
    song: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Summary:
    converted: int
    documents: int
    notes: int
    refused: Counter[str]  # files by reason
    removed: int  # files whose documents went because the MIDI file did
    left: int  # files still to be converted


def make_dataset(root: Path, limit: int | None = None, processes: int = 1) -> Summary:
    """Convert what the index lists as new, at most `limit` files, and drop documents of files that are gone."""
    data = root / "data"
    data.mkdir(exist_ok=True)
    shutil.rmtree(data / ".tmp", ignore_errors=True)
    (data / ".tmp").mkdir()
    with closing(open_index(root)) as index:
        removed = _reconcile(index, data)
        new = index.execute("SELECT path, name FROM files WHERE state = 'new' ORDER BY name").fetchall()
        jobs = [Job(os.fsdecode(path), name) for path, name in new[:limit]]
        done, refused = [], Counter[str]()
        convert = partial(convert_file, raw_data=root / "raw_data", data=data)
        for job, outcome in _recorded(index, workers.run(convert, jobs, processes), len(jobs)):
            if outcome.reason:
                _remove_documents(data, job.name)  # of an earlier, interrupted conversion
                refused[outcome.reason] += 1
            else:
                done.append(outcome)
    (data / ".tmp").rmdir()
    return Summary(
        converted=len(done),
        documents=sum(outcome.tracks for outcome in done),
        notes=sum(outcome.notes for outcome in done),
        refused=refused,
        removed=removed,
        left=len(new) - len(jobs),
    )


def _reconcile(index: sqlite3.Connection, data: Path) -> int:
    """Forget removed files with their documents; mark as new what another language wrote or somebody deleted."""
    with index:
        gone = index.execute("SELECT name FROM files WHERE state = 'removed'").fetchall()
        for (name,) in gone:
            _remove_documents(data, name)
        index.execute("DELETE FROM files WHERE state = 'removed'")
        index.execute(
            "UPDATE files SET state = 'new', reason = NULL WHERE language != ? AND state IN ('converted', 'refused')",
            (LANGUAGE,),
        )
        there = {entry.name for entry in os.scandir(data)}
        rows = index.execute("SELECT name, tracks FROM files WHERE state = 'converted'").fetchall()
        lacking = [
            (name,) for name, tracks in rows if not all(f"{name}_{n}.txt" in there for n in range(1, tracks + 1))
        ]
        index.executemany("UPDATE files SET state = 'new' WHERE name = ?", lacking)
    return len(gone)


def _recorded(
    index: sqlite3.Connection, results: Iterator[tuple[Job, Outcome | workers.Died]], total: int
) -> Iterator[tuple[Job, Outcome]]:
    """Pass the results on, each written to the index; committed about once a second, and at the end."""
    committed = time.monotonic()
    try:
        for job, result in tqdm(results, total=total, desc="dataset", unit="file", disable=None):
            if isinstance(result, workers.Died):
                result = Outcome(reason=f"crashed the reader ({result})")
            yield job, result
            index.execute(
                "UPDATE files SET state = ?, reason = ?, tracks = ?, notes = ?, song = ?, language = ? WHERE name = ?",
                (
                    "refused" if result.reason else "converted",
                    result.reason,
                    result.tracks,
                    result.notes,
                    result.song,
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
    except MidiError as error:
        return Outcome(reason=str(error))
    except OSError as error:
        return Outcome(reason=f"can't be read ({error.strerror})")
    try:
        for number, document in enumerate(documents, start=1):
            temporary = data / ".tmp" / f"{os.getpid()}.txt"
            temporary.write_bytes(document.text.encode("ascii"))
            temporary.replace(data / f"{job.name}_{number}.txt")
    except OSError as error:
        raise UserError(f"{data} can't be written ({error.strerror})") from None
    _remove_documents(data, job.name, after=len(documents))
    return Outcome(len(documents), sum(document.notes for document in documents), _song(documents))


def _remove_documents(data: Path, name: str, after: int = 0) -> None:
    """Remove data/NAME_N.txt for all N > after; the last first, so that an interruption leaves no gap."""
    last = after
    while (data / f"{name}_{last + 1}.txt").exists():
        last += 1
    for number in range(last, after, -1):
        with suppress(FileNotFoundError):
            (data / f"{name}_{number}.txt").unlink()


def _song(documents: list[Document]) -> str:
    """A fingerprint of the music: the same for a copy, in whatever key, tempo or order of tracks."""
    bodies = sorted(document.body for document in documents)
    return hashlib.sha256("\n".join(bodies).encode()).hexdigest()[:16]
