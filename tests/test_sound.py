"""Sound of a MIDI file: by every renderer there may be, and by none; players, real ones and those that fail."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import mido
import numpy as np
import pytest
from numpy.typing import NDArray

from midigpt import sound
from midigpt.files import UserError
from midigpt.midi import load_song, write_midi
from midigpt.score import Score, track_from_notes
from midigpt.sound import play, read_wav, render_wav
from tests.conftest import PROJECT

Note = tuple[int, int, int, int]  # onset, duration, pitch, velocity; 480 ticks a beat, half a second


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(note, ...) is a MIDI file of these notes at 120 BPM."""

    def write(*notes: Note, program: int = 0, is_drum: bool = False) -> Path:
        write_midi(Score(480, (track_from_notes(list(notes), program, is_drum),)), tmp_path / "a.mid")
        return tmp_path / "a.mid"

    return write


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without renderers and players."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sound, "_packaged_soundfont", lambda: None)
    monkeypatch.setitem(sys.modules, "midirenderer", None)


def program(folder: Path, name: str, script: str) -> None:
    """Put a program on a bare machine's PATH."""
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / name).chmod(0o755)


def render(midi: Path) -> tuple[NDArray[np.float64], int]:
    """Both sides of a file's sound as one, (N,), from -1 to 1; samples a second."""
    render_wav(midi, midi.with_suffix(".wav"))
    samples, rate = read_wav(midi.with_suffix(".wav"))
    assert samples.shape[1] == 2
    return samples.mean(axis=1) / 32768, rate


def loudness(samples: NDArray[np.float64], rate: int, start: float, end: float) -> float:
    return float(np.sqrt((samples[int(start * rate) : int(end * rate)] ** 2).mean()))


def loudest_hertz(samples: NDArray[np.float64], rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 20))
    return float(np.argmax(spectrum) * rate / (1 << 20))


# --- the built-in tones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [0, 16, 40, 73])
@pytest.mark.parametrize(("pitch", "hertz"), [(69, 440.0), (45, 110.0), (108, 4186.0)])
def test_a_tone_has_its_pitch(bare: None, write: Callable[..., Path], program: int, pitch: int, hertz: float) -> None:
    samples, rate = render(write((0, 1920, pitch, 80), program=program))
    assert rate == 44_100
    assert loudest_hertz(samples, rate) == pytest.approx(hertz, rel=2e-3)


def test_changes_of_tempo_are_heard(bare: None, tmp_path: Path) -> None:
    file = mido.MidiFile(ticks_per_beat=480)
    tempos, notes = file.add_track(), file.add_track()
    tempos.append(mido.MetaMessage("set_tempo", tempo=500_000))
    tempos.append(mido.MetaMessage("set_tempo", tempo=2_000_000, time=480))
    tempos.append(mido.MetaMessage("set_tempo", tempo=1_000_000, time=480))
    for wait in (0, 900):  # beats 0 to 1/8, and 2 to 2 1/8: from 2.5 s on
        notes.append(mido.Message("note_on", note=60, velocity=90, time=wait))
        notes.append(mido.Message("note_off", note=60, time=60))
    file.save(tmp_path / "a.mid")
    samples, rate = render(tmp_path / "a.mid")
    assert loudness(samples, rate, 0.2, 2.49) < 1e-3 < loudness(samples, rate, 2.5, 2.51)
    assert len(samples) / rate == pytest.approx(2.5 + 0.125, abs=0.1)


def test_a_tone_is_louder_where_its_velocity_is_and_ends_where_it_ends(bare: None, write: Callable[..., Path]) -> None:
    samples, rate = render(write((0, 480, 60, 120), (960, 480, 60, 40), program=40))
    assert loudness(samples, rate, 0.1, 0.5) > 4 * loudness(samples, rate, 1.1, 1.5) > 0.05
    assert loudness(samples, rate, 0.6, 0.99) == 0


@pytest.mark.parametrize("program", [0, 16, 40])
def test_tones_begin_and_end_without_clicks(bare: None, write: Callable[..., Path], program: int) -> None:
    samples, _ = render(write(*((480 * n, 200 + 7 * n, 45, 90) for n in range(30)), program=program))
    assert np.abs(np.diff(samples)).max() < 0.09


def test_the_pedal_holds_a_tone(bare: None, tmp_path: Path) -> None:
    for name, value in (("held", 127), ("plain", 0)):
        file = mido.MidiFile(ticks_per_beat=480)
        track = file.add_track()
        track.append(mido.Message("control_change", control=64, value=value))
        track.append(mido.Message("note_on", note=60, velocity=90))
        track.append(mido.Message("note_off", note=60, time=480))
        track.append(mido.Message("note_on", note=72, velocity=10, time=960))
        track.append(mido.Message("note_off", note=72, time=480))
        file.save(tmp_path / f"{name}.mid")
    held, rate = render(tmp_path / "held.mid")
    plain, _ = render(tmp_path / "plain.mid")
    assert loudness(held, rate, 0.7, 1.4) > 0.01 > loudness(plain, rate, 0.7, 1.4)


@pytest.mark.parametrize("velocity", [1, 127])
def test_a_hundred_notes_at_once_are_no_louder_than_one(
    bare: None, write: Callable[..., Path], velocity: int
) -> None:
    for notes in (100, 1):
        midi = write(*((0, 960, pitch, velocity) for pitch in range(notes)))
        render(midi)
        samples, _ = read_wav(midi.with_suffix(".wav"))
        assert np.abs(samples.astype(int)).max() == pytest.approx(0.9 * 32767, abs=2)


def test_all_drums_sound(bare: None, write: Callable[..., Path]) -> None:
    samples, rate = render(write(*((480 * n, 10, n, 100) for n in range(128)), is_drum=True))
    assert min(loudness(samples, rate, n / 2, n / 2 + 0.05) for n in range(128)) > 0.01


def test_the_right_packages_are_named_where_there_are_none(bare: None, write: Callable[..., Path]) -> None:
    midi = write((0, 480, 60, 90))
    name = render_wav(midi, midi.with_suffix(".wav"))
    assert name.startswith("built-in tones") and "fluid-soundfont-gm" in name and "[audio]" in name


# --- other renderers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fluidsynth", "midirenderer"])
def test_real_instruments_play_in_tune_to_the_last_note(
    name: str, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "fluidsynth" and not shutil.which("fluidsynth"):
        pytest.skip("needs fluidsynth and a soundfont")
    if name == "midirenderer":
        pytest.importorskip("midirenderer", reason="needs the audio extra")
        monkeypatch.setattr(sound.shutil, "which", lambda _: None)
    midi = write((0, 480, 69, 90), (960, 960, 69, 90), program=73)  # a flute
    assert render_wav(midi, midi.with_suffix(".wav")).startswith(f"{name} with ")
    samples, rate = render(midi)
    assert loudest_hertz(samples, rate) == pytest.approx(440, rel=5e-3)
    assert 2.02 < len(samples) / rate < 4.5  # the flute fades
    assert 0.6 < np.abs(samples).max() <= 0.91
    assert np.abs(samples[-rate // 100 :]).max() < 0.01


@pytest.mark.parametrize("harm", ["late end", "late controller", "no end"])
def test_a_renderer_gets_a_file_that_ends_in_time_and_is_whole(
    harm: str, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("midirenderer", reason="needs the audio extra")
    monkeypatch.setattr(sound.shutil, "which", lambda _: None)
    midi = write((0, 480, 69, 90), (960, 960, 69, 90), program=73)
    data = midi.read_bytes()
    assert data.endswith(b"\x00\xff\x2f\x00")
    late, end = b"\xff\x7f", b"\xff\x2f\x00"
    ends = {"late end": late + end, "late controller": late + b"\xb0\x07\x40\x00" + end, "no end": b""}
    start = data.rindex(b"MTrk")
    body = data[start + 8 : -4] + ends[harm]
    midi.write_bytes(data[: start + 4] + len(body).to_bytes(4, "big") + body)
    assert render_wav(midi, midi.with_suffix(".wav")) == "midirenderer with TimGM6mb.sf2"
    samples, rate = read_wav(midi.with_suffix(".wav"))
    assert 2.02 < len(samples) / rate <= 2 + sound.TAIL
    playable = mido.MidiFile(file=BytesIO(sound._playable(midi.read_bytes(), load_song(midi))))
    assert playable.length == pytest.approx(2 + sound.TAIL)


def test_a_renderer_that_fails_is_named_and_another_takes_over(
    bare: None, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    midi = write((0, 480, 60, 90))
    monkeypatch.setattr(sound, "_soundfonts", lambda: [tmp_path / "GM.sf2"])
    for script, complaint in (("echo no >&2; exit 3", "(no)"), ("exit 3", "status 3"), ("exit 0", "take.wav")):
        program(tmp_path, "fluidsynth", script)
        name = render_wav(midi, midi.with_suffix(".wav"))
        assert name.startswith("built-in tones") and "fluidsynth failed" in name and complaint in name
        assert midi.with_suffix(".wav").read_bytes().startswith(b"RIFF")


def test_an_hour_of_silence_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    midi = write((0, 480, 60, 90), (4_000_000, 480, 60, 90))
    with pytest.raises(UserError, match=r"lasts 1\.2 hours"):
        render_wav(midi, tmp_path / "a.wav")
    assert not (tmp_path / "a.wav").exists()


def test_what_is_no_midi_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mid").write_text("Dear diary")
    with pytest.raises(UserError, match="is not a MIDI file"):
        render_wav(tmp_path / "a.mid", tmp_path / "a.wav")


# --- players ---------------------------------------------------------------------------------------------


def test_a_take_is_rendered_and_played(bare: None, write: Callable[..., Path], tmp_path: Path) -> None:
    midi = write((0, 480, 60, 90))
    program(tmp_path, "aplay", f'echo "$@" > {tmp_path}/arguments; /bin/cp "$2" {tmp_path}/played.wav || true')
    assert play(midi).startswith("aplay, built-in tones")
    samples, _ = read_wav(tmp_path / "played.wav")
    assert samples.any()
    flag, wav = (tmp_path / "arguments").read_text().split()
    assert flag == "-q" and not Path(wav).exists()  # nothing is left behind
    assert play(tmp_path / "played.wav") == "aplay"


def test_a_player_that_fails_is_followed_by_the_next(bare: None, write: Callable[..., Path], tmp_path: Path) -> None:
    midi = write((0, 480, 60, 90))
    with pytest.raises(UserError, match=r"no player of \.wav files was found .*aplay"):
        play(midi)
    program(tmp_path, "paplay", "echo noise; echo Connection refused >&2; exit 1")
    with pytest.raises(UserError, match="paplay: Connection refused"):
        play(midi)
    program(tmp_path, "ffplay", "exit 0")
    assert play(midi).startswith("ffplay")


def test_ctrl_c_stops_the_player(bare: None, write: Callable[..., Path], tmp_path: Path) -> None:
    midi = write((0, 480, 60, 90))
    render_wav(midi, tmp_path / "a.wav")
    program(tmp_path, "aplay", f"echo $$ > {tmp_path}/pid; exec /bin/sleep 60")
    code = f"from pathlib import Path\nfrom midigpt.sound import play\nprint(play(Path({str(tmp_path / 'a.wav')!r})))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert out == "aplay, stopped\n" and not error
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
