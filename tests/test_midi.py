"""Reading and writing MIDI files, against mido as the oracle and on the traps of earlier systems."""

import struct
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path

import mido
import pytest

from midigpt.midi import read_midi, write_midi
from midigpt.midi_bytes import MidiError
from midigpt.normal import normalise
from midigpt.score import Score, Track, track_from_notes
from tests.conftest import midi_files

Rows = list[tuple[int, int, int, int]]


def rows_of(track: Track) -> Rows:
    columns = track.onset, track.duration, track.pitch, track.velocity
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def read_with_mido(path: Path) -> list[tuple[bool, Rows]]:
    """(is drum, notes) of every channel of every track that has notes; a note-off ends the oldest open note."""
    parts = []
    for track in mido.MidiFile(path).tracks:
        channels: dict[int, Rows] = defaultdict(list)
        sounding: dict[tuple[int, int], deque[tuple[int, int]]] = defaultdict(deque)
        now = 0
        for message in track:
            now += message.time
            if message.type == "note_on" and message.velocity:
                sounding[message.channel, message.note].append((now, message.velocity))
            elif message.type in ("note_on", "note_off") and sounding[message.channel, message.note]:
                start, velocity = sounding[message.channel, message.note].popleft()
                channels[message.channel].append((start, now - start, message.note, velocity))
        parts += [(channel == 9, sorted(channels[channel])) for channel in sorted(channels)]
    return parts


def vlq(number: int) -> bytes:
    """A variable-length quantity."""
    out = [number & 0x7F]
    while number := number >> 7:
        out.append(number & 0x7F | 0x80)
    return bytes(reversed(out))


def chunk(*events: tuple[int, bytes], end: bool = True) -> bytes:
    """An MTrk chunk of (delta, message) events."""
    body = b"".join(vlq(delta) + message for delta, message in events) + (b"\0\xff\x2f\0" if end else b"")
    return b"MTrk" + struct.pack(">I", len(body)) + body


def midi(*chunks: bytes, midi_format: int = 1, division: int = 480) -> bytes:
    return b"MThd" + struct.pack(">IHHH", 6, midi_format, len(chunks), division) + b"".join(chunks)


def note(
    pitch: int, delta: int = 0, duration: int = 480, channel: int = 0, velocity: int = 80
) -> list[tuple[int, bytes]]:
    return [(delta, bytes([0x90 | channel, pitch, velocity])), (duration, bytes([0x80 | channel, pitch, 0]))]


def program(number: int, channel: int = 0, delta: int = 0) -> tuple[int, bytes]:
    return delta, bytes([0xC0 | channel, number])


def pedal(value: int, channel: int = 0, delta: int = 0) -> tuple[int, bytes]:
    return delta, bytes([0xB0 | channel, 64, value])


# --- against mido ----------------------------------------------------------------------------------------


def test_mido_reads_the_same_notes_from_real_files(corpus: Callable[[str], Path]) -> None:
    for path in midi_files(corpus("mini")):
        ours = [(track.is_drum, rows_of(track)) for track in read_midi(path).tracks]
        assert ours == read_with_mido(path), path


def test_mido_reads_back_what_is_written_of_real_files(corpus: Callable[[str], Path], tmp_path: Path) -> None:
    for path in midi_files(corpus("mini")):
        score = normalise(read_midi(path))
        write_midi(score, tmp_path / "again.mid")
        ours = [
            (t.is_drum, sorted((s * 20, d * 20, p, v) for s, d, p, v in rows_of(t))) for t in score.tracks
        ]  # 24 ticks to the beat become 480
        assert read_with_mido(tmp_path / "again.mid") == ours, path


def test_a_note_is_written_to_end_where_its_pitch_starts_again(tmp_path: Path) -> None:
    write_midi(Score(480, (track_from_notes([(0, 960, 60, 80), (10, 100, 60, 80)]),)), tmp_path / "a.mid")
    assert rows_of(read_midi(tmp_path / "a.mid").tracks[0]) == [(0, 10, 60, 80), (10, 100, 60, 80)]


def test_any_track_name_is_written(tmp_path: Path) -> None:
    write_midi(Score(480, (track_from_notes([(0, 480, 60, 80)], name="ピアノ é"),)), tmp_path / "a.mid")
    assert read_midi(tmp_path / "a.mid").tracks[0].name == "ピアノ é"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    tracks = (
        track_from_notes([(0, 480, 60, 80), (480, 240, 60, 1), (720, 10, 64, 127)], program=40),
        track_from_notes([(0, 100, 36, 90), (100, 100, 36, 91)], is_drum=True),
        track_from_notes([(100000, 1, 0, 5), (100000, 5, 127, 5)], program=127),
    )
    score = Score(480, tracks, 100.0, (6, 8))
    write_midi(score, tmp_path / "a.mid")
    assert read_midi(tmp_path / "a.mid") == score
    assert read_with_mido(tmp_path / "a.mid") == [(track.is_drum, rows_of(track)) for track in tracks]


def test_more_parts_than_channels_are_read_again(tmp_path: Path) -> None:
    tracks = tuple(track_from_notes([(i, 100, 60, 80)], program=i) for i in range(40))
    write_midi(Score(480, tracks), tmp_path / "a.mid")
    again = read_midi(tmp_path / "a.mid")
    assert [rows_of(track) for track in again.tracks] == [rows_of(track) for track in tracks]
    assert [track.program for track in again.tracks] == list(range(40))


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path) -> None:
    score = Score(480, (track_from_notes([(2**31, 480, 60, 80)]),))
    with pytest.raises(MidiError, match="too long for a MIDI file"):
        write_midi(score, tmp_path / "a.mid")
    assert list(tmp_path.iterdir()) == []


# --- traps met in earlier systems ------------------------------------------------------------------------


def test_trap_time_passes_at_messages_that_are_not_notes() -> None:
    events = [(100, b"\xff\x01\x02hi"), (200, b"\xb0\x07\x40"), (300, b"\xe0\0\x40"), *note(60, delta=400)]
    assert rows_of(read_midi(midi(chunk(*events))).tracks[0]) == [(1000, 480, 60, 80)]


def test_trap_velocity_1_sounds_and_velocity_0_ends() -> None:
    events = [(0, b"\x90\x3c\x01"), (480, b"\x90\x3c\x00")]
    assert rows_of(read_midi(midi(chunk(*events))).tracks[0]) == [(0, 480, 60, 1)]


@pytest.mark.parametrize("off_first", [True, False])
def test_trap_off_and_on_of_one_pitch_at_one_tick(off_first: bool) -> None:
    off, on = b"\x80\x3c\0", b"\x90\x3c\x50"
    events = [(0, on), (480, off if off_first else on), (0, on if off_first else off), (240, off)]
    assert rows_of(read_midi(midi(chunk(*events))).tracks[0]) == [(0, 480, 60, 80), (480, 240, 60, 80)]


def test_trap_smpte_time_becomes_beats_at_120() -> None:
    division = (256 - 25) << 8 | 40  # 1000 ticks a second
    data = midi(chunk((0, b"\xff\x51\x03\x01\x02\x03"), *note(60, delta=500, duration=250)), division=division)
    score = read_midi(data)
    assert score.tempo_bpm == 120
    assert rows_of(score.tracks[0]) == [(score.ticks_per_beat, score.ticks_per_beat // 2, 60, 80)]


def test_trap_a_division_of_0_is_refused() -> None:
    with pytest.raises(MidiError, match="0 ticks per beat"):
        read_midi(midi(chunk(*note(60)), division=0))


def test_trap_a_track_without_its_end_marker_is_read() -> None:
    assert rows_of(read_midi(midi(chunk(*note(60), end=False))).tracks[0]) == [(0, 480, 60, 80)]


def test_trap_a_pedal_in_a_track_of_its_own_is_heard() -> None:
    score = read_midi(midi(chunk(pedal(127, 3, 100), pedal(0, 3, 900)), chunk(*note(60, channel=3)), chunk(*note(62))))
    assert [track.pedal.tolist() for track in score.tracks] == [[[100, 1000]], []]


# --- tracks, channels, programs, pedals ------------------------------------------------------------------


def test_a_track_on_several_channels_gives_a_part_for_each() -> None:
    events = [program(10, 0), program(20, 1), *note(60), *note(62, channel=1), *note(36, channel=9), *note(64)]
    tracks = read_midi(midi(chunk(*events), midi_format=0)).tracks
    assert [(t.program, t.is_drum, len(t)) for t in tracks] == [(10, False, 2), (20, False, 1), (0, True, 1)]


def test_a_program_change_in_mid_track_does_not_split_it() -> None:
    events = [program(30), *note(60), program(27), *note(62), program(30), *note(64)]
    (track,) = read_midi(midi(chunk(*events))).tracks
    assert track.program == 30
    assert [row[2] for row in rows_of(track)] == [60, 62, 64]


def test_programs_set_in_another_track_hold_for_the_channel() -> None:
    tracks = read_midi(
        midi(chunk(program(40, 0), program(50, 1)), chunk(*note(60)), chunk(*note(60, channel=1)))
    ).tracks
    assert [track.program for track in tracks] == [40, 50]


def test_a_program_set_after_the_first_note_does_not_count() -> None:
    assert read_midi(midi(chunk(*note(60), program(40), *note(62)))).tracks[0].program == 0


def test_in_format_2_each_track_is_alone() -> None:
    tracks = read_midi(midi(chunk(program(40)), chunk(*note(60)), midi_format=2)).tracks
    assert [track.program for track in tracks] == [0]


@pytest.mark.parametrize("channel", [0, 5])
def test_pedals_are_read_on_every_channel(channel: int) -> None:
    events = [
        (0, bytes([0x90 | channel, 60, 80])),
        pedal(127, channel, 100),
        pedal(0, channel, 50),
        pedal(64, channel, 50),
    ]
    events += [pedal(100, channel, 10), (290, bytes([0x80 | channel, 60, 0]))]
    (track,) = read_midi(midi(chunk(*events))).tracks
    assert track.pedal.tolist() == [[100, 150], [200, 500]]  # the second is never released


def test_running_status_goes_on_behind_a_meta_event() -> None:
    pressure = [(0, b"\xd0\x10"), (0, b"\xff\x01\x01x"), (0, b"\x20"), (0, b"\x30")]
    data = midi(chunk(*note(60), *pressure, *note(62, channel=1), program(7, 0, 0), *note(64)))
    assert [(track.program, len(track)) for track in read_midi(data).tracks] == [(0, 2), (0, 1)]


def test_a_pedal_of_another_channel_behind_the_notes_is_heard_by_its_track() -> None:
    tracks = read_midi(midi(chunk(*note(60), pedal(127, 1, 0), pedal(0, 1, 600)), chunk(*note(62, channel=1)))).tracks
    assert [track.pedal.tolist() for track in tracks] == [[], [[480, 1080]]]


def test_pedals_and_programs_behind_another_channels_first_note_are_read() -> None:
    setup = [*note(60), pedal(127, 1, 480), pedal(0, 1, 600), program(40, 1, 0)]
    tracks = read_midi(midi(chunk(*setup), chunk(*note(60, 1200, channel=1)))).tracks
    assert tracks[1].pedal.tolist() == [[960, 1560]]
    assert [track.program for track in tracks] == [0, 0]  # set at 1560, after the first note at 1200
    tracks = read_midi(midi(chunk(*setup), chunk(*note(60, 2000, channel=1)))).tracks
    assert [track.program for track in tracks] == [0, 40]


@pytest.mark.parametrize(
    "exclusive", [b"\xf0\x03\x43\x12\x00", b"\xf7\x02\x43\xf7", b"\xf7\x01\x08", b"\xf0\x05~\x7f\t\x01\xf7"]
)
def test_system_exclusive_takes_no_time(exclusive: bytes) -> None:
    data = midi(chunk((0, exclusive), *note(60, delta=200)))
    assert rows_of(read_midi(data).tracks[0]) == [(200, 480, 60, 80)]


@pytest.mark.parametrize("stray", [b"\xf8", b"\xf1\x05", b"\xf2\x05\x06", b"\xf6"])
def test_system_messages_that_have_no_place_in_a_file_are_passed_over(stray: bytes) -> None:
    tracks = read_midi(midi(chunk(*note(60), (10, stray), *note(62, delta=5, channel=1)))).tracks
    assert [rows_of(track) for track in tracks] == [[(0, 480, 60, 80)], [(495, 480, 62, 80)]]


def test_tempo_and_meter_are_the_first_ones() -> None:
    conductor = chunk(
        (0, b"\xff\x58\x04\x03\x03\x18\x08"), (0, b"\xff\x51\x03\x07\xa1\x20"), (960, b"\xff\x51\x03\x01\0\0")
    )
    score = read_midi(midi(conductor, chunk(*note(60))))
    assert (score.tempo_bpm, score.meter) == (120.0, (3, 8))
    both = chunk((0, b"\xff\x58\x04\x04\x02\x18\x08"), (0, b"\xff\x58\x04\x03\x02\x18\x08"))
    assert read_midi(midi(both, chunk(*note(60)))).meter == (4, 4)


# --- bad input -------------------------------------------------------------------------------------------


GOOD = midi(chunk(*note(60)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"These are the notes of a meeting.", "is not a MIDI file"),
        (GOOD[:12], "is truncated"),
        (GOOD[:-6], "is truncated"),
        (midi(chunk((0, b"\xff\x03\x02hi"))), "has no notes"),
        (midi(), "has no notes"),
        (midi(chunk(*[(0x0FFFFFFF, b"\xff\x01\x00")] * 9, *note(60))), "lasts impossibly long"),
        (GOOD[:4] + b"\0\0\0\x05" + GOOD[8:], "damaged header"),
        (GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:], "damaged header"),
        (midi(chunk((0, b"\x90\xc8\x50"), (10, b"\x80\x3c\0"))), "damaged track chunk"),
    ],
)
def test_bad_files_give_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(MidiError, match=reason):
        read_midi(data)


@pytest.mark.parametrize("before", [bytes(128), b"\xef\xbb\xbf", b"RIFF\0\0\0\0RMIDdata\0\0\0\0"])
def test_a_foreign_header_in_front_is_passed_over(before: bytes) -> None:
    assert read_midi(before + GOOD) == read_midi(GOOD)
