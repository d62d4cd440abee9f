"""What is measured in pieces, and how sets of pieces are compared. MusPy and what follows by hand are the oracles."""

from collections.abc import Callable
from pathlib import Path

import muspy
import numpy as np
import pytest

from midigpt import likeness, metrics
from midigpt.likeness import Set, compare, density, divergence, make_axis, overlap, place
from midigpt.metrics import FEATURES, FloatArray
from midigpt.midi import load_midi
from midigpt.normal import normalise
from midigpt.score import Score, Track, track_from_notes
from tests.conftest import melody, midi_files


def to_muspy(score: Score, per_beat: int | None = None) -> muspy.Music:
    """The score; or its onsets alone, on a grid of so many steps to the beat."""

    def note(onset: int, duration: int, pitch: int, velocity: int) -> muspy.Note:
        if per_beat:
            onset, duration = int(onset * per_beat / score.ticks_per_beat + 0.5), 0
        return muspy.Note(onset, pitch, duration, velocity)

    def track(of: Track) -> muspy.Track:
        rows = zip(*(a.tolist() for a in (of.onset, of.duration, of.pitch, of.velocity)), strict=True)
        return muspy.Track(of.program, of.is_drum, notes=[note(*row) for row in rows])

    return muspy.Music(resolution=per_beat or score.ticks_per_beat, tracks=[track(of) for of in score.tracks])


def piece(rows: list[tuple[int, int, int]], is_drum: bool = False) -> Score:
    """Of (onset, duration, pitch) in sixteenths, in 4/4."""
    return Score(4, (track_from_notes([(*row, 80) for row in rows], is_drum=is_drum),))


# --- beside MusPy ----------------------------------------------------------------------------------------


def check_against_muspy(score: Score) -> None:
    music = to_muspy(score)
    for ours in (metrics.pitch_class_entropy, metrics.scale_consistency, metrics.pitch_range, metrics.polyphony):
        theirs = getattr(muspy, ours.__name__)(music)
        if ours is metrics.pitch_range and all(track.is_drum for track in score.tracks):
            theirs = np.nan  # where MusPy says -127
        assert ours(score) == pytest.approx(theirs, rel=1e-12, nan_ok=True), ours.__name__
    # Of onsets alone: MusPy counts bars to the last note's end, and an empty one more where that is on a bar line. It
    # also counts empty bars before the first note, so the pieces begin in their first bar.
    numerator, denominator = score.meter
    if 4 * numerator % denominator == 0:
        grooves = muspy.groove_consistency(to_muspy(score, metrics.SLOTS), 4 * metrics.SLOTS * numerator // denominator)
        assert metrics.groove_consistency(score) == pytest.approx(grooves, rel=1e-12, nan_ok=True)


def test_metrics_equal_those_of_muspy_on_made_pieces() -> None:
    for seed in range(4):
        tracks = melody(seed).tracks + melody(seed + 9, 60, program=5).tracks + melody(3, 30, is_drum=True).tracks
        check_against_muspy(Score(480, tracks, meter=(3, 4)))
        check_against_muspy(Score(480, tracks[:1]))
    check_against_muspy(melody(3, is_drum=True))
    for key in range(12):  # each scale is the best of one of them
        for scale in ([0, 2, 4, 5, 7, 9, 11], [0, 2, 3, 5, 7, 8, 10], [0, 1, 2, 3]):
            check_against_muspy(piece([(n, 1, 60 + key + step) for n, step in enumerate(scale)]))


def test_metrics_equal_those_of_muspy_on_real_files(corpus: Callable[[str], Path]) -> None:
    measured = 0
    for path in midi_files(corpus("mini"))[:12]:
        score = normalise(load_midi(path))
        bar = score.ticks_per_beat * 4 * score.meter[0] // score.meter[1]
        if min(int(track.onset.min()) for track in score.tracks) < bar:
            check_against_muspy(score)
            measured += 1
    assert measured >= 5


# --- by hand ---------------------------------------------------------------------------------------------


def test_interval_size_is_of_the_upper_line() -> None:
    score = piece([(0, 4, 60), (0, 4, 48), (4, 4, 64), (8, 4, 62), (8, 4, 50)])
    assert metrics.mean_interval(score) == (4 + 2) / 2
    histogram = metrics.interval_histogram(score)
    assert histogram[metrics.WIDEST + 4] == histogram[metrics.WIDEST - 2] == 0.5
    assert metrics.interval_histogram(piece([(0, 1, 10), (1, 1, 100)]))[-1] == 1  # wider than is told apart


def test_of_several_parts_the_upper_line_is_that_of_the_pitched_ones() -> None:
    rows = [(0, 4, 60), (4, 4, 64), (12, 4, 62)]
    drums = piece([(onset, 1, 82) for onset in range(0, 16, 2)], is_drum=True).tracks
    tune, both = piece(rows), Score(4, piece(rows).tracks + piece([(4, 4, 40)]).tracks + drums)
    for measure in (metrics.mean_interval, metrics.interval_histogram, metrics.repeated_motifs):
        assert np.array_equal(measure(both), measure(tune), equal_nan=True)
    assert metrics.onset_histogram(both)[metrics.NOTE_VALUES.index("1/2")] == 1  # in time, drums count
    assert metrics.polyphony(both) == (3 + 1) / 3
    assert metrics.note_density(both) == 12 / 4


def test_note_density_is_of_the_time_from_the_first_note_to_the_last_end() -> None:
    assert metrics.note_density(piece([(16, 4, 60), (20, 4, 62), (24, 8, 64)])) == 3 / 4


def test_groove_of_bars_that_differ_in_two_of_sixteen_places() -> None:
    one, other = [0, 4, 8, 12], [0, 4, 8, 14]
    bars = [(16 * bar + place, 1, 60) for bar, places in enumerate((one, one, other)) for place in places]
    assert metrics.groove_consistency(piece(bars)) == 1 - (0 + 2 / 16) / 2
    later = [(onset + 160, duration, pitch) for onset, duration, pitch in bars]
    assert metrics.groove_consistency(piece(later)) == 1 - (0 + 2 / 16) / 2  # empty bars before are not music
    assert np.isnan(metrics.groove_consistency(piece([(0, 1, 60), (4, 1, 60)])))


def test_repetition_is_found_in_any_key() -> None:
    tune = [0, 2, 4, 5, 7, 5, 3, 1, 0]
    twice = [(onset, 1, 60 + pitch) for onset, pitch in enumerate(tune)]
    twice += [(onset + 9, 1, 67 + pitch) for onset, pitch in enumerate(tune)]
    # 17 steps hold 14 passages of 4; the second time, the tune's 5 are there before.
    assert metrics.repeated_motifs(piece(twice)) == pytest.approx(5 / 14)
    assert metrics.repeated_phrases(piece(twice)) == pytest.approx(1 / 10)
    slower = twice[:9] + [(9 + 2 * n, 1, pitch) for n, (_, _, pitch) in enumerate(twice[9:])]
    assert metrics.repeated_motifs(piece(slower)) == 0
    assert np.isnan(metrics.repeated_motifs(piece(twice[:4])))


def test_bars_are_alike_by_the_notes_they_share() -> None:
    a = [(0, 4, 60), (4, 4, 62), (8, 8, 64)]
    b = [(0, 4, 60), (4, 4, 65)]
    rows = [(16 * bar + onset, d, p) for bar, notes in enumerate((a, b, a, b)) for onset, d, p in notes]
    found = metrics.bar_similarity(piece(rows))
    assert found[:4].tolist() == [pytest.approx(1 / 4), 1, pytest.approx(1 / 4), 0]
    tracks = piece([(0, 4, 36)]).tracks + piece([(16, 4, 36)], is_drum=True).tracks
    assert metrics.bar_similarity(Score(4, tracks))[0] == 0  # a low C is no bass drum


def test_lengths_and_waits_are_counted_by_the_nearest_note_value() -> None:
    score = Score(480, (track_from_notes([(0, 470, 60, 80), (480, 155, 62, 80), (640, 5000, 64, 80)]),))
    lengths, waits = metrics.length_histogram(score), metrics.onset_histogram(score)
    of = metrics.NOTE_VALUES.index
    assert lengths[of("1")] == lengths[of("1/3")] == lengths[of("8")] == pytest.approx(1 / 3)
    assert waits[of("1")] == waits[of("1/3")] == 0.5


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_every_feature_is_measured_in_whatever_has_notes(feature: metrics.Feature) -> None:
    scores = [piece([(0, 1, 60)]), piece([(0, 1, 60)], is_drum=True), piece([(5, 1, 0), (5, 900, 127)]), melody(1)]
    for score in scores:
        value = np.asarray(feature.measure(score))
        assert value.shape == ((len(feature.bins),) if feature.bins else ())
    assert not np.isnan(value).any()
    assert (value >= 0).all()


# --- how like two sets are -------------------------------------------------------------------------------


def normal(mean: float, deviation: float, count: int, seed: int) -> Set:
    return Set(np.random.default_rng(seed).normal(mean, deviation, count), np.arange(count))


def like(real: Set, other: Set, finest: float = 0.01) -> likeness.Likeness:
    return compare(real, {"other": other}, finest, np.random.default_rng(0))["other"]


def test_overlap_and_divergence_are_those_of_the_two_bells() -> None:
    real, count = normal(0, 1, 4000, 0), 4000
    shifted = like(real, normal(1, 1, count, 1))
    assert shifted.overlap == pytest.approx(0.617, abs=0.04)  # 2 * Phi(-1/2), a little more by the smoothing
    assert shifted.divergence == pytest.approx(0.5 / np.log(2), abs=0.1)
    same = like(real, normal(0, 1, count, 2))
    assert same.overlap > 0.96 and 0 <= same.divergence < 0.01
    wide = like(real, normal(0, 2, count, 4))
    assert wide.divergence == pytest.approx((np.log(2) + 1 / 8 - 1 / 2) / np.log(2), abs=0.05)  # from the real set
    far = like(real, normal(50, 1, count, 3))
    assert far.overlap < 0.01 and 5 < far.divergence < 50  # and not infinite


def test_sets_of_one_value_are_compared() -> None:
    ones = Set(np.ones(20), np.arange(20))
    assert like(ones, ones).overlap == pytest.approx(1)
    assert like(ones, Set(np.full(20, 2.0), np.arange(20))).overlap < 0.01


def test_histograms_are_compared_by_distances_between_pieces() -> None:
    rng = np.random.default_rng(0)

    def histograms(alpha: list[float], count: int) -> Set:
        return Set(rng.dirichlet(alpha, count), np.arange(count))

    real, same = histograms([4, 2, 1], 60), histograms([4, 2, 1], 50)
    other = histograms([1, 2, 4], 50)
    assert like(real, same).overlap > 0.85 > 0.6 > like(real, other).overlap
    pairs = [(i, j) for i in range(60) for j in range(50)]
    distances = np.array([np.linalg.norm(real.values[i] - other.values[j]) for i, j in pairs])
    within = np.array([np.linalg.norm(real.values[i] - real.values[j]) for i in range(60) for j in range(i)])
    axis = make_axis(within, 60, 0.01)
    p, q = (density(axis, place(axis, sample)) for sample in (within, distances))
    found = like(real, other)
    assert found.overlap == pytest.approx(overlap(p, q))
    assert found.divergence == pytest.approx(divergence(p, q, 60, 50))


def test_a_distance_weighs_as_much_as_both_its_pieces() -> None:
    w, v = np.array([0.0, 1.0, 3.0]), np.array([2.0, 5.0])
    real, other = (Set(np.eye(3)[: len(weights)], np.arange(len(weights))) for weights in (w, v))
    assert sorted(likeness._sample(real, None).weights(w, w)) == [0, 0, 3]
    assert sorted(likeness._sample(real, other).weights(w, v)) == [0, 0, 2, 5, 6, 15]


def test_pieces_of_one_song_count_as_one_for_the_error() -> None:
    def of_songs(values: FloatArray, voices: int) -> Set:
        return Set(np.repeat(values, voices), np.repeat(np.arange(len(values)), voices))

    real, takes = normal(0, 1, 20, 0), normal(0.5, 1, 80, 1)
    alone, choir = like(real, takes), like(of_songs(real.values, 4), takes)
    as_if = like(Set(np.repeat(real.values, 4), np.arange(80)), takes)
    assert choir.overlap_error == pytest.approx(alone.overlap_error, rel=0.35)
    assert as_if.overlap_error < 0.8 * choir.overlap_error
    assert like(Set(real.values, np.arange(20) % 3), takes).overlap_error is None
