"""Files with the same music are found, whatever was done to it; others are left alone."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midigpt import duplicates
from midigpt.duplicates import PRINT_GRAMS, Print, batch_prints, clusters, score_print
from midigpt.midi import read_midi
from midigpt.normal import normalise
from midigpt.score import Score, track_from_notes
from tests.conftest import midi_files


def song(seed: int, parts: int = 3, notes: int = 120) -> Score:
    """Parts that wander at random, with a chord now and then."""
    rng = random.Random(seed)
    tracks = []
    for _ in range(parts):
        rows, now = [], 0
        for _ in range(notes):
            pitch = rng.randrange(50, 75)
            rows += [(now, 12, pitch - below, 80) for below in rng.choice([(0,), (0,), (0, 4, 7)])]
            now += rng.choice([12, 12, 24, 6])
        tracks.append(track_from_notes(rows))
    return Score(24, tuple(tracks))


def moved(score: Score, keys: int = 0, factor: int = 1) -> Score:
    tracks = (replace(t, pitch=t.pitch + keys, onset=t.onset * factor) for t in score.tracks)
    return replace(score, tracks=tuple(tracks))


def first(score: Score, share: float) -> Score:
    rows = [list(zip(t.onset, t.duration, t.pitch, t.velocity, strict=True)) for t in score.tracks]
    return replace(score, tracks=tuple(track_from_notes(r[: int(share * len(r))]) for r in rows))


def labels(*scores: Score) -> list[int]:
    return clusters([score_print(score) for score in scores]).label.tolist()


def random_prints(count: int, seed: int) -> list[Print]:
    rng = np.random.default_rng(seed)
    return [np.unique(rng.integers(0, 2**30, PRINT_GRAMS, dtype=np.uint32)) for _ in range(count)]


def versions(print_: Print, count: int, share: float, seed: int) -> list[Print]:
    """Prints in which about so large a share of the grams was exchanged."""
    rng = np.random.default_rng(seed)
    fresh = rng.integers(0, 2**30, (count, len(print_)), dtype=np.uint32)
    return [np.unique(np.where(rng.random(len(print_)) < share, row, print_)) for row in fresh]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(-30, 30), st.integers(1, 4))
def test_key_and_tempo_and_the_order_of_parts_leave_the_print_as_it_is(seed: int, keys: int, factor: int) -> None:
    score = song(seed)
    other = moved(score, keys, factor)
    other = replace(other, tracks=other.tracks[::-1])
    assert len(score_print(score)) == PRINT_GRAMS
    assert score_print(score).tolist() == score_print(other).tolist()


def test_a_print_is_made_of_each_part_by_itself() -> None:
    alone = {gram for track in song(1, notes=30).tracks for gram in score_print(Score(24, (track,))).tolist()}
    assert score_print(song(1, notes=30)).tolist() == sorted(alone)


def test_hashes_are_the_same_on_every_machine() -> None:
    pitches = [60, 62, 64, 65, 60, 67, 65, 69, 60, 59]
    (print_,) = batch_prints([[track_from_notes([(12 * i, 12, pitch, 80) for i, pitch in enumerate(pitches)])]])
    assert print_.tolist() == [320317223, 3224190631, 3644642996]


def test_prints_of_a_batch_are_those_of_its_files() -> None:
    scores = [song(1), song(2, notes=20), song(3, notes=5), song(4, parts=1), song(5)]
    together = batch_prints([*(score.tracks for score in scores), ()])
    assert [one.tolist() for one in together] == [score_print(score).tolist() for score in scores] + [[]]


def test_of_chords_also_spread_ones_the_highest_note_counts_and_repeats_do_not() -> None:
    plain = [(24 * i, 12, pitch, 80) for i, pitch in enumerate(song(2).tracks[0].pitch[:60].tolist())]
    repeated = [(2 * onset + again, 6, pitch, 80) for onset, _, pitch, _ in plain for again in (0, 24)]
    spread = [(onset, 12, pitch - 1 - i % 7, 80) for i, (onset, _, pitch, _) in enumerate(plain)]
    spread += [(onset + 1, 12, pitch, 80) for onset, _, pitch, _ in plain]
    prints = [score_print(Score(24, (track_from_notes(rows),))).tolist() for rows in (plain, repeated, spread)]
    assert len(prints[0]) > 20
    assert prints[0] == prints[1] == prints[2]


@pytest.mark.parametrize("pattern", [[60], [60, 67], [60, 64, 67], [60, 64, 67, 64], [48, 55, 60, 52]])
def test_accompaniment_that_repeats_has_no_grams(pattern: list[int]) -> None:
    rows = [(6 * i, 6, pitch, 80) for i, pitch in enumerate(pattern * 50)]
    assert len(score_print(Score(24, (track_from_notes(rows),)))) == 0


def test_nothing_and_drums_and_a_few_notes_have_no_grams_and_stay_alone() -> None:
    drums = Score(24, (track_from_notes([(12 * i, 6, 35 + i % 7, 80) for i in range(100)], is_drum=True),))
    short = first(song(3, parts=1), 0.1)
    assert [len(score_print(score)) for score in (Score(24, ()), drums)] == [0, 0]
    assert labels(Score(24, ()), drums, short, Score(24, ()), drums, short) == [0, 1, 2, 3, 4, 5]
    assert clusters([]).label.tolist() == []


def test_what_was_done_to_a_song_does_not_hide_it() -> None:
    a, b, c = song(10), song(11), song(12)
    without_part = replace(a, tracks=a.tracks[1:])
    assert labels(a, b, c, moved(a, 5), first(a, 0.8), without_part, moved(b, -3, 2), first(moved(c, 1), 0.8)) == [
        *(0, 1, 2, 0, 0, 0, 1, 2)
    ]


def test_a_changed_song_is_found() -> None:
    a = song(20)
    rng = np.random.default_rng(0)
    tracks = (replace(t, pitch=np.where(rng.random(len(t)) < 0.1, t.pitch + 1, t.pitch)) for t in a.tracks)
    changed = normalise(replace(a, tracks=tuple(tracks)))
    assert labels(a, changed, song(21)) == [0, 0, 2]


def test_different_songs_stay_apart() -> None:
    assert labels(*map(song, range(60))) == list(range(60))


def test_the_nearest_file_and_the_share() -> None:
    base, other, alone = random_prints(3, 7)
    prints = [base, *versions(base, 1, 0.5, 8), *versions(base, 1, 0.1, 9), other, alone, other]
    found = clusters(prints)
    assert found.label.tolist() == [0, 0, 0, 3, 4, 3]
    assert found.nearest.tolist() == [2, 0, 0, 5, -1, 3]
    assert found.share.tolist()[3:] == [1.0, 0.0, 1.0]
    assert 0.3 < found.share[1] < 0.7 < found.share[2] < 1


def test_the_order_of_files_does_not_matter() -> None:
    prints = [p for i, base in enumerate(random_prints(40, 0)) for p in versions(base, i % 5 + 1, 0.4, i)]
    label = clusters(prints).label
    order = np.random.default_rng(1).permutation(len(prints))
    shuffled = np.empty(len(prints), np.int64)
    shuffled[order] = clusters([prints[i] for i in order.tolist()]).label
    together = label[:, None] == label
    assert np.array_equal(together, shuffled[:, None] == shuffled)
    assert len(np.unique(label)) == 40
    assert np.array_equal(label, clusters(prints).label)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_song_with_many_copies_is_one_cluster(share: float) -> None:
    popular, *others = random_prints(50, 2)
    prints = [*versions(popular, 400, share, 3), *others]
    assert clusters(prints).label.tolist() == [0] * 400 + list(range(400, 449))


def test_grams_that_all_songs_have_join_none(monkeypatch: pytest.MonkeyPatch) -> None:
    common = random_prints(1, 4)[0][:50]
    prints = [np.unique(np.append(own[50:], common)) for own in random_prints(duplicates.COMMON + 20, 5)]
    prints += versions(prints[0], 2, 0.3, 6)
    expected = [*range(duplicates.COMMON + 20), 0, 0]
    assert clusters(prints).label.tolist() == expected
    monkeypatch.setattr(duplicates, "COMMON", 10**6)
    assert set(clusters(prints).label.tolist()) == {0}, "the case is too easy"


def test_real_files(corpus: Callable[[str], Path]) -> None:
    """Every piece with 20 grams or more is found again, transposed and shortened, and nearly all by themselves."""
    scores = [normalise(read_midi(path)) for path in midi_files(corpus("mini"))]
    scores = [score for score in scores if len(score_print(score)) >= 20]
    others = [first(moved(score, 1), 0.8) for score in scores]
    label = clusters([score_print(score) for score in scores + others]).label
    assert len(scores) > 100
    assert np.mean(label[: len(scores)] == label[len(scores) :]) > 0.98
    assert len(np.unique(label)) > 0.95 * len(scores)
