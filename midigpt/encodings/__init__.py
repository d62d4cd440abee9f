"""The ways in which a document's lines say what is played: a module for each, which midigpt/language.py calls.

A line is all that happens at one instant, and the time until the next line. A module has

    VERSION             of the encoding
    ALPHABET            the characters of its lines, but those of part marks (see language.py)
    write(sheet)        the lines of each document, (D,) texts
    read(body, header, first)
                        the way back: the notes of a document whose lines begin with line `first` of its text, as Rows,
                        and the ticks to the beat in which their times are; raises LanguageError, which names the line
    check_line(line, header)
                        raises LanguageError where a line can't be the first of a document
    count_notes(text)   how many notes a text holds, also of a token, which is a part of a line
    line_steps(line)    the time until the next line, in grid steps

and its docstring says what the normal form is and what is lost.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midigpt.normal import Notes


@dataclass(frozen=True)
class Sheet:
    """Documents to be written."""

    notes: Notes  # ordered by document, onset, part and pitch
    starts: list[int]  # (D + 1,) where each document's notes begin
    is_drum: NDArray[np.bool_]  # (P,) of each part
    marks: list[str]  # (P,) of each part; empty in the track layout, where a part is a document
    end: int | None = None  # grid steps, to which documents run; without it to the end of their notes


class Row(NamedTuple):
    """A note as it is read."""

    mark: str  # of its part, "" where none is written
    onset: int  # ticks
    duration: int  # ticks
    pitch: int
    velocity: int  # 1..127
