"""What encodings share whose times are whole grid steps: putting lines together, and reading them one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from midigpt.encodings import Row, Sheet, split_mark
from midigpt.header import Header, LanguageError
from midigpt.normal import GRID, MAX_TICKS
from midigpt.score import IntArray


@dataclass
class Taken:
    """What has been taken down of a document whose lines are read one by one."""

    is_song: bool
    rows: list[Row] = field(default_factory=list)
    part: str = ""  # the last note's

    def without_mark(self, note: str) -> str:
        """A note's text without its part's mark; `part` is its part from now on. Raises LanguageError as split_mark."""
        self.part, text = split_mark(note, self.part, self.is_song)
        return text


# Takes down a line that begins at a grid step, without its newline; returns the steps until the next.
TakeLine = Callable[[Taken, str, int], int]


def document_of(sheet: Sheet) -> IntArray:
    """(N,) the document of each note."""
    return np.repeat(np.arange(len(sheet.starts) - 1), np.diff(sheet.starts))


def last_onsets(sheet: Sheet) -> IntArray:
    """(D,) the onset of each document's last note."""
    return sheet.notes.onset[np.array(sheet.starts[1:]) - 1]


def document_ends(sheet: Sheet) -> IntArray:
    """(D,) grid steps at which each document ends: where it is to end, or with the longest note of its last line."""
    last = last_onsets(sheet)
    if sheet.end is not None:
        return np.maximum(sheet.end, last + 1)
    is_last = sheet.notes.onset == last[document_of(sheet)]
    return np.maximum.reduceat(np.where(is_last, sheet.notes.end, 0), sheet.starts[:-1])


def join_lines(
    texts: Sequence[str],
    time: IntArray,
    part: IntArray,
    starts: Sequence[int],
    ends: IntArray,
    marks: Sequence[str],
    time_text: Callable[[int], str],
) -> list[str]:
    """The lines of each document, (D,), from the texts of all that happens, (I,), in its order.

    `time` and `part` say when (grid steps) and in which part each text happens, `starts`, (D + 1,), where each
    document's begin, `ends`, (D,), when its last line ends. `marks` are the parts', or empty; `time_text` writes a
    line's time.
    """
    bodies = []
    times, parts = time.tolist(), part.tolist()
    for begin, stop, end in zip(starts, starts[1:], ends.tolist(), strict=False):
        pieces: list[str] = []
        now, of_part = 0, -1
        for i in range(begin, stop):
            if times[i] != now:
                pieces += (time_text(times[i] - now), "\n")
                now = times[i]
            if marks and parts[i] != of_part:
                of_part = parts[i]
                pieces += (marks[of_part], "@")
            pieces.append(texts[i])
        bodies.append("".join((*pieces, time_text(end - now), "\n")))
    return bodies


def read_notes(
    take_line: TakeLine, body: str, header: Header, first: int, is_song: bool
) -> tuple[list[Row], int]:
    """The notes of a document, in normal form or not, and the ticks to the beat in which their times are."""
    taken = Taken(is_song)
    read_lines(body, first, lambda line, now: take_line(taken, line, now))
    return taken.rows, GRID


def check_first(take_line: TakeLine, line: str, header: Header, is_song: bool) -> None:
    """Raises LanguageError where a line can't be the first of a document."""
    take_line(Taken(is_song), line, 0)


def read_lines(body: str, first: int, read_line: Callable[[str, int], int]) -> int:
    """Calls read_line(line, now) for each line, without its newline; it returns the steps until the next.

    Returns when the document ends, in grid steps. The first line is called `first` in errors.
    """
    now = 0
    for number, line in enumerate(body.removesuffix("\n").split("\n") if body else [], start=first):
        try:
            now += read_line(line, now)
        except LanguageError as error:
            raise LanguageError(f"line {number}: {error}") from None
        if now > MAX_TICKS:
            raise LanguageError(f"line {number}: the piece is longer than a MIDI file can be")
    return now
