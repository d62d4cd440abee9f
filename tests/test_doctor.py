"""The doctor: figures of a folder where each is known, advice by its rules, the planted strange file, the page."""

import os
import re
import shutil
import sqlite3
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midigpt.dataset import make_dataset
from midigpt.doctor import DRUMS, Examination, File, Music, duplicates, examine, length_bins, measure
from midigpt.doctor_advice import advise, family_shares, percent, say_time, strangest
from midigpt.doctor_page import basis, render, verdicts
from midigpt.doctor_plots import PLOTS
from midigpt.general_midi import FAMILIES, PROGRAMS
from midigpt.index import index_files
from midigpt.midi import write_midi
from midigpt.page import VARIABLES
from midigpt.score import Score, track_from_notes
from tests.conftest import make_songs, melody, ok, refusal, run_script

EVIL = "<script>alert('&')</script>"


def line(notes: int, step: int, tempo: float, program: int = 0, is_drum: bool = False) -> Score:
    """Quarter notes one after the other, `step` keys apart."""
    rows = [(480 * i, 480, 40 + i * step % 24, 80) for i in range(notes)]
    return Score(480, (track_from_notes(rows, program, is_drum),), tempo)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 seconds: 120 piano notes, 60 bass notes and 60 drum notes, each a quarter; and a file that is no MIDI."""
    root = tmp_path_factory.mktemp("known")
    raw = root / "raw_data"
    raw.mkdir()
    write_midi(line(120, 1, 120), raw / "piano.mid")
    write_midi(line(60, 5, 60, program=33), raw / "bass.mid")
    write_midi(line(60, 7, 120, is_drum=True), raw / "drums.mid")
    (raw / "broken.mid").write_text("tra la la")
    index_files(root)
    make_dataset(root)
    return root


def change(root: Path, sql: str, *values: str) -> None:
    with sqlite3.connect(root / "cache" / "index.sqlite") as index:
        assert index.execute(sql, values).rowcount > 0


def page(examination: Examination) -> str:
    return render(examination, advise(examination, Path()), strangest(examination.music), "here")


# --- what is measured ------------------------------------------------------------------------------------


def test_every_figure_of_a_known_folder(known: Path) -> None:
    examination = examine(known, 2000, 2)
    assert examination.hours == pytest.approx(150 / 3600)
    assert not examination.is_sample and not examination.lost
    shares = dict(zip([*FAMILIES, "drums"], family_shares(examination), strict=True))
    assert {name: share for name, share in shares.items() if share} == {"piano": 0.5, "bass": 0.25, "drums": 0.25}
    assert examination.total("velocities")[80] == examination.total("velocities").sum() == 240
    assert examination.total("pitches").sum() == 180  # no drums
    assert examination.total("lengths")[length_bins().tolist().index(1.0)] == 180
    assert {path: music.tempo_bpm for path, music in examination.music.items()} == {
        "piano.mid": 120,
        "bass.mid": 60,
        "drums.mid": 120,
    }
    assert sum(file.notes for file in examination.converted) == 240


def test_measures_of_one_score() -> None:
    second = 960  # ticks at 120 beats a minute
    chord = [(0, 4 * second, pitch, 80) for pitch in (60, 64, 67)]
    later = [(10 * second, 2 * second, 72, 90), (11 * second, 10, 40, 90)]
    drums = track_from_notes([(12 * second, second, 36, 100)], is_drum=True)
    music = measure(Score(480, (track_from_notes(chord + later, 48), drums), 120.0))
    assert (music.tracks, music.notes, music.seconds, music.meter) == (2, 6, 13, "4/4")
    assert music.longest_silence == 6
    assert music.longest_note == 4
    assert music.short_share == 1 / 5
    assert music.programs[48] == 5 and music.programs[DRUMS] == 1
    assert music.together[0] == pytest.approx(7 / 13) and music.together[3] == pytest.approx(4 / 13)
    assert music.together.sum() == pytest.approx(1)
    assert music.mean_together == pytest.approx((12 * second + 2 * second + 10) / (6 * second))
    assert np.flatnonzero(music.pitches).tolist() == [40, 60, 64, 67, 72]


def test_there_is_no_silence_under_a_long_note() -> None:
    track = track_from_notes([(0, 4000, 60, 80), (100, 10, 64, 80), (3000, 10, 64, 80)])
    assert measure(Score(480, (track,))).longest_silence == 0


def test_a_grid_is_told_from_free_playing() -> None:
    rng = np.random.default_rng(0)
    played = track_from_notes([(int(tick), 100, 60, 80) for tick in rng.integers(0, 480_000, 1000)])
    written = track_from_notes([(tick, 100, 60, 80) for beat in range(50) for tick in (480 * beat, 480 * beat + 160)])
    assert measure(Score(480, (written,))).on_grid == 1
    assert measure(Score(480, (played,))).on_grid == pytest.approx(0.25, abs=0.06)


def test_a_sample_is_drawn_and_said(work: Path) -> None:
    examination = examine(work, 7, 1)
    assert len(examination.music) == 7 and examination.is_sample
    assert examine(work, 7, 2).music.keys() == examination.music.keys()
    assert "a sample: 7 of 30" in basis(examination) and "about" in page(examination)
    assert examination.hours == pytest.approx(examine(work, 30, 1).hours, rel=0.2)


def test_general_midi_is_complete() -> None:
    assert len(set(PROGRAMS)) == 128 and len(FAMILIES) == 16
    assert (PROGRAMS[0], PROGRAMS[33], PROGRAMS[73], PROGRAMS[127]) == (
        "grand piano",
        "fingered bass",
        "flute",
        "gunshot",
    )


# --- verdicts --------------------------------------------------------------------------------------------


def test_verdicts_count_every_kind(work: Path) -> None:
    raw = work / "raw_data"
    change(work, "UPDATE files SET remark = 'lost its end (chunk 3)' WHERE name IN ('song03', 'song04')")
    change(work, "UPDATE files SET song = name")
    change(work, "UPDATE files SET song = 'x', duplicate_of = 'song07' WHERE name IN ('song05', 'song06')")
    change(work, "UPDATE files SET song = 'x' WHERE name = 'song07'")
    change(work, "UPDATE files SET state = 'refused', reason = 'is odd (1)' WHERE name = 'song08'")
    change(work, "UPDATE files SET state = 'refused', reason = 'is odd (2)' WHERE name = 'song09'")
    change(work, "UPDATE files SET state = 'new' WHERE name = 'song10'")
    (raw / "song11.mid").unlink()
    examination = examine(work, 2000, 1)
    assert {verdict.name: len(verdict.files) for verdict in verdicts(examination)} == {
        "converted": 25,
        "converted after rescue": 2,
        "lost its end": 2,
        "refused": 2,
        "is odd": 2,
        "not converted yet": 1,
        "left out as duplicates of others": 2,
        "converted, but can't be read any more": 1,
        "can't be read": 1,
    }
    (group,) = duplicates(examination.converted)
    assert [file.path for file in group] == ["song07.mid", "song05.mid", "song06.mid"]
    text = page(examination)
    for phrase in (
        "2 of 27 converted files hold the music of another once more",
        "2 files are refused",
        "1 file is not converted",
        "2 files are damaged",
    ):
        assert phrase in text


def test_before_clustering_copies_are_told_by_their_fingerprint(work: Path) -> None:
    shutil.copy(work / "raw_data" / "song00.mid", work / "raw_data" / "copy.mid")
    index_files(work)
    make_dataset(work)
    (group,) = duplicates(examine(work, 1, 1).converted)
    assert [file.path for file in group] == ["copy.mid", "song00.mid"]


# --- advice ----------------------------------------------------------------------------------------------


def varied(number: int) -> Music:
    """Music that gives no cause for advice."""
    music = measure(melody(number, program=8 * (number % 16)))
    programs = music.programs + np.eye(DRUMS + 1, dtype=np.int64)[DRUMS]
    velocities = np.bincount([60 + number % 40, 90], minlength=128)
    return replace(music, seconds=60.0 + number % 10, tempo_bpm=100.0, programs=programs, velocities=velocities)


def folder(count: int = 120, **changed: object) -> Examination:
    files = tuple(File(f"{n}.mid", "converted", None, None, None, str(n), 1, 40) for n in range(count))
    return Examination(files, {file.path: replace(varied(n), **changed) for n, file in enumerate(files)}, {})  # type: ignore[arg-type]


PIANO = np.bincount([0] * 9 + [DRUMS], minlength=DRUMS + 1)


@pytest.mark.parametrize(
    ("examination", "phrase"),
    [
        (folder(), ""),
        (folder(velocities=np.bincount([80], minlength=128)), "no velocity information: in 100 %"),
        (folder(programs=PIANO), "100 % of the pitched notes are piano"),
        (folder(programs=np.where(np.arange(DRUMS + 1) < DRUMS, 1, 0)), "There are no drums"),
        (folder(programs=np.where(np.arange(DRUMS + 1) < DRUMS, 0, 1)), "nothing but drums"),
        (folder(seconds=4.9), "120 of 120 files measured are a single note or shorter than 5 seconds"),
        (folder(notes=1), "--min-notes 50"),
        (folder(tempo_bpm=120.0), "tempo is 120 in 100 % of the files"),
        (folder(on_grid=0.3), "100 % of the files are played freely"),
        (folder(short_share=0.94), "most notes are shorter than a 64th"),
        (folder(99), "few songs (99)"),
    ],
)
def test_advice_is_given_when_its_rule_applies_and_only_then(examination: Examination, phrase: str) -> None:
    texts = [advice.text for advice in advise(examination, Path())]
    assert len(texts) == bool(phrase), texts
    assert all(phrase in text for text in texts)


def test_advice_has_its_threshold() -> None:
    music = {str(n): replace(varied(n), tempo_bpm=120.0 if n < 89 else 90.0) for n in range(100)}
    files = folder().files
    assert not advise(Examination(files, music, {}), Path())
    music["89"] = replace(music["89"], tempo_bpm=120.0)
    (advice,) = advise(Examination(files, music, {}), Path())
    assert "90 %" in advice.text and "90 %" in advice.rule


def test_shares_and_times_for_people() -> None:
    assert [percent(share) for share in (0, 0.001, 0.5, 0.999, 1)] == ["0 %", "less than 1 %", "50 %", "99 %", "100 %"]
    assert [say_time(s) for s in (0.5, 1, 60, 660, 9000)] == [
        "0.5 seconds",
        "1 second",
        "60 seconds",
        "11 minutes",
        "2.5 hours",
    ]


# --- strange files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "phrase"),
    [
        ({"longest_note": 660.0}, "one note lasts 11 minutes"),
        ({"short_share": 0.94}, "94 % of the notes are shorter than a 64th"),
        ({"longest_silence": 600.0}, "silent for 10 minutes on end"),
        ({"tempo_bpm": 4000.0}, "tempo 4,000 beats a minute"),
        ({"tracks": 60}, "60 tracks"),
        ({"notes": 1}, "1 note in all"),
        ({"mean_together": 80.0}, "80.0 notes sound together"),
        ({"pitches": np.bincount([0, 127], minlength=128)}, "spans 127 semitones"),
        ({"velocities": np.bincount([1, 127], minlength=128)}, "loudness jumps about"),
        ({"seconds": 7200.0}, "lasts 2.0 hours"),
    ],
)
def test_the_strangest_file_is_the_one_planted(changed: dict[str, object], phrase: str) -> None:
    music = folder(60).music
    music["0.mid"] = replace(music["0.mid"], pitches=np.zeros(128, np.int64))  # only drums, so of no pitch range
    music["1.mid"] = replace(music["1.mid"], tempo_bpm=185.0)  # strange, but less so
    music["31.mid"] = replace(music["31.mid"], **changed)  # type: ignore[arg-type]
    assert "1.mid" in [strange.path for strange in strangest(music)]
    first = strangest(music)[0]
    assert first.path == "31.mid"
    assert any(phrase in why for why in first.why), first


def test_constant_features_and_few_files_divide_by_nothing() -> None:
    alike = {str(n): varied(0) for n in range(10)}
    drums = replace(varied(0), pitches=np.zeros(128, np.int64), longest_note=0.0)
    with np.errstate(all="raise"):
        assert strangest(alike) == strangest({"one": varied(0)}) == strangest({}) == []
        assert strangest({"drums": drums, "more": drums}) == []
        assert strangest(alike | {"drums": drums}) == []  # having no pitches is no distance


# --- the page and the command ----------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_nothing_else(known: Path) -> None:
    text = page(examine(known, 2000, 1))
    assert not re.search(r"https?:|src=|@import|<link|<script", text)
    assert all(reference in re.findall(r'id="([^"]+)"', text) for reference in re.findall(r"[(\"]#([\w-]+)", text))
    pictures = re.findall(r"<svg .*?</svg>", text, re.S)
    assert len(pictures) == len(PLOTS) == 9
    for picture, (title, *_) in zip(pictures, PLOTS, strict=True):
        ElementTree.fromstring(picture.replace("xlink:", ""))
        assert title in picture and f"<h3>{title}</h3>" in text
    assert not any(stand_in in text for stand_in in VARIABLES)
    drawn = set(re.findall(r"var\((--\w+)\)", text))
    assert all(text.count(f"{variable}: #") == 2 for variable in drawn)  # a light and a dark colour
    for phrase in ("50.0 %", "25.0 %", "fingered bass (33)", "2.5 minutes", "is not a MIDI file", "viewport"):
        assert phrase in text


def test_names_are_escaped_on_the_page_and_harmless_on_the_terminal(tmp_path: Path) -> None:
    raw = tmp_path / "raw_data"
    (raw / "<b>").mkdir(parents=True)
    names = (f"{EVIL.replace('/', '|')}.mid", "red\x1b[31m\nline.mid", os.fsdecode(b"caf\xe9.mid"), "\u202eevil.mid")
    for name in names:
        write_midi(melody(0), raw / "<b>" / name)  # copies of one another, so all are named
    index_files(tmp_path)
    make_dataset(tmp_path)
    out = ok(run_script("scripts/doctor.py", "--root", tmp_path, "--workers", "1"))
    text = (tmp_path / "cache" / "doctor.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<b>/" not in text and "&lt;script&gt;" in text
    for shown in (out, text):
        assert not set(shown) & {"\x1b", "\u202e"}
        assert "red\\x1b[31m\\nline.mid" in shown and "caf\\xe9.mid" in shown


def test_the_command_changes_nothing_and_copes_with_what_is_gone(known: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(known, tmp_path / "work"))
    index = root / "cache" / "index.sqlite"
    before = index.read_bytes()
    (root / "raw_data" / "bass.mid").unlink()
    (root / "raw_data" / "drums.mid").write_text("no MIDI any more")
    out = ok(run_script("scripts/doctor.py", "--root", root, "--workers", "2"))
    assert index.read_bytes() == before
    assert "2 of the converted files can't be measured" in out and "Music was measured in 1 of 3" in out
    assert "This corpus has no velocity information" in out
    assert "; 60 seconds of music" in out  # of the one that is left
    assert (root / "cache" / "doctor.html").read_text(encoding="utf-8").count("<svg ") == 9


def test_before_the_dataset_it_says_what_to_run(tmp_path: Path) -> None:
    assert "make index" in refusal(run_script("scripts/doctor.py", "--root", tmp_path))
    make_songs(tmp_path / "raw_data", 2)
    index_files(tmp_path)
    out = ok(run_script("scripts/doctor.py", "--root", tmp_path))
    assert re.search(r"not converted yet +2 ", out) and "make dataset" in out
    assert "<svg" not in (tmp_path / "cache" / "doctor.html").read_text(encoding="utf-8")
    change(tmp_path, "DELETE FROM files")
    assert refusal(run_script("scripts/doctor.py", "--root", tmp_path)).count("\n") == 1
