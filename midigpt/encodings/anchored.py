"""Intervals from an anchor: a part's first note in a line is written as its distance from the document's first note.

    0+10|4+10|3+10|1/1            C4, E4 and G4 together, for one beat (behind key=60, the anchor)
    2+10|1/2                      D4: two keys above the anchor
    0+10:1/4|1/1                  C4, sounding for a quarter of its line

The other notes of the part in the line count on, each from the one before. So a tune reads the same in all twelve keys,
as in interval.py, and a chord too wherever it stands in the line; but the model need not add intervals up to know where
it is in the key. Normal form and losses are those of interval.py; all that differs is what a line's first notes count
from.
"""

from functools import partial

from midigpt.encodings import interval

VERSION = 1
ALPHABET = interval.ALPHABET

count_notes = interval.count_notes
line_steps = interval.line_steps
write = partial(interval.write, is_anchored=True)
read = partial(interval.read, is_anchored=True)
check_line = partial(interval.check_line, is_anchored=True)
