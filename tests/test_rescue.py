"""Damaged and odd MIDI files: what is saved of them, and that every one has a defined outcome."""

import os
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from midigpt.header import LanguageError
from midigpt.language import decode, encode
from midigpt.midi import read_midi, write_midi
from midigpt.midi_bytes import MidiError
from midigpt.rescue import mend, rescue
from midigpt.score import Score, track_from_notes
from tests.conftest import PROJECT, melody, midi_files
from tests.test_midi import chunk, midi, note, rows_of

SCALE = [event for pitch in (60, 62, 64, 65, 67, 69, 71, 72) for event in note(pitch)]
GOOD = midi(chunk(*SCALE))
SAVED = rows_of(read_midi(GOOD).tracks[0])
OTHER = chunk(*note(50), *note(52))  # a second track
BAD = chunk((0, b"\x3c\x50"))  # data without a status
BREAK = b"\x00\xff\x01\x70"  # a text that is longer than the chunk


def tempo(data: bytes) -> tuple[int, bytes]:
    return 0, b"\xff\x51" + bytes([len(data)]) + data


def meter(data: bytes) -> tuple[int, bytes]:
    return 0, b"\xff\x58" + bytes([len(data)]) + data


def with_length(length: int, *chunks: bytes) -> bytes:
    """A file whose first chunk states another length than it has."""
    return midi(chunks[0][:4] + struct.pack(">I", length) + chunks[0][8:], *chunks[1:])


def rows_saved(data: bytes, remark: str) -> list[list[tuple[int, int, int, int]]]:
    """The notes of each track saved, of a file that can't be read as it is."""
    with pytest.raises(MidiError):
        read_midi(data)
    score, said = rescue(data)
    assert said == remark
    return [rows_of(track) for track in score.tracks]


# --- what is saved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 20, 1000, 0xFFFFFFFF])
def test_a_chunk_of_wrong_length_is_read_to_its_end_of_track(length: int) -> None:
    data = with_length(length, chunk(*SCALE), OTHER)
    assert rows_saved(data, f"track chunk 1 states a wrong length ({length} bytes)") == [SAVED, rows_of_other()]


def rows_of_other() -> list[tuple[int, int, int, int]]:
    return rows_of(read_midi(midi(OTHER)).tracks[0])


def test_a_file_cut_off_is_read_as_far_as_it_goes() -> None:
    remark = "track chunk 1 is cut off (6 bytes are missing); read up to its beat 8"
    assert rows_saved(GOOD[:-6], remark) == [SAVED[:7]]


def test_of_a_file_cut_off_anywhere_all_whole_notes_are_saved() -> None:
    for size in range(len(GOOD)):
        whole = min((size - 22) // 9, 8)  # a note's two events have 9 bytes, and the first stands at byte 22
        if whole < 4:
            with pytest.raises(MidiError):
                rescue(GOOD[:size])
        else:
            assert [rows_of(track) for track in rescue(GOOD[:size])[0].tracks] == [SAVED[:whole]]


def test_track_chunks_that_are_missing_are_told() -> None:
    data = midi(chunk(*SCALE), OTHER, OTHER)
    remark = "track chunk 2 is cut off (22 bytes are missing); left out; 1 of 3 track chunks are missing"
    assert rows_saved(data[: len(GOOD) + 8], remark) == [SAVED]


def test_amounts_above_127_are_clipped() -> None:
    events = [(0, b"\xb0\x07\xff"), (0, b"\xe0\xff\x90"), (0, b"\xd0\x80"), *note(48, velocity=200), *SCALE]
    (rows,) = rows_saved(midi(chunk(*events)), "clipped to 127: 4 messages")
    assert rows == [(0, 480, 48, 127), *((onset + 480, *rest) for onset, *rest in SAVED)]


@pytest.mark.parametrize("message", [b"\x90\xbc\x50", b"\xb0\xc0\x01", b"\xc0\xff", b"\xf4", b"\xfd"])
def test_an_impossible_message_is_left_out_and_its_time_passes(message: bytes) -> None:
    (rows,) = rows_saved(midi(chunk((100, message), *SCALE)), "left out as impossible: 1 messages")
    assert rows == [(onset + 100, *rest) for onset, *rest in SAVED]
    assert rescue(midi(chunk((100, message), *SCALE)))[0].tracks[0].program == 0


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\x90\xff\xff" + BREAK,
        b"\x00\xb0\x07\xff" + OTHER[8:-4] + BREAK,
        b"\x8f\xff\x7f\xff\x01\x00" + OTHER[8:-4] + BREAK,  # a wait of 262143 ticks
        b"\x80\x80\x80\x80\x00\x90\x3c\x50",
        9 * b"\xff\xff\xff\x7f\xff\x01\x00" + b"\x00\xff\x2f\x00",
    ],
)
def test_a_damaged_chunk_is_read_up_to_the_first_sign_of_damage(damage: bytes) -> None:
    body = chunk(*SCALE, end=False)[8:] + damage + chunk(*note(40))[8:]
    data = midi(b"MTrk" + struct.pack(">I", len(body)) + body, OTHER)
    assert rows_saved(data, "track chunk 1 is damaged; read up to its beat 9") == [SAVED, rows_of_other()]


def test_data_without_a_status_are_left_out() -> None:
    data = midi(chunk((0, b"\x3c\x50"), *note(60)), chunk(*SCALE))
    assert rows_saved(data, "track chunk 1 is damaged; left out") == [SAVED]


def test_many_damaged_chunks_make_a_short_remark() -> None:
    _, remark = rescue(midi(*[BAD] * 50, chunk(*SCALE)))
    assert remark.endswith("track chunk 3 is damaged; left out; 47 more track chunks are damaged too")


def test_garbage_between_chunks_is_passed_over() -> None:
    data = midi(BAD, chunk(*SCALE)) + b"garbage that is no chunk" + OTHER
    score, _ = rescue(data)
    assert [rows_of(track) for track in score.tracks] == [SAVED, rows_of_other()]


def test_a_file_sent_as_text_is_mended() -> None:
    original = midi(chunk((10, b"\xff\x03\x0ano newline"), *SCALE))
    assert b"\r" not in original
    score, remark = rescue(original.replace(b"\n", b"\r\n"))
    assert score == read_midi(original)
    assert remark == "the file was sent as text; its line ends were mended"


@pytest.mark.parametrize("fault", [b"", b"\x00\xb0\x07\xff"])
@pytest.mark.parametrize("lost", [600, 601, 602])
def test_where_a_lost_byte_makes_noise_of_the_notes_the_noise_is_not_saved(lost: int, fault: bytes) -> None:
    rng = random.Random(0)
    notes = [(rng.choice([60, 64]), rng.choice([60, 64]), rng.choice([0, 48])) for _ in range(400)]
    body = b"\x00\x90" + b"".join(bytes([pitch, loud, 48, pitch, 0, rest]) for pitch, loud, rest in notes)
    whole = rows_of(read_midi(midi(b"MTrk" + struct.pack(">I", len(body) - 1) + body[:-1])).tracks[0])
    damaged = body[:lost] + body[lost + 1 :] + fault + BREAK  # running status: all is read a byte too early
    data = midi(b"MTrk" + struct.pack(">I", len(damaged)) + damaged)
    (rows,) = rows_saved(data, "track chunk 1 is damaged; read up to its beat 16")
    assert 95 <= len(rows) <= 105
    assert rows[:95] == whole[:95]


def test_noise_behind_the_damage_does_not_tell_against_what_is_before_it() -> None:
    stray = (0, b"\x80\x3c\x00")
    body = chunk(stray, *SCALE, (0, b"\xb0\x07\xff"), *[stray] * 40, end=False)[8:] + BREAK
    data = midi(b"MTrk" + struct.pack(">I", len(body)) + body)
    assert rows_saved(data, "track chunk 1 is damaged; read up to its beat 9") == [SAVED]


def test_odd_events_of_a_damaged_file_do_no_harm() -> None:
    score, remark = rescue(midi(chunk(tempo(b"\x07"), meter(b"\x03"), (0, b"\xff\x05\x00"), *SCALE), BAD))
    assert remark == "track chunk 2 is damaged; left out; left out as impossible: 2 messages"
    assert (score.tempo_bpm, score.meter, rows_of(score.tracks[0])) == (120, (4, 4), SAVED)


def test_a_note_that_lost_its_end_is_dropped() -> None:
    endless = [(0, b"\x91\x30\x50"), (256 * 480 + 1, b"\x81\x30\x00")]
    data = midi(chunk(*SCALE), chunk(*endless), BAD)
    assert [rows_of(track) for track in rescue(data)[0].tracks] == [SAVED]
    never_closed = midi(chunk((0, b"\x91\x30\x50"), *SCALE), BAD)
    assert [rows_of(track) for track in rescue(never_closed)[0].tracks] == [SAVED]


# --- what is not -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(200), "is not a MIDI file"),
        (GOOD[:12], "is truncated"),
        (GOOD[:25], "is truncated"),
        (midi(chunk((0, b"\xff\x03\x02hi"))), "has no notes"),
        (midi(chunk(*[(0, bytes([0x90, pitch, 80])) for pitch in range(60, 90)])), "has no notes"),
        (midi(chunk(*SCALE), division=0), "0 ticks per beat"),
        (midi(chunk(*SCALE), division=0xE700), "SMPTE"),
        (GOOD[:4] + b"\0\0\0\x05" + GOOD[8:], "damaged header"),
        (GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:], "damaged header"),
        (midi(BAD), "damaged track chunk"),
        (midi(chunk(*note(60), *note(62), *note(64), (0, b"\x3c"), end=False)), "damaged track chunk"),
        (midi(chunk(*[(0x0FFFFFFF, b"\xff\x01\x00")] * 9, *SCALE)), "lasts impossibly long"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_the_reason_for_which_it_was(data: bytes, reason: str) -> None:
    with pytest.raises(MidiError, match=reason) as first:
        read_midi(data)
    with pytest.raises(MidiError) as second:
        rescue(data)
    assert str(second.value) == str(first.value)


def test_whole_files_are_read_as_ever(corpus: Callable[[str], Path]) -> None:
    for path in midi_files(corpus("mini"))[::3]:
        score = read_midi(path)
        assert rescue(path.read_bytes()) == (score, ""), path
        assert read_midi(mend(path.read_bytes())[0]) == score, path


# --- odd, but whole --------------------------------------------------------------------------------------


def test_notes_never_closed_are_dropped() -> None:
    score = read_midi(midi(chunk((0, b"\x90\x3c\x50"), (0, b"\x91\x40\x50"), *note(62))))
    assert [rows_of(track) for track in score.tracks] == [[(0, 480, 62, 80)]]


@pytest.mark.parametrize("data", [bytes([0, 0, 0]), b"\x07", b"", b"\x07\xa1"])
def test_a_tempo_of_0_or_of_too_few_bytes_does_not_count(data: bytes) -> None:
    for events in ([tempo(data), *note(60)], [*note(60), tempo(data)]):
        assert read_midi(midi(chunk(*events, end=False))).tempo_bpm == 120


@pytest.mark.parametrize("data", [b"\x00\x02\x18\x08", b"\x04\x1e\x18\x08", b"\x04\xff\x18\x08", b"\x07\x20\x18\x08"])
def test_an_impossible_meter_does_not_count(data: bytes) -> None:
    assert read_midi(midi(chunk(meter(data), *note(60)))).meter == (4, 4)


def test_a_meter_of_too_few_bytes_does_not_count() -> None:
    assert read_midi(midi(chunk(meter(b"\x03"), *note(60)))).meter == (4, 4)


def test_an_empty_lyric_is_harmless() -> None:
    assert rows_of(read_midi(midi(chunk((0, b"\xff\x05\x00"), *note(60)))).tracks[0]) == [(0, 480, 60, 80)]


@pytest.mark.parametrize("size", [100, 10_000])
def test_an_endless_delta_gives_a_short_reason(size: int) -> None:
    with pytest.raises(MidiError) as error:
        read_midi(midi(chunk((0, b"\xff\x01\x00" + b"\xff" * size + b"\x7f\x90\x3c\x50"), *note(60))))
    assert len(str(error.value)) < 200


def test_tracks_behind_a_garbled_chunk_are_not_lost() -> None:
    data = midi(chunk(*SCALE), b"\x7f\x01\x02\x03\xff\xff\xff\xff", OTHER)
    assert [rows_of(track) for track in rescue(data)[0].tracks] == [SAVED, rows_of_other()]


@pytest.mark.parametrize(
    "data",
    [
        midi(chunk(tempo(b"\0\0\1"), *note(60))),
        midi(chunk(tempo(b"\xff\xff\xff"), *note(60))),
        midi(chunk(meter(b"\xff\x07\x18\x08"), *note(60))),
        midi(chunk((0, b"\xff\x59\x02\x0c\x07"), (0, b"\xff\x59\x00"), *note(60))),
        midi(chunk(*note(60)), division=1),
        midi(chunk(*note(60)), division=32767),
        midi(chunk(*note(60)), division=0xE801),
        midi(chunk(*note(60)), division=0xE2FF),
        midi(chunk(*note(60)), midi_format=65535),
        midi(chunk(*note(60, duration=0x0FFFFFFF))),
        midi(chunk(*[(0x0FFFFFFF, b"\xff\x01\x00")] * 7, *note(60, 0x0FFFFFFF - 480))),
        midi(chunk((0, b"\xff\x03\x06a\0b\nc\x1b"), (0, b"\xff\x03\x04\x83\x73\x83\x41"), *note(60))),
        midi(chunk((0, b"\xff\x05\x02\xff\xfe"), (0, b"\xff\x05\x02la"), *note(60))),
        midi(chunk(*note(60), (0, b"\xff\x2f\x00"), *note(62))),
        midi(chunk(*note(60, duration=0))),
    ],
)
def test_absurd_values_in_a_whole_file_become_text_that_can_be_read(data: bytes) -> None:
    score, remark = rescue(data)
    assert (score.notes, remark) == (1, "")
    documents = [document.text for document in encode(score)]
    assert [document.text for document in encode(decode(documents))] == documents
    assert len(documents[0]) < 100


def test_a_piece_too_long_for_the_language_is_refused() -> None:
    with pytest.raises(LanguageError, match="steps long"):
        encode(rescue(midi(chunk(*note(60, duration=0x0FFFFFFF)), division=1))[0])


# --- many files ------------------------------------------------------------------------------------------


def notes_of(path: Path) -> int:
    """How many notes of a file become documents; 0 where it is refused."""
    try:
        score, _ = rescue(path.read_bytes())
        return sum(document.notes for document in encode(score)) and score.notes
    except (MidiError, LanguageError, OSError) as error:
        assert 0 < len(str(error)) < 2000
        return 0


def test_odd_files_of_other_projects(corpus: Callable[[str], Path]) -> None:
    folder = corpus("hostile") / "hostile"
    rows = [line.split("\t") for line in (folder / "LIST.tsv").read_text("utf-8").splitlines()[1:]]
    assert len(rows) > 190
    saved = 0
    for name, _, _, odd, _, _, _, _, symusic_notes, _ in rows:
        notes = notes_of(folder / name)
        assert notes >= int(symusic_notes or 0) // 2, name
        if "named .mid" in odd or "none anywhere" in odd or "clip file" in odd:
            assert notes == 0, name
        saved += notes > 0
    assert saved >= 160


def test_files_made_hostile(corpus: Callable[[str], Path], tmp_path: Path) -> None:
    good = corpus("mini") / "mini" / "small" / "test-c-major-scale.mid"
    maker = Path(os.environ["MIDIGPT_CORPUS"]) / "make_hostile.py"
    if not maker.exists():
        pytest.skip(f"needs {maker}")
    subprocess.run([sys.executable, maker, good, tmp_path, "--small"], check=True, capture_output=True)
    for line in (tmp_path / "LIST.tsv").read_text("utf-8").splitlines()[1:]:
        name, _, want, _ = line.split("\t")
        path = tmp_path / name
        if name.startswith("paths/"):  # what is odd about these is not in their bytes
            continue
        assert (notes_of(path) > 0) == (want == "read") or want == "either", name


def fuzz(variants: int) -> None:
    """Damage songs at random: a reader that dies or raises anything else than it may ends the process."""
    folder = Path(sys.argv[1])
    songs = [melody(1), melody(2, is_drum=True), melody(3, 400, program=30)]
    songs.append(Score(480, (*songs[0].tracks, *songs[1].tracks, track_from_notes([(0, 90, 60, 1)] * 5))))
    outcomes = Counter()
    for seed in range(variants):
        rng = random.Random(seed)
        path = folder / f"{seed % len(songs)}.mid"
        if not path.exists():
            write_midi(songs[seed % len(songs)], path)
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 2, 4, 8])):
            at = rng.randrange(len(data))
            noise = rng.randbytes(rng.choice([1, 1, 4, 30]))
            data[at : at + rng.choice([0, len(noise), len(noise)])] = noise
            del data[at : at + rng.choice([0, 0, 1, 30])]
        try:
            score, remark = rescue(bytes(data))
            encode(score)
            assert all(track.duration.min() >= 0 and track.pitch.max() < 128 for track in score.tracks)
            outcomes["rescued" if remark else "read"] += 1
        except (MidiError, LanguageError):
            outcomes["refused"] += 1
    print(*(outcomes[kind] for kind in ("read", "rescued", "refused")))


def test_no_damage_brings_the_reader_down(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from tests.test_rescue import fuzz; fuzz(1000)", tmp_path]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    read, rescued, refused = map(int, result.stdout.split())
    assert rescued > refused > 0 and rescued > read > 0
