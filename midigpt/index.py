"""The index: what MIDI files lie below raw_data/, under which name their documents go, and what became of them.

cache/index.sqlite has one table, `files`, with a row per MIDI file:

    path     below raw_data/, "/"-separated (bytes where it is not valid UTF-8)
    name     the documents are data/NAME_1.txt, data/NAME_2.txt, ...; given once, never changed
    size, mtime_ns, sha256    of the file as it was last indexed
    state    new (to be converted), converted, refused, removed (its documents are still to go)
    reason   why it was refused
    tracks, notes    documents written, notes in them
    fingerprint   of the music without its key and tempo: equal for a copy or a transposition
    language what it was converted to (midigpt.language.LANGUAGE)
"""

import hashlib
import os
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from midigpt.files import UserError, make
from midigpt.language import LANGUAGE

UNREADABLE = "can't be read"  # as the reason of a refusal; it may pass
EXTENSIONS = (".mid", ".midi", ".kar", ".rmi")
MAX_NAME_BYTES = 200  # file systems end at 255; "_123.txt" and the path's hash need room

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path PRIMARY KEY NOT NULL,
    name TEXT NOT NULL UNIQUE,
    folded TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256 TEXT,
    state TEXT NOT NULL DEFAULT 'new',
    reason TEXT,
    tracks INTEGER NOT NULL DEFAULT 0,
    notes INTEGER NOT NULL DEFAULT 0,
    fingerprint TEXT,
    language TEXT
);
CREATE INDEX IF NOT EXISTS by_state ON files (state);
"""


@dataclass(frozen=True)
class Song:
    """A converted file: its documents are data/NAME_1.txt .. data/NAME_{tracks}.txt."""

    name: str
    fingerprint: str  # of the music
    tracks: int


def open_index(root: Path, create: bool = False) -> sqlite3.Connection:
    """The index of a working folder. Raises UserError where there is none and none is to be made."""
    path = root / "cache" / "index.sqlite"
    if not create and not path.exists():
        raise UserError(f"{path} does not exist yet; make it with: {make(root, 'index')}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path)
        connection.executescript(_SCHEMA)
    except sqlite3.OperationalError as error:
        raise UserError(f"{path} can't be used ({error}); is another run at work there?") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is not an index ({error}); delete it and run: {make(root, 'index')}") from None
    return connection


def index_files(root: Path) -> Counter[str]:
    """Bring the index in step with raw_data/; returns how many files are new, changed, removed, the same.

    A file is looked into only if its size or modification time differ from the index; it counts as changed
    if its bytes do. Raises UserError where raw_data/ holds no MIDI file and never did.
    """
    raw_data = root / "raw_data"
    if not raw_data.is_dir():
        raise UserError(f"{raw_data} does not exist; make that folder and put MIDI files into it")
    found = dict(_find(raw_data))
    with closing(open_index(root, create=True)) as connection:
        return _update(connection, raw_data, found)


def _update(connection: sqlite3.Connection, raw_data: Path, found: dict[str, tuple[int, int]]) -> Counter[str]:
    rows = connection.execute("SELECT path, size, mtime_ns, sha256, state FROM files")
    known = {os.fsdecode(row[0]): row[1:] for row in rows}
    if not found and not known:
        raise UserError(f"{raw_data} holds no MIDI file ({' '.join(EXTENSIONS)}, any case, in any subfolder)")

    count = Counter(new=0, changed=0, removed=0, same=0)
    taken = {row[0] for row in connection.execute("SELECT folded FROM files")}
    with connection:
        for path in known.keys() - found.keys():
            count["removed"] += known[path][3] != "removed"
            connection.execute("UPDATE files SET state = 'removed' WHERE path = ?", (_storable(path),))
        for path, (size, mtime_ns) in tqdm(found.items(), desc="index", unit="file", disable=None):
            old_size, old_mtime, old_sha, old_state = known.get(path, (None, None, None, None))
            if (size, mtime_ns) == (old_size, old_mtime) and old_sha and old_state != "removed":
                count["same"] += 1
                continue
            sha256, reason = _digest(raw_data / path)
            if path not in known:
                count["new"] += 1
                name = _new_name(path, taken)
                connection.execute(
                    "INSERT INTO files (path, name, folded, size, mtime_ns) VALUES (?, ?, ?, ?, ?)",
                    (_storable(path), name, _fold(name), size, mtime_ns),
                )
            elif sha256 == old_sha and sha256 and old_state != "removed":
                count["same"] += 1
                connection.execute("UPDATE files SET mtime_ns = ? WHERE path = ?", (mtime_ns, _storable(path)))
                continue
            else:
                count["changed"] += 1
            connection.execute(
                "UPDATE files SET size = ?, mtime_ns = ?, sha256 = ?, state = ?, reason = ?, tracks = 0, notes = 0,"
                " fingerprint = NULL, language = NULL WHERE path = ?",
                (size, mtime_ns, sha256, "refused" if reason else "new", reason, _storable(path)),
            )
    return count


def _find(raw_data: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(path below raw_data, (size, mtime_ns)) of every MIDI file, in path order; links are followed once."""
    seen = set()

    def walk(folder: Path, prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_dir():
                yield from walk(folder / entry.name, f"{prefix}{entry.name}/")
            elif entry.name.startswith("._"):
                continue  # what macOS writes beside files on foreign disks; no MIDI, whatever its ending
            elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                status = entry.stat()
                yield prefix + entry.name, (status.st_size, status.st_mtime_ns)

    try:
        yield from sorted(walk(raw_data, ""))
    except OSError as error:
        raise UserError(f"{error.filename} can't be listed ({error.strerror})") from None


def _digest(path: Path) -> tuple[str | None, str | None]:
    """(sha256, None), or (None, the reason) of a file that can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), None
    except OSError as error:
        return None, f"{UNREADABLE} ({error.strerror})"


def _new_name(path: str, taken: set[str]) -> str:
    """A file's NAME: its own without folders and extension; if that is taken, with `-` and six hex digits.

    Names are compared without regard to case or Unicode composition, as some file systems do.
    """
    stem = os.fsencode(path.rpartition("/")[2].rpartition(".")[0]).decode("utf-8", "replace")
    stem = "".join(c if c.isprintable() else "_" for c in stem)  # also what was no UTF-8
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    name = stem
    if len(stem.encode()) > MAX_NAME_BYTES:
        name = f"{stem.encode()[:MAX_NAME_BYTES].decode('utf-8', 'ignore')}-{digest[:6]}"
    elif _fold(stem) in taken:
        name = f"{stem}-{digest[:6]}"
    digits = 6
    while _fold(name) in taken:  # two paths whose hashes begin alike, or a file that bears such a name
        digits += 2
        name = f"{stem.encode()[:MAX_NAME_BYTES].decode('utf-8', 'ignore')}-{digest[:digits]}"
    taken.add(_fold(name))
    return name


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _storable(path: str) -> str | bytes:
    """A path as SQLite can hold it: text, or bytes where it is not valid UTF-8 (os.fsdecode undoes both)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def songs(root: Path) -> Iterator[Song]:
    """All converted files, in name order, a few at a time: the list of all is never in memory.

    Between them the index is closed: others can write to it, and any thread can ask for the next one, as
    BPE's trainer does. Raises UserError where there is none, or some in another language.
    """
    with closing(open_index(root)) as connection:
        converted = "SELECT 1 FROM files WHERE state = 'converted'"
        if not connection.execute(converted).fetchone():
            raise UserError(f"{root / 'data'} holds no documents yet; make them with: {make(root, 'dataset')}")
        if connection.execute(f"{converted} AND language IS NOT ?", (LANGUAGE,)).fetchone():
            again = make(root, "dataset")
            raise UserError(f"{root / 'data'} is in an older language than {LANGUAGE!r}; make it anew with: {again}")
    first = ""
    while rows := _songs_from(root, first):
        yield from rows
        first = rows[-1].name + "\0"  # the next text after it


def _songs_from(root: Path, first: str) -> list[Song]:
    with closing(open_index(root)) as connection:
        # "+" keeps SQLite from looking rows up by state: it would have to sort all of them for every page.
        rows = connection.execute(
            "SELECT name, fingerprint, tracks FROM files WHERE +state = 'converted' AND name >= ?"
            " ORDER BY name LIMIT 1000",
            (first,),
        )
        return [Song(*row) for row in rows]


def totals(root: Path, most_notes: int) -> tuple[int, int]:
    """How many converted files there are, and how many notes in them, of which a file counts `most_notes` at most."""
    with closing(open_index(root)) as connection:
        count = "SELECT count(*), coalesce(sum(min(notes, ?)), 0) FROM files WHERE state = 'converted'"
        (row,) = connection.execute(count, (most_notes,))
    return row[0], row[1]
