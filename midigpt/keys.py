"""Names of keys and notes, and the scale that music is in."""

import re

import numpy as np

from midigpt.files import UserError
from midigpt.score import OCTAVE, Score, moved

NOTE = r"[A-Ga-g][#b]?-?\d|\d+"
RELATIVE = 3  # keys from a minor tonic up to that of the major scale with the same notes

# How well each key of the octave fits a major and a minor key, upwards from the tonic: twice the weights of Temperley,
# What's key for key? The Krumhansl-Schmuckler key-finding algorithm reconsidered (Music Perception 17, 1999).
MAJOR = (10, 4, 7, 4, 9, 8, 4, 9, 4, 7, 3, 8)
MINOR = (10, 4, 7, 9, 4, 8, 4, 9, 7, 4, 3, 8)
LONGEST = 2  # beats that a note counts for at most

_STEPS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
_SIGNS = {"#": 1, "b": -1, "": 0}


def read_note(text: str, flag: str) -> int:
    """C4, F#3, Bb5 or 60 as a MIDI number; C4 is middle C, 60. Raises UserError for what is none."""
    match = re.fullmatch(r"([A-Ga-g])([#b]?)(-?\d)", text)
    number = -1
    if text.isdecimal():
        number = int(text)
    elif match:
        number = _STEPS[match[1].lower()] + _SIGNS[match[2]] + OCTAVE * (int(match[3]) + 1)
    if not 0 <= number < 128:
        raise UserError(f"{flag} {text} is no note such as C4, F#3, Bb5 or 60, in 0..127")
    return number


def read_scale(text: str, flag: str) -> int:
    """The tonic of a key's major scale, 0..11 from C: of D 2, of Dm 5 as F major. Raises UserError for no key."""
    match = re.fullmatch(r"([A-G])([#b]?)(m?)", text)
    if not match:
        raise UserError(f"{flag} {text} is no key such as D, Bb, or F#m for F sharp minor")
    return (_STEPS[match[1].lower()] + _SIGNS[match[2]] + (RELATIVE if match[3] else 0)) % OCTAVE


def find_scale(score: Score) -> int | None:
    """The tonic, 0..11 from C, of the major scale that fits the notes best; None where all are drums.

    As Krumhansl and Schmuckler find a key: how long each key of the octave sounds, correlated with the weights that it
    has in each major and minor key. A minor key counts as the major one with the same notes. Of two that fit as well it
    is the lower.
    """
    tracks = [track for track in score.tracks if len(track) and not track.is_drum]
    if not tracks:
        return None
    pitch = np.concatenate([track.pitch for track in tracks])
    length = np.minimum(np.concatenate([track.duration for track in tracks]), LONGEST * score.ticks_per_beat)
    sounds = np.bincount(pitch % OCTAVE, length, OCTAVE)
    rotation = (np.arange(OCTAVE)[:, None] - np.arange(OCTAVE)) % OCTAVE
    # Both kinds have the same weights in another order, so sums of products order keys as correlations would.
    major, minor = sounds @ np.array(MAJOR)[rotation], sounds @ np.array(MINOR)[rotation]
    return int(np.maximum(major, np.roll(minor, RELATIVE)).argmax())


def to_scale(score: Score, scale: int) -> Score:
    """The score moved so that the scale found in it is that one, but for drums; as it is where it has no room."""
    found = find_scale(score)
    if found is None:
        return score
    return moved(score, (scale - found + OCTAVE // 2) % OCTAVE - OCTAVE // 2)
