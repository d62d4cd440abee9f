"""Folders on a disk or in an object store: raw_data and data may be a path or a URL that fsspec knows (s3://...)."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from midigpt.files import UserError, install

TEMPORARY = ".midigpt.tmp"  # a folder in a local one, for files that have not got their name yet
READ_AT_ONCE = 32  # objects asked for at the same time
UNREADABLE = "can't be read"  # as the reason of a refusal; it may pass


@dataclass(frozen=True)
class Entry:
    """What a listing says of a file."""

    size: int
    stamp: str  # changes when the file does; of an object in a store, that of its bytes


@dataclass(frozen=True)
class Folder:
    """A folder by its location, which alone is what another process or machine needs to use it."""

    location: str

    def __str__(self) -> str:
        return self.location

    @property
    def is_remote(self) -> bool:
        return "://" in self.location

    def __post_init__(self) -> None:
        """Raises UserError for a URL that names no place, or one that only this process has."""
        kind, mark, place = self.location.partition("://")
        if mark and (not place.strip("/") or kind == "memory"):
            raise UserError(f"{self.location} is no place to keep files; a store needs a bucket: s3://bucket/folder")

    def absolute(self) -> "Folder":
        """The same for a process with another working folder; a URL without its last slash."""
        return Folder(self.location.rstrip("/") if self.is_remote else str(Path(self.location).absolute()))

    def exists(self) -> bool:
        """Whether there is such a folder. A store has none but in the names of its files: there it is True."""
        return self.is_remote or Path(self.location).is_dir()

    @contextmanager
    def being_written(self) -> Iterator[None]:
        """Make the folder, with room for files that have no name yet; what a killed run has left there goes."""
        temporary = Path(self.location, TEMPORARY)
        if self.is_remote:
            yield
            return
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def names(self) -> set[str]:
        """The names of the files that lie directly in it. Raises UserError where it can't be listed."""
        with self._said("listed"), suppress(FileNotFoundError):
            if self.is_remote:
                files, path = _file_system(self.location)
                files.invalidate_cache()
                return {found.rpartition("/")[2] for found in files.ls(path, detail=False)}
            with os.scandir(self.location) as listing:
                return {entry.name for entry in listing}
        return set()

    def find(self, extensions: tuple[str, ...]) -> Iterator[tuple[str, Entry]]:
        """The "/"-separated paths of all files with one of some endings, in any case, in any subfolder.

        Raises UserError where a folder can't be listed.
        """
        with self._said("listed"):
            for path, entry in self._find_remote() if self.is_remote else _walk(self.location):
                name = path.rpartition("/")[2]
                # "._NAME" is what macOS writes beside NAME on foreign disks; no MIDI, whatever its ending.
                if name.lower().endswith(extensions) and not name.startswith("._"):
                    yield path, entry()

    def _find_remote(self) -> Iterator[tuple[str, Any]]:
        files, base = _file_system(self.location)
        files.invalidate_cache()
        for path, info in files.find(base, detail=True).items():
            stamp = info.get("ETag") or hashlib.sha256(repr(sorted(info.items())).encode()).hexdigest()
            yield path.removeprefix(base).lstrip("/"), lambda info=info, stamp=stamp: Entry(info["size"], stamp)

    def read(self, names: Sequence[str]) -> Iterator[bytes | OSError]:
        """The bytes of files in the order of their names, or why there are none; from a store, several at once.

        Raises UserError where the store can't be reached.
        """
        if not self.is_remote:
            yield from (_read(f"{self.location}/{name}") for name in names)
            return
        files, base = _file_system(self.location)
        for first in range(0, len(names), READ_AT_ONCE):
            paths = [f"{base}/{name}" for name in names[first : first + READ_AT_ONCE]]
            # Ranges from None to None are whole files; cat(paths) would take a name with [ or * for a pattern.
            for content in files.cat_ranges(paths, None, None, on_error="return"):
                if isinstance(content, bytes | OSError):
                    yield content
                else:
                    with self._said("read"):
                        raise content

    def write(self, name: str, content: bytes) -> None:
        """Write a file that nobody sees before it is whole. Raises UserError where that fails."""
        with self._said("written", "; what is finished is kept: mend that, and run the same command again"):
            if self.is_remote:
                files, base = _file_system(self.location)
                files.pipe_file(f"{base}/{name}", content)
                return
            # A name of its own: a worker that is taken for dead may still be at the same file.
            temporary = f"{self.location}/{TEMPORARY}/{secrets.token_hex(8)}"
            try:
                _write(temporary, content)
                os.rename(temporary, f"{self.location}/{name}")
            except OSError:
                with suppress(OSError):
                    os.unlink(temporary)
                raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._said("written"), suppress(FileNotFoundError):
            if self.is_remote:
                files, base = _file_system(self.location)
                files.rm_file(f"{base}/{name}")
            else:
                Path(self.location, name).unlink()

    @contextmanager
    def _said(self, done: str, advice: str = "") -> Iterator[None]:
        """What the system or the store refuses becomes a UserError."""
        try:
            yield
        except _errors() as error:
            if self.is_remote:
                advice += "; the store's address and keys come from the environment, see docs/scale.md"
            place, reason = getattr(error, "filename", None) or self, getattr(error, "strerror", None) or error
            raise UserError(f"{place} can't be {done} ({reason}){advice}") from None


def _read(path: str) -> bytes | OSError:
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return OSError(errno.EINVAL, "no regular file")
            return file.read()
    except OSError as error:
        return error
    except MemoryError:
        return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe would wait for somebody to write into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _write(path: str, content: bytes) -> None:
    """Half as dear as a file object, where files are as small as documents."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
    finally:
        os.close(file)


def _walk(location: str) -> Iterator[tuple[str, Any]]:
    """(path, what gives its entry) of every file; links are followed once, and those to nowhere passed over."""
    seen = set()
    folders = [(location, "")]
    while folders:
        folder, prefix = folders.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        below = []
        for entry in entries:
            if _is(entry.is_dir):
                below.append((entry.path, f"{prefix}{entry.name}/"))
            elif _is(entry.is_file):
                yield prefix + entry.name, lambda entry=entry: _entry(entry.stat())
        folders += reversed(below)


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def _entry(status: os.stat_result) -> Entry:
    return Entry(status.st_size, str(status.st_mtime_ns))


def _errors() -> tuple[type[Exception], ...]:
    """Those of reading and writing. Some of S3's library are no OSError: no connection, no credentials."""
    library = sys.modules.get("botocore.exceptions")
    return (OSError, library.BotoCoreError) if library else (OSError,)


@cache
def _file_system(location: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path on it."""
    import fsspec

    # s3fs would ask for the size of every file before it reads it, to get the parts of large ones side by side.
    options = {"max_concurrency": 1} if location.startswith("s3:") else {}
    try:
        files, path = fsspec.core.url_to_fs(location, **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"{location} can't be opened ({error}); s3:// needs: {install('s3')}") from None
    return files, path.rstrip("/")
