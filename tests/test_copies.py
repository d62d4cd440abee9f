"""The copy meter: the longest passage of a take that stands in the training songs, in any key."""

import io
import json
import random
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midigpt import copies
from midigpt.copies import Copy, CopyIndex, Writer, open_copies, read_passages
from midigpt.dataset import make_dataset
from midigpt.documents import Split
from midigpt.encodings import interval
from midigpt.files import UserError
from midigpt.header import LanguageError, read_header, split_header
from midigpt.index import index_files
from midigpt.language import TRACKS, Language, encode
from midigpt.score import Score, Track
from midigpt.suffixes import longest_beginnings, sort_suffixes
from midigpt.tokenizer import learn_tokenizer
from midigpt.train_data import make_train_bin
from tests.conftest import OF_TRACKS, PROJECT, SPLIT, documents, melody, ok, run_script

# --- beside comparing everything with everything -------------------------------------------------------------


def index_of(songs: dict[str, list[str]], batch: int = 100, language: Language = TRACKS) -> CopyIndex:
    """An index as make train-bin would write it."""
    some, files = list(songs.items()), [io.BytesIO() for _ in range(4)]
    writer = Writer(*files)
    for at in range(0, len(some), batch):
        writer.add(read_passages(some[at : at + batch], language))
    writer.close_block()
    moments, suffixes, docs, names = (file.getvalue() for file in files)
    found = np.frombuffer(moments, copies.MOMENT), np.frombuffer(suffixes, copies.SUFFIX)
    docs = np.frombuffer(docs, copies.DOC).reshape(-1, 6)
    return CopyIndex(*found, writer.blocks, docs, names.decode().split("\n")[:-1])


def slowly_read(text: str) -> list[tuple[int, frozenset[int], int, int]]:
    """The instants of a document, by the language's own reader: onset, pitches or drums, time until the next, notes."""
    header, (_, body) = read_header(text), split_header(text)
    rows, resolution = interval.read(body, header, 1, False)
    instants: dict[int, list[int]] = {}
    for row in rows:
        begun = instants.setdefault(int(Fraction(row.onset, resolution) * 24 + Fraction(1, 2)), [])
        begun.append(row.pitch if header.is_drum else row.pitch % 12)
    now = sum((Fraction(line.rpartition("|")[2]) for line in body.splitlines()), Fraction(0))
    onsets = [*instants, int(now * 24 + Fraction(1, 2))]
    return [
        (onset, frozenset(begun), until - onset, len(begun))
        for (onset, begun), until in zip(instants.items(), onsets[1:], strict=True)
    ]


def slowly_found(take: str, songs: dict[str, list[str]]) -> set[tuple[int, int, str, int, int]]:
    """Of all longest passages: notes, onset in the take, song, track, onset there."""
    found = {(0, 0, "", 0, 0)}
    ours, is_drum = slowly_read(take), read_header(take).is_drum
    for song, texts in songs.items():
        for track, text in enumerate(texts, 1):
            if read_header(text).is_drum != is_drum:
                continue
            theirs = slowly_read(text)
            for i, j, key in ((i, j, k) for i in range(len(ours)) for j in range(len(theirs)) for k in range(12)):
                notes = 0
                for (_, a, wait, some), (_, b, their_wait, _) in zip(ours[i:], theirs[j:], strict=False):
                    if wait != their_wait or b != (a if is_drum else {(pitch + key) % 12 for pitch in a}):
                        break
                    notes += some
                if notes and notes >= max(found)[0]:
                    found.add((notes, ours[i][0], song, track, theirs[j][0]))
    most = max(found)[0]
    return {one for one in found if one[0] == most}


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A document, in normal form or not, with so few different lines that passages repeat."""
    is_drum = draw(st.integers(0, 3)) == 0
    fields = ["program=d"] if is_drum else draw(st.sampled_from([[], ["key=55"], ["program=3", "key=61"]]))
    fields = fields + draw(st.sampled_from([[], ["meter=3/4"], ["tempo=90", "meter=6/8"]]))
    drums = [["36=9"], ["42=3", "36=1"], ["100=2"], []]
    notes = drums if is_drum else [["0+1"], ["2-9", "12+1"], ["1+3", "60=4", "2+1"], ["60=2"], []]
    times = ["1/1", "1/2", "2/3", "1/48"]
    line = st.builds(lambda some, time: "|".join([*some, time]), st.sampled_from(notes), st.sampled_from(times))
    header = " ".join(["#", *fields]) + "\n" if fields or draw(st.booleans()) else ""
    return header + "".join(f"{one}\n" for one in draw(st.lists(line, max_size=12)))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(texts(), max_size=3), max_size=4), texts(), st.integers(1, 3), st.integers(14, 40))
def test_the_passage_is_the_one_that_comparing_everything_finds(
    music: list[list[str]], take: str, batch: int, block: int
) -> None:
    songs = {f"song {number}": documents for number, documents in enumerate(music)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "MOST", block)
        copy = index_of(songs, batch).longest(take)
    expected = slowly_found(take, songs)
    if copy is None:
        assert expected == {(0, 0, "", 0, 0)}
        return
    numerator, denominator = read_header(songs[copy.song][copy.track - 1]).meter or (4, 4)
    onset = (copy.bar - 1) * 96 * numerator / denominator + (copy.beat - 1) * 24
    found = (copy.notes, round(copy.start_beat * 24), copy.song, copy.track, round(onset))
    assert found in expected
    assert found[1] == min(one[1] for one in expected)  # the first of several in the take


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), max_size=60), st.lists(st.integers(1, 4), max_size=30))
def test_suffixes_are_sorted_and_beginnings_found(some: list[int], asked: list[int]) -> None:
    symbols, query = np.array([*some, 0]), np.array([*asked, -1])
    suffixes = sort_suffixes(symbols)
    assert suffixes.tolist() == sorted(range(len(symbols)), key=lambda at: symbols[at:].tolist())
    lengths, places = longest_beginnings(symbols, suffixes, query, np.arange(len(asked)))
    for start, (length, place) in enumerate(zip(lengths.tolist(), places.tolist(), strict=True)):
        assert asked[start : start + length] == some[place : place + length]
        longer = asked[start : start + length + 1]
        assert len(longer) == length or not any(some[at : at + length + 1] == longer for at in range(len(some)))


def test_a_sequence_too_long_for_a_block_is_refused_and_an_empty_one_is_not() -> None:
    assert not len(sort_suffixes(np.empty(0, np.int64)))
    with pytest.raises(ValueError, match="more than"):
        sort_suffixes(np.zeros(1 << 21, np.int64))


# --- planted copies ----------------------------------------------------------------------------------------


def changed(score: Score, pitch: Callable[[Track], np.ndarray]) -> str:
    """The first track's document with other pitches."""
    track = score.tracks[0]
    moved = Track(track.program, track.is_drum, track.onset, track.duration, pitch(track), track.velocity)
    (document,) = encode(Score(score.ticks_per_beat, (moved,), score.tempo_bpm, score.meter))
    return document.text


def own_lines(notes: int, seed: int) -> str:
    """Lines of music that is in no training song: its times are odd."""
    rng = random.Random(seed)
    return "".join(f"{rng.randrange(1, 3)}{rng.choice('+-')}9|{rng.choice([5, 7, 11])}/24\n" for _ in range(notes))


def training_song(root: Path) -> tuple[str, str]:
    """The name of a song in the training set, and its text."""
    name = open_copies(root).songs[7]
    return name, documents(root)[f"{name}_1.txt"]


@pytest.mark.parametrize(
    "change",
    [
        lambda track: track.pitch,
        lambda track: track.pitch + 5,
        lambda track: track.pitch - 12,
        lambda track: track.pitch - 7 + 12 * (np.arange(len(track)) % 5 == 0),  # single notes an octave off
        lambda track: track.pitch + 24 * (np.arange(len(track)) >= 20) - 12,  # from somewhere on
    ],
    ids=["as it is", "a fourth higher", "an octave lower", "a fifth lower, some notes an octave off", "two parts"],
)
def test_a_planted_copy_is_found_in_the_middle_of_a_longer_take(prepared: Path, change: Callable) -> None:
    name, _ = training_song(prepared)
    planted = split_header(changed(melody(int(name.removeprefix("song"))), change))[1].splitlines(keepends=True)
    copied = "".join(planted[9:33])  # 24 notes
    take = f"# program=4 tempo=60\n{own_lines(30, 1)}{copied}{own_lines(30, 2)}"
    copy = open_copies(prepared).longest(take)
    assert copy and (copy.song, copy.track, copy.notes) == (name, 1, 24)
    beats = [float(onset) / 24 for onset, *_ in slowly_read(take)]
    there = [float(onset) / 24 for onset, *_ in slowly_read("#\n" + "".join(planted))]
    assert copy.start_beat == pytest.approx(beats[30])
    assert copy.seconds == pytest.approx(beats[54] - beats[30])  # at 60 beats per minute
    assert (copy.bar - 1) * 4 + copy.beat - 1 == pytest.approx(there[9])


def test_chords_are_found_whatever_is_doubled_and_which_note_is_lowest() -> None:
    index = index_of({"song": ["# meter=3/4\n3/1\n0+9|4+9|3+9|1/1\n2+9|3+9|1/2\n7-9|4+9|3+9|1/1\n"]})
    copy = index.longest("# key=40\n1+9|1/3\n4+5|3+5|5+5|12+5|1/1\n10+5|3+5|1/2\n3-3:2/1|3+3|5+3|1/1\n")
    assert copy and (copy.notes, copy.bar, copy.beat) == (9, 2, 1.0) and copy.start_beat == pytest.approx(1 / 3)


def test_what_leads_to_a_passage_is_no_part_of_it_but_its_rhythm_is() -> None:
    tune = "2+9|1/2\n2+9|1/2\n1+9|1/1\n"
    index = index_of({"song": [f"# tempo=120\n0+9|1/1\n{tune}"]})
    for step in range(12):
        assert index.longest(f"# tempo=60\n0+9|1/8\n{step}+9|1/2\n2+9|1/2\n1+9|1/1\n") == Copy(
            3, 2.0, 0.125, "song", 1, 1, 2.0
        )
    assert index.longest("0+9|1/2\n2+9|1/3\n1+9|1/1\n") == Copy(1, 0.25, 0.0, "song", 1, 1, 2.0)


def test_drums_are_keys_and_never_taken_for_pitches() -> None:
    beat = "36=9|1/2\n38=9|42=9|1/2\n100=9|1/4\n"
    index = index_of({"tune": ["# key=36\n0+9|1/2\n2+9|4+9|1/2\n2-9|1/4\n"], "beat": [f"# program=d\n{beat}"]})
    copy = index.longest(f"# program=d\n{beat}")
    assert copy and (copy.song, copy.notes) == ("beat", 4)
    assert index.longest("# program=d\n37=9|1/2\n39=9|43=9|1/2\n101=9|1/4\n") is None
    copy = index.longest("# key=36\n0+9|1/2\n2+9|4+9|1/2\n2-9|1/4\n")
    assert copy and (copy.song, copy.notes) == ("tune", 4)


def test_a_passage_ends_with_its_document() -> None:
    first, second = "0+9|1/2\n2+9|1/2\n", "4+9|1/2\n5+9|1/2\n7+9|1/2\n"
    take = f"# key=60\n{first}{second}"
    copy = index_of({"one": [f"# key=60\n{first}", f"# key=62\n{second}"]}).longest(take)
    assert copy and (copy.notes, copy.track) == (3, 2)
    copy = index_of({"one": [take]}).longest(take)
    assert copy and copy.notes == 5


def test_a_document_longer_than_a_block_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MOST", 11)
    take = "# key=60\n" + "".join(f"{step}+9|{step}/24\n" for step in range(1, 31))
    index = index_of({"short": ["0+9|1/1\n"], "long": [take], "other": ["0+9|2/1\n"]})
    copy = index.longest(take)
    assert copy and (copy.song, copy.notes) == ("long", 10) and len(index.blocks) == 3


@pytest.mark.parametrize("text", ["", "#\n", "# program=d\n", "1/1\n"])
def test_a_take_without_notes_holds_no_copy(prepared: Path, text: str) -> None:
    assert open_copies(prepared).longest(text) is None


def test_prose_is_refused(prepared: Path) -> None:
    with pytest.raises(LanguageError):
        open_copies(prepared).longest("# Once upon a time\n")


def test_real_pieces_are_found_in_another_key(corpus: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(corpus("mini"), tmp_path / "raw_data")
    index_files(tmp_path)
    make_dataset(tmp_path, OF_TRACKS)
    split = Split(0.1)
    learn_tokenizer(tmp_path, 80, split)
    make_train_bin(tmp_path, split)
    index = open_copies(tmp_path)
    for name in index.songs:
        text = documents(tmp_path)[f"{name}_1.txt"]
        fields, lines = split_header(text)
        moved = " ".join(word for word in fields.split() if not word.startswith("key=")) + f" key=66\n{lines}"
        copy = index.longest(moved)
        assert copy and copy.notes == text.count("|") and copy.start_beat == pytest.approx(slowly_read(text)[0][0] / 24)
    assert len(index.songs) > 10


# --- the index among the other files -------------------------------------------------------------------------


def test_every_training_song_is_in_the_index_and_no_other(prepared: Path) -> None:
    index = open_copies(prepared)
    for document, text in documents(prepared).items():
        copy = index.longest(text)
        name = document.removesuffix("_1.txt")
        assert (copy is not None and copy.notes == 40) == (name in index.songs)
        if name in index.songs:
            assert copy and (copy.song, copy.bar, copy.beat, copy.start_beat) == (name, 1, 1.0, 0.0)


def test_an_index_of_other_songs_is_refused(work: Path) -> None:
    meta = json.loads((work / "train" / "meta.json").read_text())
    (work / "train" / "train.bin").write_bytes((work / "train" / "train.bin").read_bytes()[:-2])
    with pytest.raises(UserError, match=r"not of the train.bin beside it; make both with: make train-bin"):
        open_copies(work)
    make_train_bin(work, SPLIT)
    assert open_copies(work)
    del meta["copies"]  # as an earlier version leaves it, which writes no index
    (work / "train" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"no index of its songs.*make train-bin"):
        open_copies(work)
    make_train_bin(work, SPLIT)
    (work / "train" / "copies.songs.txt").unlink()
    with pytest.raises(UserError, match="no index of its songs"):
        open_copies(work)


def test_blocks_change_nothing_but_the_files(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    takes = [text for text in documents(work).values()]
    before = [open_copies(work).longest(text) for text in takes]
    monkeypatch.setattr(copies, "MOST", 100)
    make_train_bin(work, SPLIT)
    index = open_copies(work)
    assert len(index.blocks) > 10
    for one, other in zip(before, (index.longest(text) for text in takes), strict=True):
        assert one and other and (one.notes, one.start_beat) == (other.notes, other.start_beat)


def test_make_clean_takes_the_index_along(work: Path) -> None:
    subprocess.run(["make", "clean", f"ROOT={work}"], cwd=PROJECT, check=True, capture_output=True)
    assert not list((work / "train").iterdir())


def test_the_bench_finds_what_the_meter_finds(prepared: Path) -> None:
    flags = ("--takes", "3", "--notes", "35", "--plain-songs", "9", "--plain-takes", "2")
    assert "the same number of notes for 2 of 2" in ok(run_script("bench/copies.py", "--root", prepared, *flags))


def test_all_songs_held_out_leave_an_empty_index() -> None:
    index = index_of({})
    assert index.longest("0+9|1/1\n") is None
