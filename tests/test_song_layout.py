"""The song layout: round trips over arbitrary and real scores, part marks, references within parts, the errors."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midigpt.header import LanguageError, read_header
from midigpt.language import Document, Language, check_document, decode, encode, encode_batch
from midigpt.midi import read_midi
from midigpt.normal import GRID, normalise
from midigpt.score import Score, Track, track_from_notes
from tests.conftest import PROJECT, midi_files
from tests.test_language import draw_moved, scores, tracks, with_room

SONG = Language("interval", "song")
few_programs = st.builds(lambda track, program: replace(track, program=program), tracks, st.sampled_from([0, 1, 33]))
songs = st.builds(
    lambda score, parts: replace(score, tracks=tuple(parts)), scores, st.lists(few_programs, min_size=1, max_size=6)
)


def song(score: Score) -> Document:
    (document,) = encode(score, language=SONG)
    return document


def read(*lines: str, header: str = "") -> Score:
    return decode([header + "".join(f"{line}\n" for line in lines)], SONG)


def part(*rows: tuple[int, int, int], program: int = 0, is_drum: bool = False) -> Track:
    """A track from (onset, duration, pitch) rows in grid steps, all in loudness bin 10."""
    return track_from_notes([(*row, 76) for row in rows], program, is_drum)


def pitches(score: Score) -> list[list[int]]:
    return [track.pitch.tolist() for track in score.tracks]


# --- round trips -----------------------------------------------------------------------------------------


@given(songs)
def test_decode_undoes_encode_up_to_normalising(score: Score) -> None:
    assert decode([song(score).text], SONG) == normalise(score, "song")


@given(songs)
def test_encode_writes_normal_form(score: Score) -> None:
    text = song(score).text
    assert song(decode([text], SONG)).text == text
    check_document(text, SONG)


@given(songs)
def test_both_layouts_hold_the_same_music(score: Score) -> None:
    tracks, together = normalise(score), normalise(score, "song")
    assert sorted(map(repr, tracks.tracks)) == sorted(map(repr, together.tracks))
    assert song(score).notes == tracks.notes == SONG.module.count_notes(song(score).body)
    by_program = [(track.is_drum, track.program) for track in together.tracks]
    assert by_program == sorted(by_program)
    assert normalise(together, "song") == together


@given(with_room(songs), st.data())
def test_a_transposed_song_gives_the_same_lines_and_drums_stay(score: Score, data: st.DataObject) -> None:
    moved, k = draw_moved(score, data)
    before, after = song(score), song(moved)
    assert after.body == before.body
    old, new = read_header(before.header), read_header(after.header)
    assert new == replace(old, key=None if old.key is None else old.key + k)
    assert (old.key is None) == all(track.is_drum for track in score.tracks)


@given(st.lists(songs, min_size=1, max_size=4))
def test_songs_together_are_written_as_each_alone(several: list[Score]) -> None:
    several.insert(1, Score(GRID, ()))
    assert encode_batch(several, language=SONG) == [encode(score, language=SONG) for score in several]


def test_real_files_round_trip(corpus: Callable[[str], Path]) -> None:
    files = midi_files(corpus("mini"))
    assert len(files) == 150
    for path in files:
        score = read_midi(path)
        text = song(score).text
        assert decode([text], SONG) == normalise(score, "song"), path
        assert song(decode([text], SONG)).text == text, path


marks = st.sampled_from(["", "0@", "0.2@", "33@", "d@", "d.2@"])


@given(st.lists(st.lists(st.tuples(marks, st.integers(0, 3)), max_size=5), max_size=6))
def test_any_text_of_the_grammar_is_read(lines: list[list[tuple[str, int]]]) -> None:
    body, last = [], ""
    for line in lines:
        written = []
        for mark, number in line:
            mark = mark or ("" if last else "0@")
            last = mark or last
            written.append(f"{mark}{36 + number}=9" if last.startswith("d") else f"{mark}{number}-9")
        body.append("|".join([*written, "1/3"]))
    score = read(*body)
    assert score.notes == sum(map(len, lines))
    normal = [document.text for document in encode(score, language=SONG)]
    assert [song(decode([text], SONG)).text for text in normal] == normal


# --- the specification -----------------------------------------------------------------------------------


def test_the_example_of_the_specification() -> None:
    specification = (PROJECT / "docs" / "language.md").read_text()
    (text,) = re.findall(r"basses and drums:\n\n```midi-text\n(.*?)```", specification, re.S)
    anchored = Language("anchored", "song")
    score = decode([text], anchored)
    assert encode(score, language=anchored)[0].text == text
    assert [(t.program, t.is_drum) for t in score.tracks] == [(0, False), (33, False), (33, False), (0, True)]
    assert pitches(score) == [[60, 64, 62, 65], [36, 43], [48], [36, 42, 42, 38, 42]]


def test_a_mark_stands_only_where_the_part_changes() -> None:
    bass, piano = part((0, 24, 40), (48, 24, 41), program=33), part((0, 24, 60), (24, 24, 62), (48, 24, 64))
    assert song(Score(GRID, (bass, piano))).body == "0@0+10|33@20-10|1/1\n0@2+10|1/1\n2+10|33@1+10|1/1\n"


def test_a_part_counts_from_the_last_line_where_it_played() -> None:
    first = part((0, 24, 60), (0, 24, 67), (72, 24, 62))
    second = part((24, 24, 50), (48, 24, 52), program=5)
    assert song(Score(GRID, (first, second))).body == "0@0+10|7+10|1/1\n5@10-10|1/1\n2+10|1/1\n0@2+10|1/1\n"


def test_drums_in_front_have_no_share_in_the_key() -> None:
    drums, tune = part((0, 12, 36), is_drum=True), part((12, 12, 70), program=9)
    assert song(Score(GRID, (drums, tune))).text == "# tempo=120 meter=4/4 key=70\nd@36=10|1/2\n9@0+10|1/2\n"
    assert song(Score(GRID, (drums,))).text == "# tempo=120 meter=4/4\nd@36=10|1/2\n"


def test_two_drum_tracks_and_equal_programs_stay_apart() -> None:
    parts = [part((0, 24, 36), is_drum=True), part((0, 24, 36), program=7), part((0, 24, 36), is_drum=True)]
    parts += [part((0, 24, 36), program=7), part((0, 24, 36))]
    score = Score(GRID, tuple(parts))
    assert song(score).body == "0@0+10|7@0+10|7.2@0+10|d@36=10|d.2@36=10|1/1\n"
    assert len(read("0@0+10|7@0+10|7.2@0+10|d@36=10|d.2@36=10|1/1").tracks) == 5


def test_any_number_of_parts() -> None:
    parts = [part((n, 24, n % 100), program=n % 3) for n in range(400)]
    text = song(Score(GRID, tuple(parts))).text
    assert "\n0.134@" in text and "\n2.133@" in text
    assert decode([text], SONG) == normalise(Score(GRID, tuple(parts)), "song")


def test_rests_long_times_and_a_prompts_cut() -> None:
    score = Score(GRID, (part((36, 24 * 5000, 60)), part((36 + 24 * 300, 12, 60), program=127)))
    (document,) = encode(score, end=24 * 400, language=SONG)
    assert document.body == "3/2\n0@0+10:5000/1|300/1\n127@0+10:1/2|197/2\n"
    assert document.onset.tolist() == [36, 36 + 24 * 300]


def test_a_score_without_notes_is_no_document() -> None:
    assert encode(Score(GRID, (Track(0, False, *(np.empty(0, np.int64),) * 4),)), language=SONG) == []
    assert decode(["# tempo=90\n"], SONG).notes == 0


# --- reading what is not in normal form ------------------------------------------------------------------


def test_parts_in_any_order_and_one_that_returns_in_its_line() -> None:
    score = read("33@0+10|0@12+10|33@4+10|0@3+10|1/1", "33@1+10|0@1+10|1/1", header="# key=40\n")
    assert [track.program for track in score.tracks] == [0, 33]
    assert pitches(score) == [[52, 55, 53], [40, 44, 41]]


def test_a_key_of_its_own_and_marks_that_need_not_be() -> None:
    assert pitches(read("0@0+10|0@4+10|1/1", "0@50=10|1/1", "2+10|1/1", "5.3@1-10|1/1")) == [[60, 64, 50, 52], [59]]


def test_songs_put_together_keep_their_parts_apart() -> None:
    score = decode(["0@0+10|1/1\n", "0@0+10|d@36=10|1/1\n"], SONG)
    assert [(track.is_drum, len(track)) for track in score.tracks] == [(False, 1), (False, 1), (True, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1/1\n0+10|1/1\n", "line 2: '0+10' is the first note and has no part mark such as 0@"),
        ("# program=3\n0@0+10|1/1\n", "line 1: the header of a song names no program"),
        ("# program=d\n", "line 1: the header of a song names no program"),
        ("0@0+10|1/1\n128@0+10|1/1\n", "line 2: '128@' is no part mark"),
        ("0.1@0+10|1/1\n", "line 1: '0.1@' is no part mark"),
        ("0.02@0+10|1/1\n", "line 1: '0.02@' is no part mark"),
        ("00@0+10|1/1\n", "line 1: '00@' is no part mark"),
        ("@0+10|1/1\n", "line 1: '@' is no part mark"),
        ("0@1@0+10|1/1\n", "line 1: '0@1@' is no part mark"),
        ("d@36=10|40+10|1/1\n", "line 1: '40+10' is an interval, but drums are written as keys"),
        ("0@0+10|d@|1/1\n", "line 1: 'd@' is not a note"),
        ("0@0+10|1/1\n7@0+10|0@70+10|1/1\n", "line 2: '0@70+10' leads to pitch 130, outside 0..127"),
        ("0@0+17|1/1\n", "line 1: velocity 17"),
        ("0@0+10|0@1/1\n", "line 1: '0@0+10|0@1/1' does not end in a time"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(LanguageError, match=re.escape(message)):
        decode([text], SONG)


def test_a_quick_look_tells_the_layouts_apart() -> None:
    with pytest.raises(LanguageError, match="'@' has no place"):
        check_document("# key=60\n0@0+10|1/1\n")
    with pytest.raises(LanguageError, match="has no part mark"):
        check_document("# key=60\n0+10|1/1\n", SONG)
    with pytest.raises(LanguageError, match="names no program"):
        check_document("# program=1\n", SONG)
    with pytest.raises(LanguageError, match="which only the song layout knows"):
        decode(["0@0+10|1/1\n"])
