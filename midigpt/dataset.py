"""Indexed MIDI files -> documents in data/, by any number of processes or machines.

Files are written under a temporary name and renamed, and a chunk's outcomes are recorded after its last
document; a run begins by removing what the index does not know. So one that is interrupted at any point, even
by kill -9, is completed by the next, with the same bytes.
"""

import json
import os
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from midigpt import executors
from midigpt.convert import TOO_LARGE, Chunk, Job, Outcome, Result, convert_chunk
from midigpt.executors import Executor
from midigpt.files import UserError, printable
from midigpt.filters import Filters
from midigpt.index import data_folder, document_names, language_of, open_index, set_setting, setting, shard_name
from midigpt.language import Language
from midigpt.normal import Layout
from midigpt.originals import Dedupe, mark_duplicates
from midigpt.storage import UNREADABLE, Folder
from midigpt.workers import Died

CHUNK_FILES = 16  # to a task, where each document is a file
CRASHED = "crashed the reader"  # as the reason of a refusal; it may pass
TOO_SLOW = "takes more than"  # too, with another limit
COMMIT_SECONDS = 1.0  # outcomes younger than this are lost by a kill, and made again
MANIFEST = "manifest.json"
_DOCUMENT = re.compile(r".*_[1-9]\d*\.txt|shard-\d+\.txt|manifest\.json", re.DOTALL)
_BEGINNINGS = (b"# program=", b"# tempo=", b'{\n  "recipe"')  # of a document, or a shard; of a manifest


@dataclass(frozen=True)
class Options:
    """What to make of the index, and how."""

    limit: int | None = None  # files to convert at most
    data: str = ""  # another place for data, a path or URL, to be remembered
    layout: Layout | None = None  # of the documents, and their encoding, to be remembered; as before, else as usual
    encoding: str | None = None
    shards: bool = False
    shard_files: int = 500  # to a new shard, which is a task
    dedupe: Dedupe = "music"
    filters: Filters = field(default_factory=Filters)
    executor: Executor = field(default_factory=Executor)
    time_limit: float = 0  # seconds a file may take; 0 is no limit


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
    filtered: int  # files left out by the filters
    rescued: int  # damaged files among the converted
    duplicates: int  # files that are left out because another has their music
    songs: int  # clusters of files with the same music
    before: dict[str, str]  # of language and filters of the last time, those that were others


DEFAULT = Options()


def make_dataset(root: Path, options: Options = DEFAULT) -> Summary:
    """Convert what the index lists as new, drop the documents of files that are gone, and mark the duplicates."""
    with closing(open_index(root)) as index:
        data, is_sharded = _place(index, root, options)
        raw_data = data_folder(index, root, "raw_data")
        language, before = _settle(index, options)
        with data.being_written():
            removed = _reconcile(index, raw_data, data, options, language, is_sharded)
            new = index.execute("SELECT rowid, shard FROM files WHERE state = 'new' ORDER BY name").fetchall()
            new = new[: options.limit]
            if is_sharded:
                chunks = list(_shard_chunks(index, _assign_shards(index, new, options.shard_files)))
            else:
                chunks = list(_chunks(index, [rowid for rowid, _ in new]))
            convert = partial(
                convert_chunk,
                raw_data=raw_data.absolute(),
                data=data.absolute(),
                filters=options.filters,
                language=language,
                time_limit=options.time_limit if options.executor.kind != "serial" else 0,
            )
            converted = _run(index, convert, options, _recipe(options, language), chunks)
            mark_duplicates(index, options.dedupe)
            if is_sharded:
                _write_manifest(index, data, _recipe(options, language))
        return _summary(index, converted, removed, before)


def _settle(index: sqlite3.Connection, options: Options) -> tuple[Language, dict[str, str]]:
    """The language that documents are to be in, as asked for now, else as before, and what the last time's options
    were where they were others; what it is now is remembered."""
    spoken = language_of(index)
    last = {"encoding": spoken.encoding, "layout": spoken.layout, "filters": setting(index, "filters")}
    asked = {"encoding": options.encoding, "layout": options.layout, "filters": str(options.filters)}
    now = {key: last[key] if value is None else value for key, value in asked.items()}
    language = Language(now["encoding"], "song" if now["layout"] == "song" else "track")
    with index:
        for key, value in now.items():
            set_setting(index, key, value)
    is_begun = index.execute("SELECT 1 FROM files WHERE recipe IS NOT NULL").fetchone()
    return language, {key: value for key, value in last.items() if is_begun and value != now[key]}


def _place(index: sqlite3.Connection, root: Path, options: Options) -> tuple[Folder, bool]:
    """Where data is, and whether it is in shards: as asked for now, else as before; in a store it always is.

    At a new place everything is made anew; what is at the old one is left there.
    """
    with index:
        before = data_folder(index, root, "data")
        data = Folder(options.data).absolute() if options.data else before
        if data != before.absolute() and options.data:
            _check_strangers(index, data)
            set_setting(index, "data", data.location)
            set_setting(index, f"data {before.absolute()}", "used")
            index.execute("UPDATE files SET state = 'new' WHERE state = 'converted'")
            index.execute("DELETE FROM shards")
        if options.shards or data.is_remote:
            set_setting(index, "shards", "yes")
    return data, setting(index, "shards") == "yes"


def _check_strangers(index: sqlite3.Connection, data: Folder) -> None:
    """Raises UserError if files that might be somebody's would be taken for old documents and removed."""
    there = data.names()  # of a place of ours, too: nothing changes if it can't be listed
    if setting(index, f"data {data}") == "used":  # then shards and manifest are old ones of this index
        return
    known = {row[0] for row in index.execute("SELECT name FROM files")}
    for name in sorted(there):
        if _DOCUMENT.fullmatch(name) and known.isdisjoint((name.rpartition("_")[0], name.removesuffix(".txt"))):
            raise UserError(f"{data} is not empty: {name} would be removed, as documents are; choose a folder for data")


# --- what is to be done ----------------------------------------------------------------------------------


def _reconcile(
    index: sqlite3.Connection,
    raw_data: Folder,
    data: Folder,
    options: Options,
    language: Language,
    is_sharded: bool,
) -> int:
    """Make data/ hold just the documents of converted files; returns how many files are gone.

    New again are files that were converted to another language or by other filters or lack a document, those
    that were refused for a reason that has passed, and all files of a shard that is to be written anew.
    Raises UserError where a file of somebody else's has the name of a document.
    """
    with index:  # the index forgets a file when its documents are gone
        names = {row[0] for row in index.execute("SELECT name FROM files")}
        index.execute("DELETE FROM shards WHERE number IN (SELECT shard FROM files WHERE state = 'removed')")
        index.execute("DELETE FROM prints WHERE name IN (SELECT name FROM files WHERE state = 'removed')")
        gone = index.execute("DELETE FROM files WHERE state = 'removed'").rowcount
        index.execute(
            "UPDATE files SET state = 'new' WHERE state IN ('converted', 'refused', 'filtered') AND recipe != ?",
            (_recipe(options, language),),
        )
        _try_again(index, raw_data, options)
        there = data.names()
        if is_sharded:
            expected = _reconcile_shards(index, there)
        else:
            expected = _reconcile_files(index, there, language.layout)
        for name in there - expected:
            is_of_song = name.endswith(".txt") and name.removesuffix(".txt") in names
            if not is_of_song and not _DOCUMENT.fullmatch(name):
                continue
            if _is_ours(next(data.read([name]))):
                data.remove(name)
            elif is_of_song and language.is_song and not is_sharded:
                raise UserError(f"{data}/{name} is no document, and one is to have its name; put it somewhere else")
    return gone


def _is_ours(content: bytes | OSError) -> bool:
    """Whether a file that bears a document's name begins like one, or like a shard or manifest."""
    return isinstance(content, bytes) and content.startswith(_BEGINNINGS)


def _try_again(index: sqlite3.Connection, raw_data: Folder, options: Options) -> None:
    """New again are refused files that can be read now, and, with other limits, those that broke a worker."""
    refused = "state = 'refused' AND reason LIKE ?"
    paths = [row[0] for row in index.execute(f"SELECT path FROM files WHERE {refused}", (f"{UNREADABLE}%",))]
    for path, content in zip(paths, raw_data.read([os.fsdecode(path) for path in paths]), strict=True):
        if isinstance(content, bytes):
            index.execute("UPDATE files SET state = 'new' WHERE path = ?", (path,))
    limits = f"{options.time_limit:g} s, {options.executor.memory_limit:g} GB"
    if setting(index, "limits") != limits:
        for reason in (CRASHED, TOO_LARGE, TOO_SLOW):
            index.execute(f"UPDATE files SET state = 'new' WHERE {refused}", (f"{reason}%",))
        set_setting(index, "limits", limits)


def _reconcile_files(index: sqlite3.Connection, there: set[str], layout: Layout) -> set[str]:
    """The documents there should be."""
    expected: set[str] = set()
    lacking = []
    for name, tracks in index.execute("SELECT name, tracks FROM files WHERE state = 'converted'"):
        documents = set(document_names(name, tracks, layout))
        if documents <= there:
            expected |= documents
        else:
            lacking.append((name,))
    index.executemany("UPDATE files SET state = 'new' WHERE name = ?", lacking)
    return expected


def _reconcile_shards(index: sqlite3.Connection, there: set[str]) -> set[str]:
    """The shards there should be; a shard's files are new all together or not at all."""
    index.execute("UPDATE files SET state = 'new' WHERE state = 'converted' AND shard IS NULL")
    dirty = "SELECT shard FROM files WHERE state = 'new' AND shard IS NOT NULL"
    rows = index.execute(f"SELECT number, songs FROM shards WHERE number NOT IN ({dirty})").fetchall()
    whole = {number for number, songs in rows if not songs or shard_name(number) in there}
    for (number,) in index.execute("SELECT DISTINCT shard FROM files WHERE shard IS NOT NULL").fetchall():
        if number not in whole:
            index.execute("UPDATE files SET state = 'new' WHERE shard = ?", (number,))
            index.execute("DELETE FROM shards WHERE number = ?", (number,))
    return {shard_name(number) for number, songs in rows if songs and number in whole} | {MANIFEST}


def _assign_shards(index: sqlite3.Connection, new: list[tuple[int, int | None]], size: int) -> set[int]:
    """Give new files, (rowid, shard), that have none a shard, once and for all: every later run makes the same ones.

    Returns the shards that the files are in.
    """
    shards = {shard for _, shard in new if shard is not None}
    fresh = [rowid for rowid, shard in new if shard is None]
    with index:
        (last,) = index.execute("SELECT coalesce(max(shard), 0) FROM files").fetchone()
        for number, some in enumerate(_slices(fresh, size), start=last + 1):
            index.executemany("UPDATE files SET shard = ? WHERE rowid = ?", [(number, i) for i in some])
            shards.add(number)
    return shards


def _slices(ids: list[int], size: int) -> Iterator[list[int]]:
    return (ids[at : at + size] for at in range(0, len(ids), size))


def _chunks(index: sqlite3.Connection, ids: list[int]) -> Iterator[Chunk]:
    for some in _slices(ids, CHUNK_FILES):
        marks = ",".join("?" * len(some))
        rows = index.execute(f"SELECT path, name FROM files WHERE rowid IN ({marks}) ORDER BY name", some)
        yield Chunk(tuple(Job(os.fsdecode(path), name) for path, name in rows))


def _shard_chunks(index: sqlite3.Connection, shards: set[int]) -> Iterator[Chunk]:
    for number in sorted(shards):
        rows = index.execute("SELECT path, name FROM files WHERE shard = ? ORDER BY name", (number,))
        yield Chunk(tuple(Job(os.fsdecode(path), name) for path, name in rows), shard_name(number))


def _recipe(options: Options, language: Language) -> str:
    return f"{language} {options.filters}".strip()


# --- doing it --------------------------------------------------------------------------------------------


def _run(
    index: sqlite3.Connection,
    convert: Callable[[Chunk], Result],
    options: Options,
    recipe: str,
    chunks: list[Chunk],
) -> int:
    """Convert chunks and record what became of their files; returns how many were converted.

    A chunk whose worker dies is taken apart: its files are tried one by one, the guilty ones are refused, and a
    shard is then made of the others.
    """
    converted = 0
    with tqdm(total=sum(len(chunk.jobs) for chunk in chunks), desc="dataset", unit="file", disable=None) as bar:

        def convert_all(chunks: list[Chunk], are_suspect: bool = False) -> list[tuple[Chunk, Died]]:
            """Gives those that killed their workers. Commits about once a second, and at the end."""
            nonlocal converted
            lost = []
            committed = time.monotonic()
            try:
                for chunk, result in executors.run(options.executor, convert, chunks, are_suspect):
                    if isinstance(result, Died):
                        lost.append((chunk, result))
                    elif not chunk.is_probe:
                        _record(index, recipe, chunk, result)
                        converted += sum(outcome.state == "converted" for outcome in result.outcomes)
                        bar.update(len(chunk.jobs))
                    if time.monotonic() - committed > COMMIT_SECONDS:
                        index.commit()
                        committed = time.monotonic()
            finally:
                index.commit()
            return lost

        lost = [chunk for chunk, _ in convert_all(chunks)]
        singles = [Chunk((job,), is_probe=chunk.shard is not None) for chunk in lost for job in chunk.jobs]
        guilty = set()
        for single, died in convert_all(singles, are_suspect=True):
            guilty.add(single.jobs[0])
            _record(index, recipe, single, Result([Outcome("refused", _death(died, options.time_limit))]))
            bar.update()
        index.commit()
        innocent = [
            (tuple(job for job in chunk.jobs if job not in guilty), chunk.shard) for chunk in lost if chunk.shard
        ]
        for chunk in (chunk for chunk in lost if chunk.shard and guilty.issuperset(chunk.jobs)):
            _record(index, recipe, Chunk((), chunk.shard), Result([]))
        for chunk, died in convert_all([Chunk(jobs, shard) for jobs, shard in innocent if jobs]):
            raise UserError(f"{chunk.shard} can't be made: its worker died again ({died}); run the same command again")
    return converted


def _death(died: Died, time_limit: float) -> str:
    if died.exit_code == -signal.SIGALRM:
        return _too_slow(time_limit)
    return f"{CRASHED} ({died})"


def _too_slow(time_limit: float) -> str:
    return f"{TOO_SLOW} {time_limit:g} s to read"


def _record(index: sqlite3.Connection, recipe: str, chunk: Chunk, result: Result) -> None:
    rows = [
        (o.state, o.reason, o.remark, o.tracks, o.notes, o.exact, o.music, recipe, job.name)
        for job, o in zip(chunk.jobs, result.outcomes, strict=True)
    ]
    index.executemany(
        "UPDATE files SET state = ?, reason = ?, remark = ?, tracks = ?, notes = ?, exact = ?, music = ?, recipe = ?,"
        " song = NULL, duplicate_of = NULL WHERE name = ?",
        rows,
    )
    prints = [(job.name, o.grams) for job, o in zip(chunk.jobs, result.outcomes, strict=True)]
    index.executemany("INSERT OR REPLACE INTO prints VALUES (?, ?)", prints)
    if chunk.shard:
        songs = [outcome for outcome in result.outcomes if outcome.state == "converted"]
        documents, notes = sum(song.tracks for song in songs), sum(song.notes for song in songs)
        number = int(chunk.shard.removeprefix("shard-").removesuffix(".txt"))
        row = (number, len(songs), documents, notes, result.size, result.sha256)
        index.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?, ?)", row)


# --- manifest, summary -----------------------------------------------------------------------------------


def _write_manifest(index: sqlite3.Connection, data: Folder, recipe: str) -> None:
    """data/manifest.json: which shards there are, with counts and checksums."""
    keys = ("songs", "documents", "notes", "bytes", "sha256")
    rows = index.execute("SELECT * FROM shards WHERE songs > 0 ORDER BY number").fetchall()
    shards = {shard_name(number): dict(zip(keys, row, strict=True)) for number, *row in rows}
    manifest = {"recipe": recipe, "shards": shards}
    data.write(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def _summary(index: sqlite3.Connection, converted: int, removed: int, before: dict[str, str]) -> Summary:
    totals = index.execute(
        "SELECT count(*), total(tracks), total(notes), count(remark), count(duplicate_of), count(DISTINCT song)"
        " FROM files WHERE state = 'converted'"
    ).fetchone()
    files, documents, notes, rescued, duplicates, songs = map(int, totals)
    refused = index.execute("SELECT path, reason FROM files WHERE state = 'refused' ORDER BY path").fetchall()
    named = {printable(os.fsdecode(path)): reason for path, reason in refused}
    states = Counter(dict(index.execute("SELECT state, count(*) FROM files GROUP BY state").fetchall()))
    left, filtered = states["new"], states["filtered"]
    return Summary(
        converted, removed, left, files, documents, notes, named, filtered, rescued, duplicates, songs, before
    )
