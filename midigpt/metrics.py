"""What can be measured in a piece of music: a number or a histogram each, by published formulas.

Every function takes a Score that has notes. Where the pitch is measured, drums are left out, as MusPy does (Dong et
al., "MusPy: a toolkit for symbolic music generation", 2020); where only time is, they count. FEATURES lists what
midigpt.judge compares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from midigpt.score import IntArray, Score

FloatArray = NDArray[np.float64]

MAJOR = np.array([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1], bool)
SLOTS = 4  # of the groove's grid to the beat: sixteenths
DRUMS = 128  # what a drum's key is counted from, so that it is no other part's pitch
WIDEST = 13  # semitones; wider intervals count here
# Lengths in beats by which times are counted, each time as the nearest by ratio: triplets and dotted ones among them.
NOTE_VALUES = (
    *("1/12", "1/8", "1/6", "1/4", "1/3", "3/8", "1/2", "2/3", "3/4"),
    *("1", "4/3", "3/2", "2", "3", "4", "6", "8"),
)
BARS_APART = 8  # of the bar similarity
MOTIF, PHRASE = 4, 8  # notes that may come again, counted by the steps between them


# --- the notes of all parts together ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Notes:
    """Arrays of shape (N,), ordered by onset, then pitch; ticks."""

    onset: IntArray
    end: IntArray
    pitch: IntArray  # MIDI note number; of drums DRUMS more


def _notes(score: Score, with_drums: bool = False) -> _Notes:
    tracks = [track for track in score.tracks if with_drums or not track.is_drum]
    nothing = np.empty(0, np.int64)
    onset, duration, pitch = (
        np.concatenate([nothing, *(getattr(track, column) for track in tracks)])
        for column in ("onset", "duration", "pitch")
    )
    is_drum = np.repeat([track.is_drum for track in tracks], [len(track) for track in tracks])
    pitch = pitch + DRUMS * is_drum.astype(np.int64)
    order = np.lexsort((pitch, onset))
    return _Notes(onset[order], (onset + duration)[order], pitch[order])


def _upper_line(score: Score) -> tuple[IntArray, IntArray]:
    """(L,) The onsets, and (L,) of each its highest pitch; of a piece of drums alone its highest key."""
    notes = _notes(score, with_drums=all(track.is_drum for track in score.tracks))
    last = np.append(np.diff(notes.onset) > 0, True)[: len(notes.onset)]  # of each onset; pitches ascend
    return notes.onset[last], notes.pitch[last]


def _covered(onset: IntArray, end: IntArray) -> int:
    """The length of the union of intervals, which are ordered by onset."""
    before = np.append(0, np.maximum.accumulate(end)[:-1])
    return int(np.maximum(end - np.maximum(onset, before), 0).sum())


def _bar(score: Score) -> float:
    """Ticks in a bar."""
    return score.ticks_per_beat * 4 * score.meter[0] / score.meter[1]


# --- numbers ---------------------------------------------------------------------------------------------


def pitch_class_entropy(score: Score) -> float:
    """Entropy of the histogram of pitch classes, bits, 0..3.58; nan without pitched notes.

    Wu and Yang, "The Jazz Transformer on the front line", 2020, of the whole piece, as MusPy has it.
    """
    count = np.bincount(_notes(score).pitch % 12, minlength=12)
    if not count.any():
        return float("nan")
    share = count[count > 0] / count.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0  # no minus zero


def scale_consistency(score: Score) -> float:
    """The share of notes in the major or minor scale that holds the most; nan without pitched notes.

    Mogren, "C-RNN-GAN", 2016, as MusPy has it. A natural minor scale has the notes of its relative major.
    """
    count = np.bincount(_notes(score).pitch % 12, minlength=12)
    if not count.any():
        return float("nan")
    best = max(count[np.roll(MAJOR, root)].sum() for root in range(12))
    return float(best / count.sum())


def pitch_range(score: Score) -> float:
    """Semitones from the lowest to the highest note; nan without pitched notes. Yang and Lerch, 2020; MusPy."""
    pitch = _notes(score).pitch
    return float(np.ptp(pitch)) if len(pitch) else float("nan")


def mean_interval(score: Score) -> float:
    """Mean size of the steps of the upper line (the highest note of each onset), semitones; nan without steps.

    Yang and Lerch, "On the evaluation of generative models in music", 2020: average pitch interval.
    """
    step = np.diff(_upper_line(score)[1])
    return float(np.abs(step).mean()) if len(step) else float("nan")


def polyphony(score: Score) -> float:
    """Mean number of pitches that sound together while any does; nan without pitched notes. MusPy."""
    notes = _notes(score)
    if not len(notes.onset):
        return float("nan")
    lane = notes.pitch * (int(notes.end.max()) + 1)  # one pitch after the other on one time line
    order = np.argsort(lane + notes.onset, kind="stable")
    sounding = _covered((lane + notes.onset)[order], (lane + notes.end)[order])
    return sounding / _covered(notes.onset, notes.end)


def note_density(score: Score) -> float:
    """Notes per beat between the first onset and the last end. Yang and Lerch, 2020, have it per bar."""
    notes = _notes(score, with_drums=True)
    return len(notes.onset) * score.ticks_per_beat / int(notes.end.max() - notes.onset.min())


def groove_consistency(score: Score) -> float:
    """How alike neighbouring bars are in which sixteenths have onsets: 1 less the share that differs.

    Wu and Yang, 2020, in MusPy's form (neighbours, not all pairs). Bars count from that of the first onset to that
    of the last; nan where that is one.
    """
    slot = np.floor(_notes(score, with_drums=True).onset * SLOTS / score.ticks_per_beat + 0.5).astype(np.int64)
    bar = max(round(_bar(score) * SLOTS / score.ticks_per_beat), 1)  # 3/32 and the like have no whole sixteenths
    slot -= slot.min() // bar * bar
    bars = int(slot.max()) // bar + 1
    if bars < 2:
        return float("nan")
    has_onset = np.zeros(bars * bar, bool)
    has_onset[slot] = True
    groove = has_onset.reshape(bars, bar)
    return 1 - float((groove[1:] != groove[:-1]).mean())


def repetition(score: Score, steps: int) -> float:
    """The share of passages of so many steps of the upper line that were there before, in any key.

    A step is an interval and the time to the next onset. 1 - distinct passages / all: Welleck et al., "Neural text
    generation with unlikelihood training", 2020 (seq-rep-n), there of words. nan where there is no passage.
    """
    onset, pitch = _upper_line(score)
    if len(onset) <= steps:
        return float("nan")
    step = np.diff(onset) * 256 + np.diff(pitch) + 128
    passages = sliding_window_view(step, steps)
    return 1 - len(np.unique(passages, axis=0)) / len(passages)


def repeated_motifs(score: Score) -> float:
    """repetition() of MOTIF steps."""
    return repetition(score, MOTIF)


def repeated_phrases(score: Score) -> float:
    """repetition() of PHRASE steps."""
    return repetition(score, PHRASE)


# --- histograms ------------------------------------------------------------------------------------------


def interval_histogram(score: Score) -> FloatArray:
    """(2 * WIDEST + 1,) Shares of the steps of the upper line, from -WIDEST to WIDEST semitones.

    After Mogren, 2016, and Yang and Lerch, 2020, who have the mean.
    """
    step = np.diff(_upper_line(score)[1]).clip(-WIDEST, WIDEST) + WIDEST
    return _shares(step, 2 * WIDEST + 1)


def length_histogram(score: Score) -> FloatArray:
    """(len(NOTE_VALUES),) Shares of the notes by length. Yang and Lerch, 2020: note length histogram."""
    notes = _notes(score, with_drums=True)
    return _by_note_value(notes.end - notes.onset, score.ticks_per_beat)


def onset_histogram(score: Score) -> FloatArray:
    """(len(NOTE_VALUES),) Shares of the times from each onset to the next. Yang and Lerch, 2020, have the mean."""
    onset = np.unique(_notes(score, with_drums=True).onset)
    return _by_note_value(np.diff(onset), score.ticks_per_beat)


def bar_similarity(score: Score) -> FloatArray:
    """(BARS_APART,) How alike bars 1, 2, ... bars apart are: the notes they share of all that either has.

    Notes are the same that have place in the bar, pitch and length in common. Means over all pairs of bars that are
    not empty; 0 where there is no pair. Yu et al., "Museformer", 2022: the similarity behind their similarity error.
    """
    notes = _notes(score, with_drums=True)
    bar = (notes.onset // _bar(score)).astype(np.int64)
    what = np.stack([notes.onset - np.ceil(bar * _bar(score)), notes.pitch, notes.end - notes.onset], axis=1)
    kind = np.unique(what, axis=0, return_inverse=True)[1].reshape(-1)
    bar -= bar.min()
    notes_of = np.unique(bar * len(kind) + kind)  # each once: two parts in unison
    bar, kind = np.divmod(notes_of, len(kind))
    bars, inverse, size = np.unique(bar, return_inverse=True, return_counts=True)
    likeness = np.zeros(BARS_APART)
    for row, apart in enumerate(range(1, BARS_APART + 1)):
        is_again = np.isin(notes_of + apart * len(what), notes_of)
        shared = np.bincount(inverse, is_again, len(bars))
        other = np.searchsorted(bars, bars + apart).clip(max=len(bars) - 1)
        is_pair = bars[other] == bars + apart
        either = size + size[other] - shared
        likeness[row] = (shared / either)[is_pair].mean() if is_pair.any() else 0.0
    return likeness


def _by_note_value(ticks: IntArray, ticks_per_beat: int) -> FloatArray:
    values = np.log([float(Fraction(value)) for value in NOTE_VALUES])
    borders = (values[1:] + values[:-1]) / 2
    return _shares(np.searchsorted(borders, np.log(ticks / ticks_per_beat)), len(values))


def _shares(place: IntArray, bins: int) -> FloatArray:
    return np.bincount(place, minlength=bins) / max(len(place), 1)


# --- all of them -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Feature:
    """Something to compare pieces by."""

    name: str
    unit: str
    measure: Callable[[Score], float | FloatArray]
    finest: float  # of a density over it: differences that are smaller mean nothing
    source: str
    of_drums: bool = True  # whether it is worth measuring in drums
    bins: tuple[str, ...] = ()  # what a histogram counts; a number has none


_APART = tuple(str(bars) for bars in range(1, BARS_APART + 1))
_INTERVALS = tuple(f"{step:+d}" if step else "0" for step in range(-WIDEST, WIDEST + 1))
FEATURES = (
    Feature("pitch-class entropy", "bits", pitch_class_entropy, 0.05, "Wu & Yang 2020, MusPy", of_drums=False),
    Feature("scale consistency", "share", scale_consistency, 0.01, "Mogren 2016, MusPy", of_drums=False),
    Feature("pitch range", "semitones", pitch_range, 0.5, "Yang & Lerch 2020, MusPy", of_drums=False),
    Feature("interval size", "semitones", mean_interval, 0.1, "Yang & Lerch 2020", of_drums=False),
    Feature("polyphony", "pitches", polyphony, 0.05, "MusPy", of_drums=False),
    Feature("note density", "notes a beat", note_density, 0.05, "Yang & Lerch 2020"),
    Feature("groove consistency", "share", groove_consistency, 0.01, "Wu & Yang 2020, MusPy"),
    Feature("repeated motifs", "share", repeated_motifs, 0.02, "Welleck et al. 2020"),
    Feature("repeated phrases", "share", repeated_phrases, 0.02, "Welleck et al. 2020"),
    Feature("bar similarity", "bars apart", bar_similarity, 0.02, "Yu et al. 2022", bins=_APART),
    Feature("intervals", "semitones", interval_histogram, 0.02, "Mogren 2016", of_drums=False, bins=_INTERVALS),
    Feature("note lengths", "beats", length_histogram, 0.02, "Yang & Lerch 2020", bins=NOTE_VALUES),
    Feature("times between onsets", "beats", onset_histogram, 0.02, "Yang & Lerch 2020", bins=NOTE_VALUES),
)
