"""What every command needs of files and of the person at the terminal."""

import fcntl
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

Args = TypeVar("Args")


class UserError(Exception):
    """A sentence for the person at the terminal: what is wrong, where, and what to do."""


def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An excepthook: what the user can mend as a sentence, anything else with its traceback."""
    if issubclass(kind, UserError):
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    elif issubclass(kind, KeyboardInterrupt):
        print("\nInterrupted; what was finished is kept.", file=sys.stderr)
    elif isinstance(error, OSError) and error.filename:
        print(f"{Path(sys.argv[0]).name}: {error.filename} can't be used ({error.strerror})", file=sys.stderr)
    elif issubclass(kind, sqlite3.OperationalError):
        print(
            f"{Path(sys.argv[0]).name}: cache/index.sqlite can't be used ({error}); mend that, and run the same"
            " command again",
            file=sys.stderr,
        )
    elif issubclass(kind, sqlite3.DatabaseError):
        again = "delete cache/index.sqlite and run: make index dataset"
        print(f"{Path(sys.argv[0]).name}: the index is damaged ({error}); {again}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def parse_arguments(kind: type[Args], description: str | None) -> Args:
    """The command line as a frozen dataclass; from here on what the user can mend is printed as a sentence."""
    import tyro

    sys.excepthook = say
    return tyro.cli(kind, description=description)


def make(root: Path, *targets: str) -> str:
    """The make command that makes what is missing in a working folder."""
    return " ".join(["make", *targets]) + ("" if root == Path() else f' ROOT="{root}"')


def install(extra: str) -> str:
    """The command that installs the packages of one of pyproject.toml's extras."""
    return f".venv/bin/pip install -c constraints.txt -e '.[{extra}]'"


def counted(number: int, what: str) -> str:
    """As "1 note" or "3 notes"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def printable(path: str) -> str:
    """A path for the terminal: bytes that are no UTF-8 become \\xNN, and so do newlines and what else moves it."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Only one command at a time may change a working folder; the second gets a UserError.

    Raises UserError where there is no such folder, too.
    """
    if not root.is_dir():
        raise UserError(f"{root} does not exist; make that folder, and raw_data in it for your MIDI files")
    with lock(root / "cache" / "lock", f"another command is at work in {root.resolve()}"):
        yield


def lock(path: Path, busy: str) -> IO[bytes]:
    """An open file that no other process has while it is open; the second gets a UserError that begins with `busy`.

    The system takes the lock away when the process ends, however that happens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        other = file.read().decode().strip() or "unknown"
        file.close()
        raise UserError(f"{busy} (process {other}); wait for it, or stop it") from None
    with suppress(OSError):  # on a full disk a second command does not learn who the first is
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
    return file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well, and goes when it fails.

    So nobody ever sees half a file under its final name. What a kill leaves is overwritten the next time. Raises
    UserError where there is no room for it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename:  # says itself which file it is about
            raise
        raise UserError(
            f"{path} can't be written ({error.strerror or error}); mend that, and run the same command again"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_line(path: Path, line: str) -> None:
    """Write a line behind the others of a file. Raises UserError where there is no room."""
    try:
        with path.open("a", encoding="utf-8", newline="\n") as out:
            out.write(line + "\n")
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror or error}); mend that, and run the same command again"
        ) from None


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
