"""What anchored intervals count from: the tonic of the scale that a piece is in."""

from collections.abc import Callable
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midigpt.header import read_header
from midigpt.language import Language, decode, encode
from midigpt.midi import read_midi
from midigpt.score import Score, track_from_notes
from sample import tonic
from tests.conftest import midi_files
from tests.test_language import draw_moved, scores, with_room

LANGUAGES = [Language("anchored", layout) for layout in ("track", "song")]
SONG = LANGUAGES[1]


def tune(*pitches: int) -> Score:
    return Score(24, (track_from_notes([(24 * n, 24, pitch, 80) for n, pitch in enumerate(pitches)]),))


def key_of(score: Score, language: Language = SONG) -> int | None:
    return read_header(encode(score, language=language)[0].header).key


@pytest.mark.parametrize(
    ("pitches", "expected"),
    [
        ([60, 62, 64, 65, 67, 69, 71, 72], 0),
        ([67, 69, 71, 72, 74, 76, 78, 79], 7),  # from the G up, with an F sharp
        ([57, 59, 60, 62, 64, 65, 68, 69], 0),  # A minor, whose seventh is raised
        ([55, 64, 62, 60, 59, 60, 62, 60, 55, 60], 0),  # begins elsewhere
    ],
)
def test_the_tonic_of_the_major_scale(pitches: list[int], expected: int) -> None:
    key = key_of(tune(*pitches))
    assert key is not None and key % 12 == expected and min(pitches) <= key <= max(pitches)


def test_it_lies_among_the_notes() -> None:
    assert key_of(tune(64, 65, 67)) == 65  # not C, which is below
    assert key_of(tune(0, 1, 3)) == 1
    assert key_of(tune(127, 126, 124)) in (124, 126, 127)
    assert key_of(tune(60)) == 60 and key_of(tune(61, 80, 68)) == 68  # as D flat, and nearer to the mean


def test_what_sounds_longer_weighs_more() -> None:
    def chord(first: int, then: int) -> int | None:
        rows = [(0, first, pitch, 80) for pitch in (60, 64, 67)] + [(96, then, pitch, 80) for pitch in (61, 65, 68)]
        return key_of(Score(24, (track_from_notes(rows),)))

    assert chord(48, 6) == 60 and chord(6, 48) == 61
    assert chord(48, 16) == 60  # the first chord weighs three times as much ...
    assert chord(72, 24) == chord(6000, 24) == 68  # ... but never more than two beats


def test_drums_have_no_say() -> None:
    drums = track_from_notes([(n, 24, 36 + n % 12, 100) for n in range(90)], 0, True)
    alone = tune(60, 64, 67, 62, 65, 60)
    assert key_of(Score(24, (drums, *alone.tracks))) == key_of(alone)
    assert key_of(Score(24, (drums,))) is None


def test_the_octave_is_near_the_middle() -> None:
    low, high = [36, 40, 43, 36], [84, 83, 84, 79]
    assert key_of(tune(*low * 9, *high)) in (36, 48)
    assert key_of(tune(*low, *high * 9)) in (72, 84)


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


def test_the_key_of_chorales_is_mostly_that_of_their_signature(corpus: Callable[[str], Path]) -> None:
    """Relative keys share a signature, as they share the scale that is looked for."""
    found = []
    for path in midi_files(corpus("mini")):
        messages = [message for track in mido.MidiFile(path, clip=True).tracks for message in track]
        signatures = {message.key for message in messages if message.type == "key_signature"}
        if "chorales" in str(path) and len(signatures) == 1:
            key = key_of(read_midi(path.read_bytes()))
            assert key is not None
            found.append((key - tonic(signatures.pop(), None)) % 12 == 0)
    assert len(found) > 15 and np.mean(found) > 0.75
