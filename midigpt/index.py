"""The index: what MIDI files lie below raw_data/, under which name their documents go, and what became of them.

cache/index.sqlite has a table `files`, with a row per MIDI file:

    path     below raw_data/, "/"-separated (bytes where it is not valid UTF-8)
    name     the documents are data/NAME_1.txt, data/NAME_2.txt, ..., in the song layout data/NAME.txt; given once,
             never changed
    size, stamp    of the file as it was last indexed; the stamp is its modification time (ns) or store's tag
    digest   of its bytes: SHA-256, or the store's tag
    state    new (to be converted), converted, refused, filtered (by the user's choice), removed (its documents
             are still to go)
    reason   why it was refused or filtered
    remark   what was done to save a damaged file
    tracks, notes    documents written, notes in them
    exact, music     fingerprints of the notes, and of the notes without their key and the tempo
    shard    the number of the shard its documents are in; NULL where each is a file
    song     the fingerprint of the cluster of files with the same music: equal for all of them
    duplicate_of    the name of the file that is used in its place
    recipe   what it was converted to: the language, and the filters

`prints` has each converted file's grams (midigpt.duplicates), `shards` a row per shard, `settings` where
raw_data and data are, which language documents are in and which duplicates are left out.
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
from midigpt.language import TRACKS, Language
from midigpt.normal import Layout
from midigpt.storage import UNREADABLE, Entry, Folder

EXTENSIONS = (".mid", ".midi", ".kar", ".rmi")
MAX_NAME_BYTES = 200  # file systems end at 255; "_123.txt" and the path's hash need room

_VERSION = 2  # of the schema
_SCHEMA = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS files (
    path PRIMARY KEY NOT NULL,
    name TEXT NOT NULL UNIQUE,
    folded TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    stamp TEXT NOT NULL,
    digest TEXT,
    state TEXT NOT NULL DEFAULT 'new',
    reason TEXT,
    remark TEXT,
    tracks INTEGER NOT NULL DEFAULT 0,
    notes INTEGER NOT NULL DEFAULT 0,
    exact TEXT,
    music TEXT,
    shard INTEGER,
    song TEXT,
    duplicate_of TEXT,
    recipe TEXT
);
CREATE INDEX IF NOT EXISTS by_state ON files (state);
CREATE INDEX IF NOT EXISTS by_shard ON files (shard);
CREATE TABLE IF NOT EXISTS prints (name TEXT PRIMARY KEY NOT NULL, grams BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS shards (
    number INTEGER PRIMARY KEY,
    songs INTEGER NOT NULL,
    documents INTEGER NOT NULL,
    notes INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL);
PRAGMA user_version = {_VERSION};
COMMIT;
"""
# Of files: those to be learned from. "+" keeps SQLite from looking them up by state, which would need sorting.
_USED = "+state = 'converted' AND duplicate_of IS NULL"


@dataclass(frozen=True)
class Song:
    """A converted file: its documents are files in data/ (document_names), or lie in a shard."""

    name: str
    fingerprint: str  # of the music; the same for all files that hold it
    tracks: int  # documents: one in the song layout
    shard: int | None = None


def open_index(root: Path, create: bool = False) -> sqlite3.Connection:
    """The index of a working folder. Raises UserError where there is none and none is to be made."""
    path = root / "cache" / "index.sqlite"
    again = f"delete it and run: {make(root, 'index', 'dataset')}"
    if not create and not path.exists():
        raise UserError(f"{path} does not exist yet; make it with: {make(root, 'index')}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The tokenizer's library goes on with an iterator in whatever thread; never in two at once.
        connection = sqlite3.connect(path, check_same_thread=False)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise UserError(f"{path} was made by another version of midigpt; {again}")
            connection.executescript(_SCHEMA)
    except sqlite3.OperationalError as error:
        raise UserError(f"{path} can't be used ({error}); is another run at work there?") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is not an index ({error}); {again}") from None
    return connection


def setting(index: sqlite3.Connection, key: str, default: str = "") -> str:
    """What was set for a key, or the default."""
    row = index.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
    return row[0] if row else default


def set_setting(index: sqlite3.Connection, key: str, value: str) -> None:
    if setting(index, key) != value:  # a run that has nothing to do writes nothing
        index.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value))


def data_folder(index: sqlite3.Connection, root: Path, key: str) -> Folder:
    """The folder `raw_data` or `data` of a working folder: below it, or where the user has set it."""
    return Folder(setting(index, key) or str(root / key))


def language(root: Path) -> Language:
    """The language of a working folder's documents, as `make dataset` was last told. Raises UserError."""
    with closing(open_index(root)) as index:
        return language_of(index)


def language_of(index: sqlite3.Connection) -> Language:
    """As it was set; documents that are older than this setting are TRACKS, and stay so until another is asked for."""
    is_begun = index.execute("SELECT 1 FROM files WHERE recipe IS NOT NULL").fetchone()
    default = TRACKS if is_begun else Language()
    encoding = setting(index, "encoding", default.encoding)
    return Language(encoding, "song" if setting(index, "layout", default.layout) == "song" else "track")


def document_names(name: str, documents: int, layout: Layout) -> list[str]:
    """The names of a file's documents in data/, where each is a file."""
    if layout == "song":
        return [f"{name}.txt"][:documents]
    return [f"{name}_{number}.txt" for number in range(1, documents + 1)]


def shard_name(number: int) -> str:
    return f"shard-{number:06}.txt"


def index_files(root: Path, raw_data: str = "") -> Counter[str]:
    """Bring the index in step with raw_data/; returns how many files are new, changed, removed, the same.

    `raw_data` is another place for it, a path or URL, and is remembered. A file is looked into only if its
    size or modification time differ from the index; it counts as changed if its bytes do (in a store: its tag).
    Raises UserError where raw_data/ holds no MIDI file.
    """
    if not raw_data and not (root / "cache" / "index.sqlite").exists():
        _check(Folder(str(root / "raw_data")))
    with closing(open_index(root, create=True)) as connection:
        folder = Folder(raw_data).absolute() if raw_data else data_folder(connection, root, "raw_data")
        _check(folder)
        found = dict(sorted(folder.find(EXTENSIONS)))
        if raw_data:
            set_setting(connection, "raw_data", folder.location)
        return _update(connection, folder, found)


def _check(raw_data: Folder) -> None:
    if not raw_data.is_remote and Path(raw_data.location).is_file():
        raise UserError(f"{raw_data} is a file; your MIDI files belong into a folder of that name")
    if not raw_data.exists():
        raise UserError(f"{raw_data} does not exist; make that folder and put MIDI files into it")


def _update(connection: sqlite3.Connection, raw_data: Folder, found: dict[str, Entry]) -> Counter[str]:
    rows = connection.execute("SELECT path, size, stamp, digest, state FROM files")
    known = {os.fsdecode(row[0]): row[1:] for row in rows}
    if not found:  # where there were some, it is a disk that is not there, or a wrong name
        raise UserError(f"{raw_data} holds no MIDI file ({' '.join(EXTENSIONS)}, any case, in any subfolder)")

    count = Counter(new=0, changed=0, removed=0, same=0)
    taken = {row[0] for row in connection.execute("SELECT folded FROM files")}
    with connection:
        for path in known.keys() - found.keys():
            count["removed"] += known[path][3] != "removed"
            connection.execute("UPDATE files SET state = 'removed' WHERE path = ?", (_storable(path),))
        for path, entry in tqdm(found.items(), desc="index", unit="file", disable=None):
            old_size, old_stamp, old_digest, old_state = known.get(path, (None, None, None, None))
            if (entry.size, entry.stamp) == (old_size, old_stamp) and old_digest and old_state != "removed":
                count["same"] += 1
                continue
            digest, reason = (entry.stamp, None) if raw_data.is_remote else _digest(Path(raw_data.location, path))
            if path not in known:
                count["new"] += 1
                name = _new_name(path, taken)
                connection.execute(
                    "INSERT INTO files (path, name, folded, size, stamp) VALUES (?, ?, ?, ?, ?)",
                    (_storable(path), name, _fold(name), entry.size, entry.stamp),
                )
            elif digest == old_digest and digest and old_state != "removed":
                count["same"] += 1
                connection.execute("UPDATE files SET stamp = ? WHERE path = ?", (entry.stamp, _storable(path)))
                continue
            else:
                count["changed"] += 1
            connection.execute(
                "UPDATE files SET size = ?, stamp = ?, digest = ?, state = ?, reason = ?, remark = NULL, tracks = 0,"
                " notes = 0, exact = NULL, music = NULL, song = NULL, duplicate_of = NULL, recipe = NULL"
                " WHERE path = ?",
                (entry.size, entry.stamp, digest, "refused" if reason else "new", reason, _storable(path)),
            )
    return count


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
    """The converted files that are to be learned from, in name order (of shards: by shard, then name).

    They come a few at a time: the list of all is never in memory. Raises UserError where there is none, or some
    in another language than the working folder's.
    """
    with closing(open_index(root)) as connection:
        data = data_folder(connection, root, "data")
        converted = "SELECT 1 FROM files WHERE state = 'converted'"
        if not connection.execute(converted).fetchone():
            raise UserError(f"{data} holds no documents yet; make them with: {make(root, 'dataset')}")
        other = f"{converted} AND recipe != ? AND recipe NOT LIKE ?"
        wanted = str(language_of(connection))
        if connection.execute(other, (wanted, f"{wanted} %")).fetchone():
            again = make(root, "dataset")
            raise UserError(f"{data} has documents in another language than {wanted!r}; make them anew with: {again}")
        columns = f"SELECT name, coalesce(song, music), tracks, shard FROM files WHERE {_USED}"
        first = ""
        page = f"{columns} AND +shard IS NULL AND name >= ? ORDER BY name LIMIT 1000"
        while rows := connection.execute(page, (first,)).fetchall():
            yield from (Song(*row) for row in rows)
            first = rows[-1][0] + "\0"  # the next text after it
        for (shard,) in connection.execute("SELECT number FROM shards ORDER BY number").fetchall():
            rows = connection.execute(f"{columns} AND shard = ? ORDER BY name", (shard,)).fetchall()
            yield from (Song(*row) for row in rows)


def totals(root: Path, most_notes: int) -> tuple[int, int]:
    """How many songs there are, and how many notes in them, of which a song counts `most_notes` at most."""
    with closing(open_index(root)) as connection:
        count = f"SELECT count(*), coalesce(sum(min(notes, ?)), 0) FROM files WHERE {_USED}"
        (row,) = connection.execute(count, (most_notes,))
    return row[0], row[1]
