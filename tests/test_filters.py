"""Filters, and which duplicates are left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midigpt.dataset import Options, make_dataset
from midigpt.files import UserError
from midigpt.filters import FilteredError, Filters
from midigpt.header import read_header
from midigpt.index import index_files, songs
from midigpt.midi import write_midi
from midigpt.normal import normalise
from midigpt.score import Score, Track, track_from_notes
from tests.conftest import OF_TRACKS, documents, make_songs, melody, ok, run_script


def band() -> Score:
    """Piano, nylon guitar, bass and drums, with 40, 30, 20 and 10 notes; 20 s and more."""
    parts = [(0, 40, False), (24, 30, False), (33, 20, False), (0, 10, True)]
    tracks = (melody(number, notes, drum, program).tracks[0] for number, (program, notes, drum) in enumerate(parts))
    return Score(480, tuple(tracks), 120.0)


@pytest.mark.parametrize(
    ("filters", "sizes"),
    [
        (Filters(), [40, 30, 20, 10]),
        (Filters(instruments="guitar,bass"), [30, 20]),
        (Filters(instruments="24,drums"), [30, 10]),
        (Filters(instruments="25,piano"), [40]),
        (Filters(drums=False), [40, 30, 20]),
        (Filters(min_notes=20), [40, 30, 20]),
        (Filters(instruments="bass,drums", drums=False), [20]),
    ],
)
def test_tracks_are_chosen(filters: Filters, sizes: list[int]) -> None:
    assert [len(track) for track in filters.apply(band()).tracks] == sizes


def test_a_file_with_nothing_left_or_too_long_is_told() -> None:
    with pytest.raises(FilteredError, match="instruments=organ"):
        Filters(instruments="organ").apply(band())
    seconds = band().end / 480 / 2
    assert Filters(max_seconds=seconds + 0.1).apply(band()) == band()
    with pytest.raises(FilteredError, match=r"lasts \d+ s, more than --max-seconds 5"):
        Filters(max_seconds=5).apply(band())


@pytest.mark.parametrize("instruments", ["banjo", "guitar,", "128", "-1"])
def test_an_instrument_that_does_not_exist_is_told(instruments: str) -> None:
    with pytest.raises(UserError, match="no General MIDI family"):
        Filters(instruments=instruments)


def test_merging_makes_one_track_of_all_pitched_ones() -> None:
    score = band()
    merged = Filters(merge=True).apply(score)
    assert [(track.is_drum, track.program) for track in merged.tracks] == [(False, 0), (True, 0)]
    rows = {tuple(row) for track in normalise(score).tracks[:3] for row in zip(track.onset, track.pitch, strict=True)}
    (pitched, drums) = normalise(merged).tracks
    assert set(zip(pitched.onset, pitched.pitch, strict=True)) == rows
    assert drums == normalise(score).tracks[3]


def test_a_merged_track_keeps_what_each_tracks_pedal_held() -> None:
    held = replace(track_from_notes([(0, 10, 60, 80)]), pedal=np.array([[0, 960]]))
    other = track_from_notes([(0, 240, 72, 80), (1920, 240, 72, 80)], program=5)
    merged = normalise(Filters(merge=True).apply(Score(480, (held, other))))
    assert merged.tracks[0].program == 5 and merged.tracks[0].duration.tolist() == [48, 12, 12]
    assert merged.tracks[0].onset.tolist() == [0, 0, 96]


def test_other_filters_convert_anew_and_the_same_do_not(tmp_path: Path) -> None:
    (tmp_path / "raw_data").mkdir()
    write_midi(band(), tmp_path / "raw_data" / "band.mid")
    write_midi(melody(9, is_drum=True), tmp_path / "raw_data" / "solo.mid")
    index_files(tmp_path)
    assert make_dataset(tmp_path, OF_TRACKS).documents == 5
    filters = Options(filters=Filters(drums=False))
    summary = make_dataset(tmp_path, filters)
    assert (summary.converted, summary.documents, summary.filtered, summary.before) == (1, 3, 1, {"filters": ""})
    assert set(documents(tmp_path)) == {"band_1.txt", "band_2.txt", "band_3.txt"}
    assert make_dataset(tmp_path, filters).converted == 0
    summary = make_dataset(tmp_path)
    assert (summary.converted, summary.before) == (2, {"filters": "drums=off"})
    assert make_dataset(tmp_path).before == {}


def test_the_flags_reach_the_filters(tmp_path: Path) -> None:
    (tmp_path / "raw_data").mkdir()
    write_midi(band(), tmp_path / "raw_data" / "band.mid")
    index_files(tmp_path)
    flags = ("--root", tmp_path, "--instruments", "guitar,bass,drums", "--no-drums", "--min-notes", "25", "--merge")
    flags = (*flags, "--layout", "track")
    out = ok(run_script("scripts/dataset.py", *flags))
    assert "1 files in 1 documents with 50 notes" in out
    assert read_header(documents(tmp_path)["band_1.txt"]).program == 24


# --- duplicates ------------------------------------------------------------------------------------------


def moved(score: Score, keys: int) -> Score:
    return replace(score, tracks=tuple(replace(track, pitch=track.pitch + keys) for track in score.tracks))


def first(score: Score, share: float) -> Score:
    def cut(track: Track) -> Track:
        count = int(share * len(track))
        columns = ("onset", "duration", "pitch", "velocity")
        return replace(track, **{name: getattr(track, name)[:count] for name in columns})

    return replace(score, tracks=tuple(map(cut, score.tracks)))


def used(root: Path) -> dict[str, str]:
    """By name: the song, of the files to be learned from."""
    return {song.name: song.fingerprint for song in songs(root)}


def test_duplicates_are_left_out_as_asked(tmp_path: Path) -> None:
    raw = tmp_path / "raw_data"
    make_songs(raw, 6)
    long = melody(100, notes=400)
    files = {"long": long, "copy": long, "moved": moved(long, 3), "a_part": moved(first(long, 0.8), -2)}
    for name, score in files.items():
        write_midi(score, raw / f"{name}.mid")
    index_files(tmp_path)
    summary = make_dataset(tmp_path)
    tunes = {f"song{number:02d}" for number in range(6)}
    assert used(tmp_path).keys() == {*tunes, "copy"}  # of those with most notes the first by name
    assert (summary.files, summary.songs, summary.duplicates) == (10, 7, 3)
    assert make_dataset(tmp_path, Options(dedupe="exact")).duplicates == 1
    assert used(tmp_path).keys() == {*tunes, "copy", "moved", "a_part"}
    summary = make_dataset(tmp_path, Options(dedupe="off"))
    assert (summary.converted, summary.duplicates, summary.songs) == (0, 0, 7)
    everything = used(tmp_path)
    assert everything.keys() == {*tunes, *files}
    assert len({everything[name] for name in files}) == 1  # still one song, on one side of the split


def test_the_order_of_tracks_makes_no_other_music(tmp_path: Path) -> None:
    (tmp_path / "raw_data").mkdir()
    write_midi(band(), tmp_path / "raw_data" / "band.mid")
    write_midi(replace(band(), tracks=band().tracks[::-1]), tmp_path / "raw_data" / "turned.mid")
    index_files(tmp_path)
    assert make_dataset(tmp_path, Options(dedupe="exact")).duplicates == 1


def test_when_the_kept_file_goes_its_duplicate_takes_its_place(tmp_path: Path) -> None:
    raw = tmp_path / "raw_data"
    make_songs(raw, 2)
    write_midi(moved(melody(0), 5), raw / "again.mid")
    index_files(tmp_path)
    make_dataset(tmp_path)
    assert used(tmp_path).keys() == {"again", "song01"}
    (raw / "again.mid").unlink()
    index_files(tmp_path)
    make_dataset(tmp_path)
    assert used(tmp_path).keys() == {"song00", "song01"}


def test_an_arrangement_of_its_own_is_kept(tmp_path: Path) -> None:
    tune = melody(1, notes=200).tracks
    others = [tuple(melody(10 * k + part, notes=200).tracks[0] for part in range(3)) for k in (1, 2)]
    (tmp_path / "raw_data").mkdir()
    for name, parts in zip("ab", others, strict=True):
        write_midi(Score(480, tune + parts), tmp_path / "raw_data" / f"{name}.mid")
    index_files(tmp_path)
    summary = make_dataset(tmp_path)
    assert (summary.songs, summary.duplicates) == (1, 0)
    assert len(used(tmp_path)) == 2 and len(set(used(tmp_path).values())) == 1
