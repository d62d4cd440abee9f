"""A prompt's file written on: what was there stays, what is new is read back, nothing is left hanging."""

from collections.abc import Callable
from pathlib import Path

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midigpt.files import UserError
from midigpt.midi import read_midi, read_song, write_midi
from midigpt.midi_bytes import read_events, split_chunks
from midigpt.prompt import Prompt, load_prompt
from midigpt.score import Score, Track, track_from_notes
from midigpt.splice import continue_midi, read_texts
from tests.conftest import midi_files
from tests.test_midi import Rows, chunk, midi, note, pedal, program, rows_of

Events = list[tuple[int, bytes]]


def prompt_of(data: bytes) -> Prompt:
    return Prompt(Path("song.mid"), data, read_song(data))


def events_of(data: bytes) -> list[Events]:
    """(tick, message) of each MTrk chunk, without End of Track."""
    return [
        [(event.tick, event.message) for event in read_events(one) if event.message != b"\xff\x2f\0"]
        for one in split_chunks(data)[1]
        if one[:4] == b"MTrk"
    ]


def part(*rows: tuple[int, int, int, int]) -> Track:
    return track_from_notes(list(rows))


def continued(*chunks: bytes, cut: int, parts: dict[int, Track], **header: int) -> list[Events]:
    data = midi(*chunks, **header)
    return events_of(continue_midi(prompt_of(data), cut, parts))


# --- real files ------------------------------------------------------------------------------------------


def mido_events(source: mido.MidiFile) -> list[Events]:
    tracks = []
    for track in source.tracks:
        now, events = 0, []
        for message in track:
            now += message.time
            if message.type != "end_of_track":
                events.append((now, bytes(message.bytes())))
        tracks.append(events)
    return tracks


def made_parts(prompt: Prompt, cut: int) -> dict[int, Track]:
    """A few notes for every part, of pitches that no other part of the channel has."""
    beat, parts, used = prompt.score.ticks_per_beat, {}, [0] * 16
    for number, (_, channel) in enumerate(prompt.seats):
        low = used[channel] = used[channel] + 3
        rows = [(cut, beat, low, 70), (cut, 3 * beat, low + 1, 71), (cut + beat, beat, low, 72)]
        parts[number] = track_from_notes(rows)
    return parts


def test_real_files_go_on_and_keep_what_was_there(corpus: Callable[[str], Path], tmp_path: Path) -> None:
    take = tmp_path / "take.mid"
    for path in midi_files(corpus("mini")):
        prompt = load_prompt(path)
        was = mido.MidiFile(path)
        before = mido_events(was)
        end = prompt.cut()
        first = min(int(track.onset[0]) for track in prompt.score.tracks)
        middle = prompt.cut(prompt.bar_at((first + prompt.last_onset) // 2) + 1)
        for cut, last in ((end, end), (middle, middle - 1)):
            parts = made_parts(prompt, cut)
            take.write_bytes(continue_midi(prompt, cut, parts, ["made here"]))

            now = mido.MidiFile(take)
            assert (now.type, now.ticks_per_beat) == (was.type, was.ticks_per_beat)
            for old, new in zip(before, mido_events(now), strict=True):
                kept = [event for event in old if event[0] <= last]
                assert new[: len(kept)] == kept, path
                assert all(tick >= cut for tick, _ in new[len(kept) :]), path

            again = read_song(take.read_bytes())
            seats = dict(zip(again.seats, again.score.tracks, strict=True))
            for number, seat in enumerate(prompt.seats):
                assert [row for row in rows_of(seats[seat]) if row[0] >= cut] == rows_of(parts[number]), path
            assert "made here" in read_texts(take)


def test_odd_files_go_on_or_say_why_not(corpus: Callable[[str], Path]) -> None:
    gone_on = 0
    for path in sorted((corpus("hostile") / "hostile").rglob("*")):
        if not path.is_file():
            continue
        try:
            prompt = load_prompt(path)
            cut = prompt.cut()
            parts = made_parts(prompt, cut)
            data = continue_midi(prompt, cut, parts, ["made here"])
        except UserError as error:
            assert path.name in str(error)
            continue
        gone_on += 1
        for old, new in zip(events_of(prompt.data), events_of(data), strict=True):
            kept = [event for event in old if event[0] * prompt.song.file_tick <= cut]
            assert new[: len(kept)] == kept, path
        again = read_song(data)
        seats = dict(zip(again.seats, again.score.tracks, strict=True))
        for number, seat in enumerate(prompt.seats):
            unit = prompt.song.file_tick
            wanted = [(t // unit * unit, pitch) for t, _, pitch, _ in rows_of(parts[number])]
            assert sorted((t, p) for t, _, p, _ in rows_of(seats[seat]) if t >= cut) == sorted(wanted), path
    assert gone_on >= 100


# --- what stays ------------------------------------------------------------------------------------------


def test_the_bytes_before_the_cut_stay_as_they_stand() -> None:
    events = b"\0\x90\x3c\x50\x83\x60\x3c\x00\x80\x00\x3e\x50"  # running status, a delta of one byte too many
    rest = b"\x83\x60\x3e\x00\0\xff\x2f\0"
    body = events + rest
    data = midi(b"MTrk" + len(body).to_bytes(4, "big") + body)
    assert data[22:].startswith(events)
    assert continue_midi(prompt_of(data), 480 + 1, {})[22:].startswith(events)


@pytest.mark.parametrize("tempo", [b"\xff\x51\x03\x01\0\0", b"\xff\x58\x04\x03\x02\x18\x08", b"\xff\x59\x02\x01\0"])
def test_what_comes_behind_the_cut_goes(tempo: bytes) -> None:
    events = [*note(60), (0, tempo), (0, b"\xb0\x0a\x01"), *note(62), (100, tempo), (100, b"\xff\x01\x01x")]
    ((*kept, on, off),) = continued(chunk(*events), cut=480, parts={0: part((600, 10, 50, 70))})
    # A tempo, meter or key at the cut is of what comes, an end at the cut is a held note's.
    assert kept == [(0, b"\x90\x3c\x50"), (480, tempo), (480, b"\x80\x3c\x00")]
    assert (on, off) == ((600, b"\x90\x32\x46"), (610, b"\x80\x32\x40"))


def test_behind_the_last_note_what_stands_at_the_cut_stays_too() -> None:
    tail = [(100, b"\xff\x06\x01m"), (380, b"\xff\x01\x01x"), (0, b"\xb0\x0a\x05"), (1, b"\xb0\x0a\x06")]
    (events,) = continued(chunk(*note(60), *tail), cut=960, parts={0: part((960, 10, 50, 70))})
    assert [event for event in events if event[0] <= 960][2:5] == [
        (580, b"\xff\x06\x01m"),
        (960, b"\xff\x01\x01x"),
        (960, b"\xb0\x0a\x05"),
    ]
    assert events[5:] == [(960, b"\x90\x32\x46"), (970, b"\x80\x32\x40")]


def test_chunks_header_and_format_stay() -> None:
    odd = b"XFIH\0\0\0\x05hello"
    first, second = chunk(*note(60)), chunk(*note(50, channel=1))
    data = b"MThd\0\0\0\x08\0\x02\0\x63\x01\xe0zz" + odd + first + odd + second  # claims 99 chunks
    wrapped = b"RIFF\0\0\0\0RMIDdata\0\0\0\0" + data + b"LIST\x04\0\0\0abcd"
    out = continue_midi(prompt_of(wrapped), 480, {})
    assert out == data.replace(b"\0\x63", b"\0\x02")


def test_smpte_time_is_kept() -> None:
    division = (256 - 25) << 8 | 40  # 500 ticks a beat at 120, which the score counts as 1000
    data = midi(chunk(*note(60)), division=division)
    prompt = prompt_of(data)
    out = continue_midi(prompt, prompt.cut(), {0: part((1000, 500, 62, 70), (1500, 500, 64, 70))})
    assert out[12:14] == data[12:14]
    assert rows_of(read_midi(out).tracks[0]) == [(0, 960, 60, 80), (1000, 500, 62, 70), (1500, 500, 64, 70)]


def test_the_end_of_track_does_not_move_before_the_cut() -> None:
    out = continue_midi(prompt_of(midi(chunk((5000, b"\xff\x01\x00")), chunk(*note(60, 700)))), 1200, {})
    ends = [event.tick for one in split_chunks(out)[1] for event in read_events(one) if event.message == b"\xff\x2f\0"]
    assert ends == [1200, 1180]


# --- what is left hanging --------------------------------------------------------------------------------


def test_a_note_held_over_the_cut_ends_where_it_did() -> None:
    (events,) = continued(chunk(*note(60, duration=960), *note(62)), cut=480, parts={0: part((480, 10, 50, 70))})
    assert (960, b"\x80\x3c\x00") in events
    assert len(events) == 4


def test_a_note_held_over_the_cut_ends_where_its_pitch_starts_again() -> None:
    parts = {0: part((600, 480, 60, 70))}
    data = continue_midi(prompt_of(midi(chunk(*note(60, duration=960), *note(62)))), 480, parts)
    assert rows_of(read_midi(data).tracks[0]) == [(0, 600, 60, 80), (600, 480, 60, 70)]


def test_of_two_held_notes_of_one_pitch_both_end() -> None:
    on, off = b"\x90\x3c\x50", b"\x90\x3c\x00"
    events = [(0, on), (100, on), (500, on), (100, off), (100, off), (100, off)]
    (kept,) = continued(chunk(*events), cut=480, parts={})
    assert kept == [(0, on), (100, on), (700, off), (800, off)]


def test_a_note_that_nothing_ends_is_ended_at_the_cut() -> None:
    (events,) = continued(chunk(*note(60), (0, b"\x92\x30\x50")), cut=960, parts={0: part((960, 10, 48, 70))})
    assert events[3:] == [(960, b"\x82\x30\x40"), (960, b"\x90\x30\x46"), (970, b"\x80\x30\x40")]


def test_pedals_and_bends_are_undone_at_the_cut() -> None:
    bend = (0, b"\xe0\x00\x50")
    first = chunk(pedal(127), bend, *note(60), *note(62))
    second = chunk(pedal(127, 1), (0, b"\xe1\x00\x50"), *note(60, channel=1))
    one, other = continued(first, second, cut=480, parts={0: part((500, 10, 50, 70))})
    lifted, centred = (480, b"\xb0\x40\x00"), (480, b"\xe0\x00\x40")
    assert set(one[4:-2]) == {lifted, centred}
    assert other[4:] == [(480, b"\xb1\x40\x00")]  # this channel does not go on: what sounds there keeps its pitch


def test_nothing_is_undone_that_the_file_undid_itself() -> None:
    reset = [(0, b"\xb0\x79\x00"), program(5), (0, b"\xb0\x07\x64")]
    events = [pedal(127), (0, b"\xe0\0\x50"), program(5), *note(60), *reset]
    (kept,) = continued(chunk(*events), cut=480, parts={0: part((480, 10, 50, 70))})
    assert len(kept) == len(events) + 2


def test_a_channel_is_heard_in_all_chunks_by_time() -> None:
    first = chunk(*note(60), pedal(0), (0, b"\xb0\x07\x20"), *note(62))
    one, other = continued(first, chunk(pedal(127), (0, b"\xb0\x07\x50")), cut=960, parts={0: part((960, 9, 50, 70))})
    assert len(one) == 6 + 2  # the pedal is up, and the volume as it was
    assert len(other) == 2


def test_what_the_file_resets_behind_its_last_note_is_put_back() -> None:
    setting = [program(40), (0, b"\xb0\x07\x50"), (0, b"\xb0\x0b\x60")]
    resets = [program(0), (0, b"\xb0\x07\x00"), (0, b"\xb0\x0b\x00")]
    (kept,) = continued(chunk(*setting, *note(60), *resets), cut=480, parts={0: part((480, 10, 50, 70))})
    assert kept[8:11] == [(480, b"\xc0\x28"), (480, b"\xb0\x07\x50"), (480, b"\xb0\x0b\x60")]
    (kept,) = continued(chunk(*setting, *note(60), *resets), cut=480, parts={})
    assert len(kept) == 8  # nobody plays on


def test_a_part_that_had_not_begun_gets_its_program() -> None:
    late = chunk(program(40, 3, 4800), *note(60, channel=3))
    _, events = continued(chunk(*note(60), *note(60, 9600)), late, cut=960, parts={1: part((960, 10, 50, 70))})
    assert events == [(960, b"\xc3\x28"), (960, b"\x93\x32\x46"), (970, b"\x83\x32\x40")]


def test_patterns_do_not_hear_each_other() -> None:
    chunks = chunk(pedal(127), *note(60)), chunk(*note(60), *note(64, 480))
    assert continued(*chunks, cut=960, parts={1: part((960, 10, 50, 70))}, midi_format=2)[1][2:] == [
        (960, b"\x90\x32\x46"),
        (970, b"\x80\x32\x40"),
    ]


# --- any file --------------------------------------------------------------------------------------------

MESSAGES = st.one_of(
    st.tuples(st.sampled_from([0x80, 0x81, 0x90, 0x91]), st.integers(60, 63), st.sampled_from([0, 90])).map(bytes),
    st.tuples(st.sampled_from([0xB0, 0xB1]), st.sampled_from([1, 7, 11, 64, 121]), st.integers(0, 127)).map(bytes),
    st.tuples(st.sampled_from([0xC0, 0xC1]), st.integers(0, 127)).map(bytes),
    st.tuples(st.sampled_from([0xE0, 0xE1]), st.just(0), st.integers(0, 127)).map(bytes),
    st.sampled_from(
        [b"\xff\x01\x02hi", b"\xff\x51\x03\x07\xa1\x20", b"\xf0\x02\x01\xf7", b"\xff\x58\x04\x03\x02\x18\x08"]
    ),
)
CHUNKS = st.lists(st.tuples(st.sampled_from([0, 0, 60, 480, 1000]), MESSAGES), max_size=20)
ROW = st.tuples(st.integers(0, 2000), st.integers(1, 900), st.integers(60, 63), st.integers(1, 127))
ROWS = st.lists(ROW, min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(CHUNKS, min_size=1, max_size=3),
    st.integers(1, 3000),
    st.lists(ROWS, min_size=1, max_size=6),
    st.booleans(),
)
def test_any_file_goes_on(chunks: list[Events], cut: int, rows: list[Rows], are_patterns: bool) -> None:
    data = midi(*(chunk(*note(50), *events) for events in chunks), midi_format=2 if are_patterns else 1)
    prompt = prompt_of(data)
    parts = {
        number: part(
            *{(onset, pitch): (cut + onset, length, pitch, loud) for onset, length, pitch, loud in own}.values()
        )
        for number, own in zip(range(len(prompt.seats)), rows, strict=False)
    }
    out = continue_midi(prompt, cut, parts)
    for old, new in zip(events_of(data), events_of(out), strict=True):
        kept = [event for event in old if event[0] < cut or (event[0] == cut > prompt.last_onset)]
        assert new[: len(kept)] == kept
        assert all(tick >= cut for tick, _ in new[len(kept) :])
    again = read_song(out)
    seats = dict(zip(again.seats, again.score.tracks, strict=True))
    for number, own in parts.items():
        begun = [row for row in rows_of(seats[prompt.seats[number]]) if row[0] > cut]
        wanted = [row for row in rows_of(own) if row[0] > cut]
        assert sorted((t, pitch, loud) for t, _, pitch, loud in begun) == sorted((t, p, v) for t, _, p, v in wanted)
        for onset, length, pitch, _ in wanted:
            again_at = min((t for t, _, p, _ in wanted if p == pitch and t > onset), default=onset + length)
            assert (onset, min(length, again_at - onset), pitch) in [row[:3] for row in begun]
    down = pedals_down(out, are_patterns)
    assert not down, down


def pedals_down(data: bytes, are_patterns: bool) -> list[tuple[int, int]]:
    """Channels whose pedal is down at the end, with their chunk where channels are its own."""
    values: dict[tuple[int, int], int] = {}
    events = [(tick, number, message) for number, one in enumerate(events_of(data)) for tick, message in one]
    for _, number, message in sorted(events, key=lambda event: event[0]):
        if message[0] & 0xF0 == 0xB0 and message[1] in (64, 121):
            values[number if are_patterns else 0, message[0] & 0x0F] = message[2] if message[1] == 64 else 0
    return [place for place, value in values.items() if value]


# --- texts, and what can't be ----------------------------------------------------------------------------


def test_texts_stand_at_the_end_of_the_first_chunk_and_are_read_back(tmp_path: Path) -> None:
    texts = ["seed=7", "", "größer ♪ " * 40]
    data = midi(chunk(*note(60), (0, b"\xff\x01\x03old")), chunk(*note(62)))
    take = tmp_path / "take.mid"
    take.write_bytes(continue_midi(prompt_of(data), 480, {0: part((480, 1000, 50, 70))}, texts))
    assert read_texts(take) == ["old", *texts]
    first, second = events_of(take.read_bytes())
    assert [message[:2] for _, message in first[-3:]] == [b"\xff\x01"] * 3
    assert len(second) == 2
    write_midi(Score(480, (part((0, 1, 60, 60)),)), take, texts)
    assert read_texts(take) == texts


def test_texts_of_what_is_no_midi_file_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.mid").write_text("words")
    for name in ("a.mid", "none.mid"):
        with pytest.raises(UserError, match=name):
            read_texts(tmp_path / name)


def test_a_silence_too_long_to_write_is_a_sentence() -> None:
    prompt = prompt_of(midi(chunk(*note(60))))
    with pytest.raises(UserError, match=r"song\.mid .*too long"):
        continue_midi(prompt, 480, {0: part((2**30, 1, 60, 60))})
    many = {0: part(*((count << 27, 1, 60, 60) for count in range(1, 17)))}
    with pytest.raises(UserError, match=r"song\.mid would go on"):
        continue_midi(prompt, 480, many)


def test_a_part_before_the_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="before the cut"):
        continue_midi(prompt_of(midi(chunk(*note(60)))), 480, {0: part((470, 1, 60, 60))})
