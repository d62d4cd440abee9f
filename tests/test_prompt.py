"""Prompts: bars, where a continuation may begin, what a model reads of the file, and the way back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from midigpt.files import UserError
from midigpt.language import decode, encode
from midigpt.midi import read_song
from midigpt.prompt import Prompt, after, before, describe_parts, load_prompt
from tests.conftest import midi_files
from tests.test_midi import chunk, midi, note, pedal, program, rows_of


def prompt_of(*chunks: bytes, **header: int) -> Prompt:
    data = midi(*chunks, **header)
    return Prompt(Path("song.mid"), data, read_song(data))


def meter(numerator: int, power: int, delta: int = 0) -> tuple[int, bytes]:
    return delta, bytes((0xFF, 0x58, 4, numerator, power, 24, 8))


def tempo(microseconds: int, delta: int = 0) -> tuple[int, bytes]:
    return delta, b"\xff\x51\x03" + microseconds.to_bytes(3, "big")


# --- maps ------------------------------------------------------------------------------------------------


def test_seats_say_where_each_track_stands() -> None:
    prompt = prompt_of(chunk(tempo(1)), chunk(*note(60, channel=3), *note(60, channel=1)), chunk(*note(36, channel=9)))
    assert prompt.seats == ((1, 1), (1, 3), (2, 9))


def test_tempos_and_meters_are_read_from_all_chunks_and_begin_at_0() -> None:
    first = chunk(tempo(600_000, 480), meter(3, 2, 480), *note(60))
    second = chunk(tempo(1_000_000, 480), tempo(250_000, 960), *note(60))
    prompt = prompt_of(first, second)
    assert prompt.tempos == ((0, 120.0), (480, 60.0), (1440, 240.0))  # at 480 the last of the file's order holds
    assert prompt.meters == ((0, (4, 4)), (960, (3, 4)))
    assert [prompt.tempo_at(tick) for tick in (0, 479, 480, 9999)] == [120, 120, 60, 240]
    assert [prompt.meter_at(tick) for tick in (959, 960)] == [(4, 4), (3, 4)]


def test_what_is_no_tempo_or_meter_does_not_count() -> None:
    prompt = prompt_of(chunk(tempo(0), meter(0, 2), meter(4, 9), *note(60)))
    assert (prompt.tempos, prompt.meters) == (((0, 120.0),), ((0, (4, 4)),))


def test_smpte_time_has_one_tempo_and_every_other_tick() -> None:
    prompt = prompt_of(chunk(meter(3, 2, 500), tempo(1), *note(60, duration=501)), division=(256 - 25) << 8 | 41)
    assert (prompt.tempos, prompt.meters) == (((0, 120.0),), ((0, (4, 4)), (1000, (3, 4))))
    assert prompt.score.ticks_per_beat == 1025
    assert prompt.score.end == 2002
    assert prompt.cut() == 2026  # a beat of 1025 ticks behind 1000 is between two ticks of the file


# --- bars ------------------------------------------------------------------------------------------------


def test_bars_follow_all_time_signatures_and_go_on_behind_the_end() -> None:
    prompt = prompt_of(chunk(meter(3, 2), meter(7, 3, 2 * 1440), meter(2, 2, 1680), *note(60)))
    assert [prompt.bar_start(bar) for bar in range(1, 7)] == [0, 1440, 2880, 4560, 5520, 6480]
    assert prompt.bar_at(2879) == 2
    assert prompt.bar_at(2880) == 3
    assert prompt.bar_at(6479) == 5


def test_a_time_signature_in_mid_bar_begins_a_bar() -> None:
    prompt = prompt_of(chunk(meter(4, 2), meter(3, 2, 1920 + 100), *note(60)))
    assert [prompt.bar_start(bar) for bar in (1, 2, 3, 4)] == [0, 1920, 2020, 3460]
    assert prompt.bar_at(2019) == 2


def test_bars_that_are_no_whole_number_of_ticks_begin_within_a_tick() -> None:
    for rounded in (623, 624):  # two bars of 311.5 ticks: the signature is where a program rounds it to
        prompt = prompt_of(chunk(meter(7, 3), meter(4, 2, rounded - 1), *note(60)), division=89)
        assert prompt.bar_start(2) == 312
        assert prompt.bar_start(3) == rounded - 1
    assert prompt_of(chunk(meter(7, 3), *note(60)), division=89).bar_start(4) == 935


METERS = st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 16), st.integers(0, 5)), max_size=5)


@settings(deadline=None)
@given(METERS, st.integers(9, 960), st.integers(0, 20000))
def test_every_tick_lies_in_its_bar(meters: list[tuple[int, int, int]], division: int, tick: int) -> None:
    changes = [meter(numerator, power, delta) for delta, numerator, power in meters]
    prompt = prompt_of(chunk(*changes, *note(60)), division=division)
    bar = prompt.bar_at(tick)
    assert prompt.bar_start(bar) <= tick < prompt.bar_start(bar + 1)
    assert prompt.bar_at(prompt.bar_start(bar)) == bar
    signatures = np.cumsum([delta for delta, _, _ in meters]).tolist()
    assert all(prompt.bar_start(prompt.bar_at(start)) == start for start in signatures)


# --- the cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "cut"), [(480, 480), (600, 480), (601, 960), (1, 480), (1900, 1920)])
def test_a_continuation_begins_on_the_first_beat_from_the_end_on(end: int, cut: int) -> None:
    """A quarter of a beat too much is how somebody played it."""
    assert prompt_of(chunk(*note(60, duration=end))).cut() == cut


def test_beats_count_from_the_bar_and_stop_at_the_next() -> None:
    seven_eight = [meter(7, 3), *note(60)]
    assert prompt_of(chunk(*seven_eight, *note(60, 1200 - 480, 400))).cut() == 1680  # not 1920
    assert prompt_of(chunk(*seven_eight, *note(60, 1200 - 480, 700))).cut() == 1680 + 480


def test_a_last_note_without_length_is_before_the_cut() -> None:
    assert prompt_of(chunk(*note(60, duration=0))).cut() == 480
    assert prompt_of(chunk(*note(60), *note(60, 480, duration=0))).cut() == 1440


def test_a_continuation_begins_at_a_bar() -> None:
    prompt = prompt_of(chunk(meter(3, 2), *note(60), *note(60, 1440)))
    assert prompt.bars == 2
    assert [prompt.cut(bar) for bar in (2, 3)] == [1440, 2880]


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (1, "2 is the least"),
        (-3, "2 is the least"),
        (3, "no note before bar 3; its first is in bar 3, so give --at 4 or more"),
        (6, "behind the end of song.mid, which has 4 bars"),
    ],
)
def test_a_bar_with_nothing_before_it_or_behind_the_end_is_a_sentence(at: int, reason: str) -> None:
    prompt = prompt_of(chunk(*note(60, 2 * 1920, 1920 + 1)))
    assert prompt.cut(5) == 4 * 1920
    with pytest.raises(UserError, match=reason):
        prompt.cut(at)


# --- what the model reads --------------------------------------------------------------------------------


def test_the_window_holds_the_notes_that_start_in_it() -> None:
    first = chunk(*note(60, duration=960), *note(62, duration=960), *note(64))
    prompt = prompt_of(first, chunk(*note(50, 4800, channel=1)))
    window = before(prompt, 1440, 480)
    assert [rows_of(track) for track in window.tracks] == [[(480, 480, 62, 80)], []]
    assert window.ticks_per_beat == 480


def test_the_window_is_in_tempo_meter_and_program_of_its_end() -> None:
    events = [meter(3, 2), tempo(1_000_000), program(5), *note(60), program(40), *note(62)]
    changes = [meter(4, 2), tempo(250_000), program(70)]
    middle = before(prompt_of(chunk(*events, *changes, *note(64))), 960)
    assert (middle.tempo_bpm, middle.meter, middle.tracks[0].program) == (240, (4, 4), 40)
    assert before(prompt_of(chunk(*events, *changes, *note(64))), 959).tempo_bpm == 60
    end = before(prompt_of(chunk(*events, *changes)), 960)  # what stands there is kept; the program is put back
    assert (end.tempo_bpm, end.meter, end.tracks[0].program) == (240, (4, 4), 40)
    assert before(prompt_of(chunk(*note(60), program(9))), 480).tracks[0].program == 0


def test_pedals_end_at_the_cut() -> None:
    events = [pedal(127, delta=100), *note(60), pedal(0), pedal(127), *note(62), pedal(0, delta=480)]
    prompt = prompt_of(chunk(*events))
    assert before(prompt, 720).tracks[0].pedal.tolist() == [[100, 580], [580, 720]]
    assert before(prompt, 720, 600).tracks[0].pedal.tolist() == [[0, 120]]
    assert before(prompt, 500).tracks[0].pedal.tolist() == [[100, 500]]


def test_a_note_just_before_the_cut_does_not_slip_onto_it() -> None:
    prompt = prompt_of(chunk(*note(64, 1919), *note(62, 0)), chunk(*note(60, 1915), *note(62, 2)))
    (late, _) = encode(before(prompt, 1920), end=96)
    assert late.body == "95/24\n0+10|1/24\n"
    assert rows_of(before(prompt, 1920).tracks[1]) == [(1909, 11, 60, 80)]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 2000), st.integers(0, 40), st.integers(1, 40), st.integers(1, 100), st.integers(1, 100), st.data()
)
def test_what_is_added_to_a_window_comes_back_at_the_cut(
    beat: int, first_bar: int, bars: int, wait: int, length: int, data: st.DataObject
) -> None:
    numerator, power = data.draw(st.integers(1, 16)), data.draw(st.integers(0, 4))
    signature = meter(numerator, power)
    bars_only = prompt_of(chunk(signature, *note(60)), division=beat)
    start, cut = bars_only.bar_start(first_bar + 1), bars_only.bar_start(first_bar + 1 + bars)
    assume(bars_only.steps(cut - start) > 0)
    events = [signature, *note(60, start, 0), *note(61, cut - 1 - start, 10**6)]
    prompt = prompt_of(chunk(*events), division=beat)
    window = before(prompt, cut, start)
    (document,) = encode(window, end=prompt.steps(cut - start))
    text = document.text + f"5+10|{wait}/24\n2+10:{length}/24|1/7\n"
    (track,) = (score := decode([text])).tracks
    added = after(prompt, cut, track, score.ticks_per_beat, start)
    step = prompt.score.ticks_per_beat / 24
    assert added.onset[0] == cut
    assert abs(added.onset[1] - cut - wait * step) <= 0.5001
    assert added.duration.min() >= 1
    assert abs(added.onset[1] + added.duration[1] - max(cut + (wait + length) * step, added.onset[1] + 1)) <= 0.5001


# --- files -----------------------------------------------------------------------------------------------


def test_real_files_are_prompts(corpus: Callable[[str], Path]) -> None:
    for path in midi_files(corpus("mini")):
        prompt = load_prompt(path)
        cut = prompt.cut()
        beat = prompt.score.ticks_per_beat
        assert prompt.score.end - beat / 4 - 1 <= cut < prompt.score.end + beat
        assert prompt.bar_start(prompt.bars) < prompt.score.end <= prompt.bar_start(prompt.bars + 1)
        start = prompt.bar_start(max(prompt.bars - 7, 1))
        window = before(prompt, cut, start)
        assert len(window.tracks) == len(prompt.seats) == len(describe_parts(prompt))
        for document in encode(window, end=prompt.steps(cut - start)):
            (track,) = (score := decode([document.text + "0=10|1/1\n"])).tracks
            assert after(prompt, cut, track, score.ticks_per_beat, start).onset.tolist() == [cut]


def test_a_file_that_can_be_no_prompt_is_a_sentence(tmp_path: Path) -> None:
    good = midi(chunk(*note(60)))
    contents = {
        "empty.mid": (b"", "is empty"),
        "words.mid": (b"words and words and words", "not a MIDI file"),
        "silent.mid": (midi(chunk(program(1))), "has no notes"),
        "cut.mid": (good[:-6], "is truncated"),
        "broken.mid": (midi(chunk((0, b"\x90\x3c\xc8"), *note(60))), "damaged"),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} .*{reason}.*; a prompt has to be a whole MIDI file"):
            load_prompt(tmp_path / name)
    for name in ("none.mid", ""):
        with pytest.raises(UserError, match="can't be read"):
            load_prompt(tmp_path / name)


def test_drums_alone_are_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "a\nb.mid").write_bytes(midi(chunk(*note(36, channel=9))))
    prompt = load_prompt(tmp_path / "a\nb.mid")
    assert describe_parts(prompt) == ["1: drums, 1 note"]
    with pytest.raises(UserError, match=r"a\\nb\.mid"):
        prompt.cut(9)


def test_parts_are_described() -> None:
    violin = chunk((0, b"\xff\x03\x05Air\x1b "), program(40), *note(60), *note(62))
    assert describe_parts(prompt_of(chunk(*note(60, channel=9)), violin)) == [
        "1: drums, 1 note",
        '2: violin (program 40), 2 notes, named "Air\\x1b"',
    ]
