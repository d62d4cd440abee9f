"""Which of a file's music becomes documents: instruments, drums, length; and all parts merged into one."""

from dataclasses import dataclass, replace

import numpy as np

from midigpt.files import UserError
from midigpt.general_midi import FAMILIES
from midigpt.normal import normalise
from midigpt.score import Score, Track

DRUMS = "drums"
_FAMILIES = [family.replace(" ", "-") for family in FAMILIES]


class FilteredError(ValueError):
    """A file that the filters leave out; the message says why."""


@dataclass(frozen=True)
class Filters:
    """What to keep. `str` of it says so in a line, the same for the same filters."""

    instruments: str = ""  # families and programs (0..127), with commas between; "" is all
    drums: bool = True
    min_notes: int = 1  # of a track
    max_seconds: float = 0  # of a file, by its first tempo; 0 is any
    merge: bool = False  # all pitched tracks of a file to one

    def __post_init__(self) -> None:
        """Raises UserError for an instrument that does not exist."""
        for word in self.instruments.split(",") if self.instruments else []:
            if word not in (*_FAMILIES, DRUMS, *map(str, range(128))):
                raise UserError(
                    f"--instruments {word!r} is no General MIDI family ({', '.join(_FAMILIES)}, {DRUMS}) and no program"
                    " (0..127)"
                )

    def __str__(self) -> str:
        words = {
            f"instruments={','.join(sorted(self.instruments.split(',')))}": self.instruments,
            "drums=off": not self.drums,
            f"min-notes={self.min_notes}": self.min_notes > 1,
            f"max-seconds={self.max_seconds:g}": self.max_seconds,
            "merge=on": self.merge,
        }
        return " ".join(word for word, is_set in words.items() if is_set)

    def apply(self, score: Score) -> Score:
        """The score as far as it is kept. Raises FilteredError where nothing is."""
        seconds = score.end / score.ticks_per_beat * 60 / score.tempo_bpm if self.max_seconds else 0
        if seconds > self.max_seconds:
            raise FilteredError(f"lasts {seconds:.0f} s, more than --max-seconds {self.max_seconds:g}")
        score = replace(score, tracks=tuple(track for track in score.tracks if self._is_kept(track)))
        if self.merge:
            score = _merged(score)
        score = replace(score, tracks=tuple(track for track in score.tracks if len(track) >= self.min_notes))
        if not score.tracks:
            raise FilteredError(f"has nothing that the filters keep ({self})")
        return score

    def _is_kept(self, track: Track) -> bool:
        if track.is_drum and not self.drums:
            return False
        if not self.instruments:
            return True
        names = {DRUMS} if track.is_drum else {_FAMILIES[track.program // 8], str(track.program)}
        return not names.isdisjoint(self.instruments.split(","))


def _merged(score: Score) -> Score:
    """The pitched tracks as one, with the program of the largest, in front of the drums; in normal form.

    Pedals hold each track's own notes, so they become lengths first.
    """
    normal = normalise(score)
    pitched = [track for track in normal.tracks if not track.is_drum]
    if not pitched:
        return normal
    onset, duration, pitch, velocity = (
        np.concatenate([getattr(track, column) for track in pitched])
        for column in ("onset", "duration", "pitch", "velocity")
    )
    order = np.lexsort((pitch, onset))
    program = max(pitched, key=len).program
    merged = Track(program, False, onset[order], duration[order], pitch[order], velocity[order])
    return replace(normal, tracks=(merged, *(track for track in normal.tracks if track.is_drum)))
