"""The copy meter in the song layout, and in other encodings: what it finds is what it finds track by track."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midigpt.copies import Copy, CopyIndex, read_passages
from midigpt.instants import Instants, read_instants
from midigpt.language import TRACKS, Language, decode, encode
from midigpt.normal import song_order
from midigpt.score import Score, Track, track_from_notes
from tests.conftest import melody
from tests.test_copies import index_of
from tests.test_song_layout import songs

SONG = Language("interval", "song")
COLUMNS = ("onset", "moment", "notes")


def text_of(score: Score, language: Language = SONG) -> str:
    return "".join(document.text for document in encode(score, language=language))


def rows(instants: Instants, part: int) -> list[list[int]]:
    return [getattr(instants, column)[instants.part == part].tolist() for column in COLUMNS]


@settings(deadline=None)
@given(st.lists(songs, min_size=1, max_size=3))
def test_a_part_gives_what_its_own_document_gives(scores: list[Score]) -> None:
    together = read_instants([text_of(score) for score in scores], SONG)
    apart = [replace(score, tracks=(track,)) for score in scores for track in song_order(score.tracks)]
    alone = read_instants([text_of(score, TRACKS) for score in apart])
    assert len(together.headers) == len(alone.headers) == len(apart)
    for part, (ours, theirs) in enumerate(zip(together.headers, alone.headers, strict=True)):
        assert (ours.is_drum, ours.tempo_bpm, ours.meter) == (theirs.is_drum, theirs.tempo_bpm, theirs.meter)
        assert rows(together, part) == rows(alone, part)
    assert together.text.tolist() == [n for n, score in enumerate(scores) for _ in song_order(score.tracks)]


@pytest.mark.parametrize("layout", ["track", "song"])
@pytest.mark.parametrize("encoding", ["anchored", "absolute", "messages"])
@settings(deadline=None, max_examples=30)
@given(score=songs)
def test_other_encodings_give_what_intervals_give(encoding: str, layout: str, score: Score) -> None:
    written, ours = Language(encoding, layout), Language("interval", layout)
    texts = ([document.text for document in encode(score, language=language)] for language in (written, ours))
    first, second = (read_instants(some, of) for some, of in zip(texts, (written, ours), strict=True))
    for column in (*COLUMNS, "part", "text"):
        assert np.array_equal(getattr(first, column), getattr(second, column)), column


def test_marks_in_any_order_and_parts_that_return() -> None:
    text = "# key=60 meter=3/4\n127.12@0+9|d@36=9|0@2+9|127.12@4+9:1/2|1/2\nd.2@42=9|0@5+9:2/1|1/1\n1/1\n"
    found = read_instants(["0@0+9|1/1\n", text, ""], SONG)
    assert [header.is_drum for header in found.headers] == [False, False, False, True, True]
    assert found.text.tolist() == [0, 1, 1, 1, 1]
    chords = {part: [moment & 0xFFF for moment in rows(found, part)[1]] for part in range(3)}
    assert chords == {0: [1 << 0], 1: [1 << 2, 1 << 7], 2: [1 << 0 | 1 << 4]}
    waits = {part: [moment >> 43 for moment in rows(found, part)[1]] for part in range(5)}
    assert waits == {0: [24], 1: [12, 48], 2: [12], 3: [12], 4: [24]}


# --- planted copies --------------------------------------------------------------------------------------


def index_of_songs(songs: dict[str, str]) -> CopyIndex:
    return index_of({name: [text] for name, text in songs.items()}, language=SONG)


def odd(seed: int, notes: int) -> Track:
    """Music that is in no training song: its times are odd."""
    rng = random.Random(seed)
    onsets = np.cumsum([rng.choice([5, 7, 11]) for _ in range(notes)]).tolist()
    return track_from_notes([(onset, 4, 60 + rng.randrange(12), 76) for onset in onsets], 40)


def band(seed: int) -> Score:
    parts = [
        melody(seed, program=33).tracks[0],
        melody(seed + 100).tracks[0],
        melody(seed + 200, is_drum=True).tracks[0],
    ]
    return Score(480, tuple(parts), 100.0)


@pytest.mark.parametrize("keys", [0, 5, -7, 12])
@pytest.mark.parametrize(("track", "part"), [(0, 2), (1, 1), (2, 3)])
def test_a_planted_copy_of_one_part_is_found_in_any_key(track: int, part: int, keys: int) -> None:
    index = index_of_songs({f"song{number}": text_of(band(number)) for number in range(10)})
    planted = band(7).tracks[track]
    rows = np.arange(9, 33)  # 24 notes
    copied = planted.select(rows)
    pitch = copied.pitch + (0 if copied.is_drum else keys)
    late = 480 * 6 - int(copied.onset[0])
    copied = replace(copied, onset=copied.onset + late, pitch=pitch, program=9)
    others = replace(odd(1, 50), onset=odd(1, 50).onset * 20)
    copy = index.longest_in(Score(480, (others, copied), 60.0))
    assert copy and (copy.song, copy.track, copy.notes) == ("song7", part, 24)
    there = planted.onset[9] / 480
    assert ((copy.bar - 1) * 4 + copy.beat - 1, copy.start_beat) == (there, 6.0)
    beats = (planted.onset[32] + planted.duration[32] - planted.onset[9]) / 480
    assert copy.seconds == pytest.approx(beats)  # at 60 beats a minute


def test_a_track_is_found_in_songs_and_a_song_among_tracks() -> None:
    index = index_of_songs({"song": text_of(band(3))})
    for part in song_order(band(3).tracks):
        copy = index.longest_in(Score(480, (part,), 100.0))
        assert copy and copy.notes == 40
    apart = index_of({"song": [document.text for document in encode(band(3))]})
    copy = apart.longest_in(band(3))
    assert copy == Copy(40, copy.seconds if copy else 0, 0.0, "song", 1, 1, 1.0)


def test_of_several_parts_the_one_with_the_longest_copy_counts() -> None:
    index = index_of_songs({"song": "0@0+9|1/1\n2+9|1/1\n2+9|1/1\n1+9|1/1\n"})
    copy = index.longest_in(decode(["0@0+9|d@36=9|1/1\n0@1+9|5@0+9|1/2\n5@2+9|1/1\n2+9|1/1\n"], SONG))
    assert copy and (copy.notes, copy.start_beat) == (2, 1.5)
    assert index.longest_in(decode(["d@36=9|1/1\n"], SONG)) is None


def test_songs_and_their_parts_are_numbered() -> None:
    two = ["0@0+9|33@0+9|d@36=9|1/1\n", "5@0+9|1/1\n"]
    passages = read_passages([("a", two[:1]), ("b", ["#\n"]), ("c", two[1:])], SONG)
    assert passages.docs[:, 1:3].tolist() == [[0, 1], [0, 2], [0, 3], [2, 1]]
    tracks = read_passages([("a", ["0+9|1/1\n", "#\n", "0+9|1/1\n"]), ("b", ["0+9|1/1\n"])])
    assert tracks.docs[:, 1:3].tolist() == [[0, 1], [0, 2], [0, 3], [1, 1]]
