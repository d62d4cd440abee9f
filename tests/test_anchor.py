"""What anchored intervals count from, and what a document reads like from another anchor or in another key."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midigpt.header import read_header, split_header
from midigpt.language import Language, decode, encode, in_key
from midigpt.score import Score, track_from_notes
from tests.conftest import PROJECT
from tests.test_language import draw_moved, scores, with_room

LANGUAGES = [Language("anchored", layout) for layout in ("track", "song")]
SONG = LANGUAGES[1]


def tune(*pitches: int) -> Score:
    return Score(24, (track_from_notes([(24 * n, 24, pitch, 80) for n, pitch in enumerate(pitches)]),))


def key_of(score: Score, language: Language = SONG) -> int | None:
    return read_header(encode(score, language=language)[0].header).key


def test_the_anchor_is_the_mean_pitch_rounded_down() -> None:
    assert key_of(tune(60, 62, 64)) == 62 and key_of(tune(60, 62, 65)) == 62 and key_of(tune(0, 1)) == 0
    both = Score(24, (*tune(40, 40).tracks, *tune(70, 71).tracks))
    assert key_of(both) == 55
    assert [read_header(d.header).key for d in encode(both, language=LANGUAGES[0])] == [40, 70]


def test_drums_have_no_say() -> None:
    drums = track_from_notes([(n, 24, 36 + n % 12, 100) for n in range(90)], 0, True)
    alone = tune(60, 64, 67, 62, 65, 60)
    assert key_of(Score(24, (drums, *alone.tracks))) == key_of(alone) == 63
    assert key_of(Score(24, (drums,))) is None


@pytest.mark.parametrize("language", LANGUAGES, ids=str)
@given(score=with_room(scores), data=st.data())
def test_the_key_moves_with_the_piece(language: Language, score: Score, data: st.DataObject) -> None:
    moved, k = draw_moved(score, data)
    for before, after in zip(encode(score, language=language), encode(moved, language=language), strict=True):
        assert after.body == before.body
        old, new = read_header(before.header).key, read_header(after.header).key
        assert new == (None if old is None else old + k)
        if old is not None:
            tracks = decode([before.text], language).tracks
            pitch = np.concatenate([track.pitch for track in tracks if not track.is_drum])
            assert pitch.min() <= old <= pitch.max()


# --- other keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES, ids=str)
@given(score=scores, by=st.integers(-6, 5))
def test_from_another_anchor_the_notes_are_the_same(language: Language, score: Score, by: int) -> None:
    for document in encode(score, language=language):
        key = read_header(document.header).key
        other = in_key(document.text, by, language)
        if key is None or not by:
            assert other == document.text
            continue
        assert split_header(other)[1] != document.body
        assert read_header(other) == replace(read_header(document.text), key=key - by if 0 <= key - by < 128 else None)
        if 0 <= key - by < 128:
            assert decode([other], language) == decode([document.text], language)


@pytest.mark.parametrize("layout", ["track", "song"])
@given(score=with_room(scores), by=st.integers(-6, 5))
def test_in_absolute_pitch_the_piece_is_moved(layout: str, score: Score, by: int) -> None:
    language = Language("absolute", layout)  # type: ignore[arg-type]
    pitches = [pitch for track in score.tracks if not track.is_drum for pitch in track.pitch.tolist()]
    if any(not 0 <= pitch + by < 128 for pitch in pitches):
        return
    moved = replace(
        score, tracks=tuple(t if t.is_drum else replace(t, pitch=t.pitch + by) for t in score.tracks)
    )
    for document, expected in zip(encode(score, None, language), encode(moved, None, language), strict=True):
        assert in_key(document.text, by, language) == expected.text


def test_what_would_leave_the_keyboard_goes_the_other_way() -> None:
    def pitches(*keys: int) -> list[list[int]]:
        (document,) = encode(tune(*keys), None, Language("absolute"))
        texts = [in_key(document.text, by, Language("absolute")) for by in (5, -6)]
        return [[int(pitch) for pitch in re.findall(r"(\d+)=", text)] for text in texts]

    assert pitches(0, 60) == [[5, 65], [6, 66]]
    assert pitches(67, 127) == [[60, 120], [61, 121]]
    assert pitches(0, 127) == [[0, 127], [0, 127]]


def test_the_example_of_the_specification() -> None:
    specification = (PROJECT / "docs" / "language.md").read_text()
    worked, other = (
        re.findall(rf"{before}\n\n```midi-text\n(.*?)```", specification, re.S)[0]
        for before in ("As text:", "the worked example is")
    )
    assert in_key(worked, -2, SONG) == other and decode([other], SONG) == decode([worked], SONG)
