"""Names of keys and notes, and scales."""

from collections.abc import Callable
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midigpt.files import UserError
from midigpt.keys import find_scale, read_note, read_scale, to_scale
from midigpt.midi import read_midi
from midigpt.score import Score, track_from_notes
from tests.conftest import midi_files
from tests.test_anchor import tune
from tests.test_language import scores


@pytest.mark.parametrize(("name", "pitch"), [("C4", 60), ("F#3", 54), ("bb5", 82), ("60", 60), ("C-1", 0), ("G9", 127)])
def test_notes_by_name(name: str, pitch: int) -> None:
    assert read_note(name, "--keys") == pitch


@pytest.mark.parametrize("name", ["H4", "C10", "C", "128", "Ab9", "C#b4", ""])
def test_what_is_no_note(name: str) -> None:
    with pytest.raises(UserError, match="--keys"):
        read_note(name, "--keys")


@pytest.mark.parametrize(("name", "scale"), [("C", 0), ("Am", 0), ("F#m", 9), ("Bb", 10), ("Bm", 2), ("Cb", 11)])
def test_scales_by_name(name: str, scale: int) -> None:
    assert read_scale(name, "--key") == scale


@pytest.mark.parametrize("name", ["H", "d", "D3", "Dminor", "60", ""])
def test_what_is_no_key(name: str) -> None:
    with pytest.raises(UserError, match="no key such as"):
        read_scale(name, "--key")


@pytest.mark.parametrize(
    ("pitches", "scale"),
    [
        ([60, 62, 64, 65, 67, 69, 71, 72], 0),
        ([67, 69, 71, 72, 74, 76, 78, 79], 7),  # from the G up, with an F sharp
        ([57, 59, 60, 62, 64, 65, 68, 69], 0),  # A minor, whose seventh is raised
        ([55, 64, 62, 60, 59, 60, 62, 60, 55, 60], 0),  # begins elsewhere
    ],
)
def test_the_scale_that_fits_best(pitches: list[int], scale: int) -> None:
    assert find_scale(tune(*pitches)) == scale


def test_what_sounds_longer_weighs_more() -> None:
    def chords(first: int, then: int) -> int | None:
        rows = [(0, first, pitch, 80) for pitch in (60, 64, 67)] + [(96, then, pitch, 80) for pitch in (61, 65, 68)]
        return find_scale(Score(24, (track_from_notes(rows),)))

    assert chords(48, 6) == 0 and chords(6, 48) == 1
    assert chords(72, 24) == chords(6000, 24) == 8  # a note weighs two beats at most


def test_drums_have_no_scale() -> None:
    drums = track_from_notes([(n, 24, 36 + n % 12, 100) for n in range(90)], 0, True)
    alone = tune(60, 64, 67, 62, 65, 60)
    assert find_scale(Score(24, (drums, *alone.tracks))) == find_scale(alone) == 0
    only = Score(24, (drums,))
    assert find_scale(only) is None and to_scale(only, 3) == only


@given(score=scores, scale=st.integers(0, 11))
def test_a_score_is_moved_to_a_scale(score: Score, scale: int) -> None:
    moved = to_scale(score, scale)
    steps: set[int] = set()
    for before, after in zip(score.tracks, moved.tracks, strict=True):
        if before.is_drum:
            assert after == before
        else:
            steps |= set((after.pitch - before.pitch).tolist())
    pitch = [pitch for track in score.tracks if not track.is_drum for pitch in track.pitch.tolist()]
    if pitch and min(pitch) >= 6 and max(pitch) < 122:
        (by,) = steps
        assert -6 <= by < 6 and (by - scale + (find_scale(score) or 0)) % 12 == 0


def test_a_score_without_room_stays() -> None:
    assert to_scale(tune(0, 4, 7, 127), 5) == tune(0, 4, 7, 127)
    assert to_scale(tune(0, 4, 7), 11) == tune(11, 15, 18)  # not one down


def test_the_scale_of_chorales_is_mostly_that_of_their_signature(corpus: Callable[[str], Path]) -> None:
    """Relative keys share a signature, as they share the scale that is looked for."""
    found = []
    for path in midi_files(corpus("mini")):
        messages = [message for track in mido.MidiFile(path, clip=True).tracks for message in track]
        signatures = {message.key for message in messages if message.type == "key_signature"}
        if "chorales" in str(path) and len(signatures) == 1:
            found.append(find_scale(read_midi(path)) == read_scale(signatures.pop(), "--key"))
    assert len(found) > 15 and np.mean(found) > 0.75
