"""The language: round trips over arbitrary and real scores, the traps of earlier systems, the errors."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midigpt.header import TEMPOS, LanguageError, nearest_tempo, read_header, split_documents
from midigpt.language import Language, decode, encode, encode_batch
from midigpt.midi import read_midi
from midigpt.normal import GRID, normalise
from midigpt.score import Score, Track, track_from_notes
from tests.conftest import PROJECT, midi_files

notes = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(0, 900), st.integers(0, 127), st.integers(1, 127)),
    min_size=1,
    max_size=40,
)
pedals = st.lists(st.integers(0, 4000), max_size=8, unique=True).map(
    lambda ticks: np.array(sorted(ticks)[: len(ticks) // 2 * 2], np.int64).reshape(-1, 2)
)
tracks = st.builds(
    lambda rows, program, is_drum, pedal: replace(track_from_notes(rows, program, is_drum), pedal=pedal),
    notes,
    st.integers(0, 127),
    st.booleans(),
    pedals,
)
scores = st.builds(
    Score,
    st.sampled_from([24, 96, 100, 480, 1024]),
    st.lists(tracks, min_size=1, max_size=3).map(tuple),
    st.floats(15, 400),
    st.tuples(st.integers(1, 12), st.sampled_from([2, 4, 8, 16])),
)


def texts_of(score: Score) -> list[str]:
    return [document.text for document in encode(score)]


def one(*rows: tuple[int, int, int, int], is_drum: bool = False, ticks_per_beat: int = GRID) -> Score:
    """A score of one track from (onset, duration, pitch, velocity) rows."""
    return Score(ticks_per_beat, (track_from_notes(list(rows), is_drum=is_drum),))


def lines_of(score: Score) -> str:
    (document,) = encode(score)
    return document.body


def rows_of(score: Score) -> list[tuple[int, ...]]:
    (track,) = score.tracks
    columns = track.onset, track.duration, track.pitch, track.velocity
    return list(zip(*(column.tolist() for column in columns), strict=True))


# --- round trips -----------------------------------------------------------------------------------------


@given(scores)
def test_decode_undoes_encode_up_to_normalising(score: Score) -> None:
    normal = normalise(score)
    plain = replace(normal, tracks=tuple(replace(t, program=0) if t.is_drum else t for t in normal.tracks))
    assert decode(texts_of(score)) == plain


@given(scores)
def test_normalising_twice_changes_nothing(score: Score) -> None:
    assert normalise(normalise(score)) == normalise(score)


@given(scores)
def test_encode_writes_normal_form(score: Score) -> None:
    texts = texts_of(score)
    assert texts_of(decode(texts)) == texts


def with_room(strategy: st.SearchStrategy[Score]) -> st.SearchStrategy[Score]:
    """Scores whose notes can be moved up and down."""
    return strategy.map(
        lambda score: replace(score, tracks=tuple(replace(t, pitch=30 + t.pitch // 3) for t in score.tracks))
    )


def draw_moved(score: Score, data: st.DataObject) -> tuple[Score, int]:
    """The score moved by some keys, drums staying, and by how many."""
    pitched = [pitch for track in score.tracks if not track.is_drum for pitch in track.pitch.tolist()]
    k = data.draw(st.integers(-min(pitched, default=0), 127 - max(pitched, default=127)))
    return replace(
        score, tracks=tuple(t if t.is_drum else replace(t, pitch=t.pitch + k) for t in score.tracks)
    ), k


@given(with_room(scores), st.data())
def test_a_transposed_piece_gives_the_same_lines(score: Score, data: st.DataObject) -> None:
    moved, k = draw_moved(score, data)
    for before, after in zip(encode(score), encode(moved), strict=True):
        assert after.body == before.body
        old, new = read_header(before.header), read_header(after.header)
        assert new == replace(old, key=None if old.key is None else old.key + k)


lengths = st.tuples(st.integers(1, 100), st.sampled_from([1, 2, 3, 4, 5, 7, 12, 24])).map(lambda t: f"{t[0]}/{t[1]}")
text_notes = st.builds(
    lambda interval, sign, velocity, length: f"{interval}{sign}{velocity}" + (f":{length}" if length else ""),
    st.integers(0, 3),
    st.sampled_from("+-"),
    st.integers(1, 16),
    st.none() | lengths,
)
lines = st.builds(lambda ns, time: "|".join([*ns, time]), st.lists(text_notes, max_size=4), lengths)


@given(st.lists(lines, max_size=6))
def test_any_text_of_the_grammar_is_read(body: list[str]) -> None:
    score = decode(["# program=5 key=64\n" + "".join(line + "\n" for line in body)])
    assert score.notes == sum(line.count("|") for line in body)
    texts = texts_of(score)
    assert texts_of(decode(texts)) == texts


def test_real_files_round_trip(corpus: Callable[[str], Path]) -> None:
    files = midi_files(corpus("mini"))
    assert len(files) == 150
    for path in files:
        score = read_midi(path)
        texts = texts_of(score)
        assert decode(texts) == normalise(score), path
        assert texts_of(decode(texts)) == texts, path


# --- the specification -----------------------------------------------------------------------------------


def test_the_worked_example_of_the_specification() -> None:
    specification = (PROJECT / "docs" / "language.md").read_text()
    table = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", specification, re.M)
    (text,) = re.findall(r"As text:\n\n```midi-text\n(.*?)```", specification, re.S)
    rows = [(int(on), int(length), int(pitch), int(velocity)) for on, length, pitch, velocity in table]
    assert len(rows) >= 6
    score = replace(one(*rows, ticks_per_beat=480), tempo_bpm=90.0, meter=(3, 4))
    (document,) = encode(score, language=Language())
    assert document.text == text


@given(st.lists(scores, min_size=1, max_size=4))
def test_tracks_and_scores_together_are_written_as_each_alone(several: list[Score]) -> None:
    together = [[document.text for document in documents] for documents in encode_batch(several)]
    assert together == [
        [text for track in score.tracks for text in texts_of(replace(score, tracks=(track,)))] for score in several
    ]


def test_a_chord_of_equal_length_is_written_plainly() -> None:
    assert lines_of(one((0, 24, 60, 80), (0, 24, 64, 80), (0, 24, 67, 72))) == "0+10|4+10|3+9|1/1\n"


def test_only_other_lengths_than_the_lines_are_written() -> None:
    score = one((0, 48, 60, 80), (0, 24, 64, 80), (24, 12, 62, 80))
    assert lines_of(score) == "0+10:2/1|4+10|1/1\n2+10|1/2\n"


def test_a_document_ends_with_its_longest_note() -> None:
    assert lines_of(one((0, 12, 60, 80), (0, 36, 64, 80))) == "0+10:1/2|4+10|3/2\n"


def test_a_prompt_runs_to_its_cut() -> None:
    (document,) = encode(one((0, 12, 60, 80)), end=72)
    assert document.body == "0+10:1/2|3/1\n"


def test_leading_silence_is_a_rest_line() -> None:
    assert lines_of(one((36, 12, 60, 80))) == "3/2\n0+10|1/2\n"


def test_rests_are_read_anywhere() -> None:
    assert rows_of(decode(["1/2\n0+10|1/1\n1/4\n1/4\n0+10|1/1\n3/1\n"])) == [(12, 24, 60, 76), (48, 24, 60, 76)]


def test_halves_are_rounded_up_on_the_absolute_clock() -> None:
    score = one((10, 20, 60, 80), (30, 20, 62, 80), (50, 20, 64, 80), ticks_per_beat=480)
    assert [row[:2] for row in rows_of(normalise(score))] == [(1, 1), (2, 1), (3, 1)]


def test_equal_onset_and_pitch_are_joined() -> None:
    assert rows_of(normalise(one((0, 24, 60, 40), (0, 12, 60, 100)))) == [(0, 24, 60, 100)]


def test_a_note_is_cut_where_its_pitch_starts_again() -> None:
    assert rows_of(normalise(one((0, 48, 60, 44), (24, 48, 60, 44)))) == [(0, 24, 60, 44), (24, 48, 60, 44)]


def test_the_pedal_lengthens_to_its_release() -> None:
    track = replace(track_from_notes([(0, 12, 60, 44), (40, 8, 62, 44)]), pedal=np.array([[6, 36]]))
    assert [row[1] for row in rows_of(normalise(Score(GRID, (track,))))] == [36, 8]


def test_every_velocity_has_a_bin_and_none_is_lost() -> None:
    for velocity in range(1, 128):
        ((_, _, _, read),) = rows_of(decode(texts_of(one((0, 24, 60, velocity)))))
        assert abs(read - velocity) <= 4 and 1 <= read <= 127


def test_tempos_are_a_rising_list_and_the_nearest_is_taken() -> None:
    assert list(TEMPOS) == sorted(set(TEMPOS))
    assert [nearest_tempo(tempo) for tempo in (1, 60, 121, 119.9, 128, 1000)] == [20, 60, 120, 120, 130, 320]


def test_a_finer_clock_is_used_where_the_text_needs_it() -> None:
    score = decode(["0+10|1/7\n0+10|1/1\n"])
    assert score.ticks_per_beat == 168
    assert rows_of(score) == [(0, 24, 60, 76), (24, 168, 60, 76)]


def test_documents_become_the_tracks_of_one_score() -> None:
    score = decode(split_documents("# program=3 tempo=90\n0+10|1/1\n\n\n# program=d\n36=10|1/1\n"))
    assert [(track.program, track.is_drum) for track in score.tracks] == [(3, False), (0, True)]
    assert score.tempo_bpm == 90


# --- traps met in earlier systems ------------------------------------------------------------------------


def test_trap_velocity_1_is_a_note() -> None:
    assert lines_of(one((0, 24, 60, 1))) == "0+1|1/1\n"


def test_trap_velocity_0_and_unknown_text_are_errors_not_notes() -> None:
    for text in ("0+0|1/1", "0+17|1/1", "<pad>", "0", "x+10|1/1", "00+10|1/1"):
        with pytest.raises(LanguageError, match="line 1"):
            decode([text + "\n"])


def test_trap_a_repeated_pitch_stays_two_notes() -> None:
    score = one((0, 24, 60, 76), (24, 24, 60, 76))
    assert rows_of(decode(texts_of(score))) == rows_of(score)


def test_trap_long_rests_keep_their_length() -> None:
    score = one((0, 24, 60, 76), (24 * 5000, 24, 60, 76))
    assert lines_of(score) == "0+10:1/1|5000/1\n0+10|1/1\n"
    assert rows_of(decode(texts_of(score))) == rows_of(score)


def test_trap_lengths_and_onsets_do_not_drift() -> None:
    rows = [(i * 7, 1 + i * 3 % 50, i % 128, 76) for i in range(300)]
    score = normalise(one(*rows))
    assert rows_of(decode(texts_of(decode(texts_of(score))))) == rows_of(score)


def test_trap_drums_and_bass_on_one_key_stay_apart() -> None:
    bass, drum = track_from_notes([(0, 24, 36, 76)], 33), track_from_notes([(0, 24, 36, 76)], is_drum=True)
    score = Score(GRID, (bass, drum))
    assert decode(texts_of(score)) == score


def test_trap_drums_are_written_as_keys() -> None:
    (document,) = encode(one((0, 24, 36, 76), (0, 24, 42, 76), is_drum=True))
    assert document.text == "# program=d tempo=120 meter=4/4\n36=10|42=10|1/1\n"


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# key=100\n0+10|1/1\n40+10|1/1\n", "line 3: '40.10' leads to pitch 140, outside 0..127"),
        ("0+10|1/1\n0+10\n", "line 2: '0.10' does not end in a time"),
        ("0+10|0/1\n", "line 1: '0.10.0/1' does not end in a time"),
        ("0+10|1/0\n", "line 1"),
        ("# program=d\n36+10|1/1\n", "line 2: '36.10' is an interval, but drums are written as keys"),
        ("0@0+10|1/1\n", "line 1"),
        ("# program=128\n", "line 1: the header field 'program=128' is none of"),
        ("# colour=red\n", "line 1"),
        ("# key=60 key=61\n", "line 1: the header names key twice"),
        ("# meter=3/5\n", "line 1"),
        ("0+10|9999999999/1\n0+10|9999999999/1\n", "line 1: the piece is longer than a MIDI file can be"),
        ("0+10|1/9973\n", "units of 9973 of a beat have no common clock"),
        ("0+10|1/1\n\n0+10|1/1\n", "line 2"),
        ("# tempo=3\n0+10|1/1\n", "line 1: the header field 'tempo=3'"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(LanguageError, match=re.escape(message).replace(r"\.", ".")):
        decode([text])


def test_errors_name_the_document_where_there_are_several() -> None:
    with pytest.raises(LanguageError, match="document 2, line 3: velocity 99"):
        decode(["0+10|1/1\n", "# key=50\n0+10|1/1\n0+99|1/1\n"])


def test_a_piece_too_long_is_not_written() -> None:
    with pytest.raises(LanguageError, match="steps long"):
        encode(one((10**8, 1, 60, 80), ticks_per_beat=1))


def test_an_empty_document_has_no_notes() -> None:
    assert decode(["# program=1\n"]).notes == 0
    assert encode(Score(GRID, (Track(0, False, *(np.empty(0, np.int64),) * 4),))) == []
