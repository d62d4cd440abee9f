"""Intervals from an anchor: a part's first note in a line is written as its distance from the tonic of the scale.

    0+10|4+10|3+10|1/1            C4, E4 and G4 together, for one beat (behind key=60, the anchor)
    2+10|1/2                      D4: two keys above the anchor
    3-10:1/4|1/1                  A3, sounding for a quarter of its line

The other notes of the part in the line count on, each from the one before. So a tune reads the same in all twelve keys,
as in interval.py, and a chord too wherever it stands in the line; but the model need not add intervals up to know where
it is in the key. Losses are those of interval.py, and so is the normal form, but that the header's key is the anchor
that find_keys() gives.
"""

from functools import partial

import numpy as np

from midigpt.encodings import Sheet, interval
from midigpt.encodings._lines import document_of
from midigpt.normal import GRID
from midigpt.score import IntArray

VERSION = 2
ALPHABET = interval.ALPHABET

count_notes = interval.count_notes
line_steps = interval.line_steps
write = partial(interval.write, is_anchored=True)
read = partial(interval.read, is_anchored=True)
check_line = partial(interval.check_line, is_anchored=True)

# How well each key of the octave fits a major and a minor key, upwards from the tonic: twice the weights of Temperley,
# What's key for key? The Krumhansl-Schmuckler key-finding algorithm reconsidered (Music Perception 17, 1999).
MAJOR = (10, 4, 7, 4, 9, 8, 4, 9, 4, 7, 3, 8)
MINOR = (10, 4, 7, 9, 4, 8, 4, 9, 7, 4, 3, 8)
RELATIVE = 3  # keys from a minor tonic up to that of the major scale with the same notes
LONGEST = 2 * GRID  # steps that a note counts for at most

_NEAR: IntArray = np.array(sorted(range(-11, 12), key=abs))
_NEVER = np.iinfo(np.int64).min

# (2, 12, 12): the weight of each key of the octave (the second axis) in the major and the minor key on each tonic (the
# last). Both have the same weights in another order, so sums of products order keys as correlations would; and whole
# numbers add up exactly.
_FITS: IntArray = np.array([MAJOR, MINOR])[:, (np.arange(12)[:, None] - np.arange(12)) % 12]


def find_keys(sheet: Sheet) -> IntArray:
    """(D,) the anchor of each document, a MIDI note number; -1 where all its notes are drums.

    It is the tonic of the major scale that fits the notes best: C for A minor as well, so that pieces in major and in
    minor are written with the same seven numbers. What fits is decided as Krumhansl and Schmuckler do: by correlating
    how long each key of the octave sounds with the weights that it has in each major and minor key. Of the tonic's
    octaves it is the one nearest to the mean of all pitches, rounded down, and always from the lowest to the highest of
    them, so that it moves with the piece to wherever that can be moved. Of two that are as good, or as near, it is the
    nearer one, or the lower.
    """
    notes = sheet.notes
    keys = np.full(len(sheet.starts) - 1, -1)
    pitched = ~sheet.is_drum[notes.part]
    document, pitch = document_of(sheet)[pitched], notes.pitch[pitched]
    length = np.minimum(notes.end - notes.onset, LONGEST)[pitched]
    if not len(pitch):
        return keys
    there, first, count = np.unique(document, return_index=True, return_counts=True)  # (D',) documents with a pitch
    sounds = np.bincount(12 * document + pitch % 12, length, 12 * len(keys)).reshape(-1, 12)[there].astype(np.int64)
    major, minor = sounds @ _FITS  # (D', 12) each
    fit = np.maximum(major, np.roll(minor, RELATIVE, axis=1))

    total, lowest, highest = (reduce.reduceat(pitch, first)[:, None] for reduce in (np.add, np.minimum, np.maximum))
    near = total // count[:, None] + _NEAR  # (D', 23)
    fit = np.take_along_axis(fit, near % 12, axis=1)
    best = np.where((near >= lowest) & (near <= highest), fit, _NEVER).argmax(axis=1)
    keys[there] = near[np.arange(len(best)), best]
    return keys
