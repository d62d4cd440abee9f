"""bench/compare.py: the ways of writing hold the same notes, and a whole small comparison runs, and goes on."""

import re
from dataclasses import replace
from pathlib import Path

import compare
import numpy as np
import pytest
from compare import Args
from compare_data import SWITCHES, Way, copies, pack_text
from compare_text import write_lines
from hypothesis import given, settings

from midigpt.header import split_header
from midigpt.language import Language, encode
from midigpt.midi import write_midi
from midigpt.normal import normalise
from midigpt.score import Score, moved, track_from_notes
from tests.test_language import scores

SONG = Language("anchored", "song")


@given(scores)
@settings(max_examples=100, deadline=None)
def test_text_without_a_switch_is_the_language(score: Score) -> None:
    normal = normalise(score, "song")
    for switch, language in (("", SONG), ("chained", Language("interval", "song"))):
        if normal.notes:
            header, lines = write_lines(normal, switch)
            (document,) = encode(normal, language=language)
            assert (header, "".join(lines)) == (document.header, document.body)


def chords(moved_by: int = 0) -> Score:
    """Two bars: a triad of one beat, a fifth of two, a last note; and a bass drum."""
    notes = [(0, 24, 60, 76), (0, 24, 64, 76), (0, 24, 67, 76), (24, 48, 60, 76), (24, 48, 67, 60), (96, 24, 72, 76)]
    pitched = [(onset, length, pitch + moved_by, velocity) for onset, length, pitch, velocity in notes]
    return Score(24, (track_from_notes(pitched, 0), track_from_notes([(0, 24, 36, 100), (96, 24, 36, 100)], 0, True)))


def test_switches_write_the_same_notes_in_other_ways() -> None:
    def body(switch: str) -> str:
        return "".join(write_lines(normalise(chords(), "song"), switch)[1])

    assert body("high first").startswith("0@2+10|3-10|4-10|d@36=13|1/1\n0@")
    assert re.findall(r"^'", body("bars"), re.MULTILINE) == ["'"] * 2
    assert body("bars").replace("'", "") == body("")
    assert body("from the key").startswith("0@5-10|1-10|2+10|d@36=13|1/1\n")
    assert body("chained").endswith("12+10|d@36=13|1/1\n")
    rows = [(0, 24, 65, 76), (0, 24, 68, 76), (24, 48, 61, 76)]  # D flat's triad, with the third first
    triad = normalise(Score(24, (track_from_notes(rows),)), "song")
    header = "# tempo=120 meter=4/4 key="
    assert write_lines(triad, "first note") == (f"{header}65\n", ["0@0+10|3+10|1/1\n", "4-10|2/1\n"])
    assert write_lines(triad, "from the key") == (f"{header}64\n", ["0@1+10|4+10|1/1\n", "3-10|2/1\n"])
    assert write_lines(triad, "tonic") == (f"{header}61\n", ["0@4+10|3+10|1/1\n", "0+10|2/1\n"])
    ends = re.findall(r"[+-]0\|", body("note-offs"))
    assert len(ends) == 6 and ":" not in body("note-offs")
    assert body("note-offs").endswith("12+0|d@36=0|1/24\n") or body("note-offs").count("36=0|") == 2


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_on_notes_make_them_coarser(switch: str) -> None:
    score = replace(chords(), ticks_per_beat=48)
    changed = SWITCHES[switch](score)
    assert changed.notes == score.notes
    if "bin" in switch:
        assert {*changed.tracks[0].velocity.tolist()} <= {76, 60, 92}
        assert len({*normalise(changed, "song").tracks[0].velocity.tolist()}) <= int(switch[0])


def test_moved_pieces_and_copies_are_the_same_music() -> None:
    assert moved(chords(), 3).tracks[0] == chords(3).tracks[0]
    assert moved(chords(), 3).tracks[1] == chords().tracks[1]  # drums stay
    assert moved(chords(50), 6).tracks[0] == chords(44).tracks[0]  # there is no room above
    piece = compare.Piece("p", "f", chords())
    keys = {int(score.tracks[0].pitch[0]) - 60 for score in copies(piece, 12)}
    assert len(keys) == 12 and 0 in keys and max(keys) - min(keys) <= 12


def test_a_training_piece_in_twelve_keys_is_twelve_texts_of_the_same_merges() -> None:
    sides = {name: [("a", normalise(chords(), "song"))] for name in ("train", "val", "moved")}
    once, tokenizer = pack_text(Way("one", keys=1), sides)
    arrays, same = pack_text(Way("twelve", keys=12), sides)
    assert tokenizer.to_str() == same.to_str() and len(arrays["val_docs"]) == 1
    ends = np.append(arrays["train_docs"][:, 0], len(arrays["train_tokens"]))[1:]
    bodies = {
        same.decode(arrays["train_tokens"][first:end].tolist())
        for (_, first), end in zip(arrays["train_docs"].tolist(), ends.tolist(), strict=True)
    }
    assert len(bodies) == 12
    assert tokenizer.decode(once["train_tokens"][once["train_docs"][0, 1] :].tolist()) in bodies


def test_positions_count_the_steps_and_the_place_in_the_line() -> None:
    way = Way("anchored intervals", vocab_size=0)
    score = normalise(chords(), "song")
    sides = {name: [("a", score)] for name in ("train", "val", "moved")}
    arrays, tokenizer = pack_text(way, sides)
    text = tokenizer.decode(arrays["val_tokens"].tolist(), skip_special_tokens=True)
    header, body = split_header(text)
    assert body == encode(score, language=SONG)[0].body
    ((start, first),) = arrays["val_docs"].tolist()
    assert (start, first) == (0, 1 + len(header))
    lines = body.splitlines(keepends=True)
    times = [0, 24, 96]
    expected = [time for time, line in zip(times, lines, strict=True) for _ in line]
    assert arrays["val_times"].tolist() == [0] * first + expected
    assert arrays["val_places"].tolist()[first:] == [n for line in lines for n in range(len(line))]


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """A folder of forty small pieces, all different."""
    random = np.random.default_rng(0)
    folder = tmp_path / "tunes"
    folder.mkdir()
    for number in range(40):
        pitch = 60 + np.cumsum(random.integers(-3, 4, 60))
        notes = [(24 * n, 24, int(p), 80) for n, p in enumerate(np.clip(pitch, 30, 90))]
        write_midi(Score(24, (track_from_notes(notes),)), folder / f"{number}.mid")
    return folder


def test_a_small_comparison_runs_and_goes_on(corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = Args(
        corpora=(corpora,),
        study=("encodings", "notes"),
        only=("anchored intervals", "absolute"),
        work=tmp_path / "work",
        pflop=2e-6,
        notes=20_000,
        seeds=2,
        n_layer=1,
        n_head=2,
        n_embd=16,
        takes=2,
        workers=1,
    )
    compare.main(args)
    said = capsys.readouterr().out
    assert "8/8" in said and "### notes, tunes" in said
    rows = [compare.perform(run, args) for run in compare.planned(args)]
    for row in rows:
        assert row["val_notes"] % 60 == 0 and 0 < row["bits_per_note"] < 40
        assert 0 <= row["valid"] <= 1 and row["notes_per_second"] >= 0
        if row["way"]["encoding"] == "anchored":
            assert row["moved_bits_per_note"] == pytest.approx(row["bits_per_note"], rel=1e-4)
        if row["equal"] == "notes":
            assert row["notes_seen"] == pytest.approx(args.notes, rel=0.2)
        else:
            assert row["pflop"] == pytest.approx(args.pflop, rel=0.3)
    made = {path: path.stat().st_mtime_ns for path in (args.work / "runs").iterdir()}
    assert len(made) == 8
    next(iter(made)).unlink()
    compare.main(args)
    again = {path: path.stat().st_mtime_ns for path in (args.work / "runs").iterdir()}
    assert again.keys() == made.keys() and sum(again[path] != made[path] for path in made) == 1
