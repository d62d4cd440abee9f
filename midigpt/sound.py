"""A MIDI file to listen to: rendered to a .wav by the best renderer there is, and played."""

import importlib.util
import shutil
import struct
import subprocess
import wave
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from midigpt import tones
from midigpt.files import UserError, install, replacing
from midigpt.midi import load_midi, read_tempos
from midigpt.midi_bytes import clock, split_file

# Where Debian, Fedora, Arch, Homebrew and people themselves put soundfonts.
SOUNDFONT_FOLDERS = (
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/usr/share/sounds/sf3",
    "/opt/homebrew/share/soundfonts",
    "/usr/local/share/soundfonts",
    "~/.local/share/soundfonts",
    "~/Library/Audio/Sounds/Banks",
)
PLAYERS = (  # of .wav files, with what makes them quiet
    ("afplay",),
    ("pw-play",),
    ("paplay",),
    ("aplay", "-q"),
    ("play", "-q"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
)
PEAK = 0.9  # of full scale: what every .wav is levelled to
SILENCE = 1e-3  # of the peak: what is softer at the end is cut off
TAIL = 3  # seconds for the last notes to ring
MAX_MINUTES = 30  # half a gigabyte of memory

Samples = NDArray[Any]  # (N, channels)


class RendererError(Exception):
    """Why a renderer gives no sound here; nothing where it is not installed."""


def render_wav(midi: Path, wav: Path) -> str:
    """Play a MIDI file into a .wav of 16 bit stereo; the renderer's name, for the person at the terminal.

    That is fluidsynth; where it is missing, the packages of the `audio` extra; where they are, plain tones. Raises
    UserError where the file can't be read or is too long.
    """
    score = load_midi(midi)
    seconds = float(tones.seconds_at(midi, score, np.array([score.end]))[0])
    if seconds > 60 * MAX_MINUTES:
        raise UserError(f"{midi} lasts {seconds / 3600:.1f} hours; a .wav is made of up to {MAX_MINUTES} minutes")
    failures = []
    renderers: tuple[Callable[[Path, float], tuple[str, Samples, int]], ...] = (_fluidsynth, _midirenderer, _tones)
    for render in renderers:
        try:
            name, samples, rate = render(midi, seconds)
            break
        except RendererError as error:
            failures += [str(error)] if str(error) else []
    with replacing(wav) as temporary:
        write_wav(samples, rate, temporary)
    return "; ".join([name, *failures])


def _fluidsynth(midi: Path, seconds: float) -> tuple[str, Samples, int]:
    program, font = shutil.which("fluidsynth"), next(iter(_soundfonts()), None)
    if not program or not font:
        raise RendererError
    with TemporaryDirectory() as folder:
        wav = Path(folder) / "take.wav"
        # The gain is low: what is too loud is cut off at full scale, and levelling comes afterwards.
        command = [program, "-ni", "-g", "0.15", "-r", "44100", "-T", "wav", "-F", str(wav), str(font), str(midi)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60 + seconds, stdin=subprocess.DEVNULL)
            samples, rate = read_wav(wav)
        except (subprocess.SubprocessError, OSError, EOFError, wave.Error) as error:
            raise RendererError(f"fluidsynth failed ({error})") from None
    if not samples.any():
        raise RendererError(f"fluidsynth with {font} gave silence")
    return f"fluidsynth with {font.name}", samples, rate


def _soundfonts() -> list[Path]:
    """The soundfonts of this machine, the likeliest General MIDI one first; last the `audio` extra's."""
    folders = [Path(folder).expanduser() for folder in SOUNDFONT_FOLDERS]
    fonts = {font.resolve() for folder in folders for font in folder.glob("*.sf[23]")}
    others = sorted(fonts, key=lambda font: ("gm" not in font.name.lower(), font.name))
    packaged = _packaged_soundfont()
    return others + ([packaged] if packaged else [])


def _packaged_soundfont() -> Path | None:
    """The soundfont inside pretty_midi, which is not imported for it."""
    package = importlib.util.find_spec("pretty_midi")
    folders = package.submodule_search_locations or [] if package else []
    return next((font for folder in folders for font in sorted(Path(folder).glob("*.sf2"))), None)


def _midirenderer(midi: Path, seconds: float) -> tuple[str, Samples, int]:
    font = _packaged_soundfont()
    try:
        import midirenderer
    except ImportError:
        raise RendererError from None
    if not font:
        raise RendererError
    try:
        samples, rate = read_wav(BytesIO(midirenderer.render_wave_from(font.read_bytes(), _with_tail(midi))))
    except Exception as error:  # it is compiled and says with any kind what it dislikes in a file
        raise RendererError(f"midirenderer failed ({error})") from None
    if not samples.any():
        raise RendererError(f"midirenderer with {font} gave silence")
    return f"midirenderer with {font.name}", samples, rate


def _with_tail(midi: Path) -> bytes:
    """A file's bytes with one more track that ends TAIL after the others: midirenderer stops at the last event."""
    _, division, chunks = split_file(midi.read_bytes())
    score = load_midi(midi)
    ticks_per_beat, factor, _ = clock(division)
    ticks, beat_seconds = read_tempos(midi)
    last = int(np.searchsorted(ticks, score.end, side="right")) - 1
    end = (score.end + int(TAIL / beat_seconds[last] * ticks_per_beat)) // factor
    # Seven bits a byte, the high bit set on all but the last.
    delta = bytes([end >> 21 & 0x7F | 0x80, end >> 14 & 0x7F | 0x80, end >> 7 & 0x7F | 0x80, end & 0x7F])
    tail = delta + b"\xff\x2f\x00"
    header = struct.pack(">4sIHHH", b"MThd", 6, 1, len(chunks) + 1, division)
    return b"".join([header, *chunks, b"MTrk", struct.pack(">I", len(tail)), tail])


def _tones(midi: Path, seconds: float) -> tuple[str, Samples, int]:
    hint = f"for real instruments: apt install fluidsynth fluid-soundfont-gm, or {install('audio')}"
    return f"built-in tones ({hint})", tones.synthesize(midi), tones.RATE


def read_wav(source: Path | IO[bytes]) -> tuple[Samples, int]:
    """Samples, (N, channels), and how many there are a second. Raises wave.Error where they have not 16 bit."""
    with wave.open(str(source) if isinstance(source, Path) else source) as file:
        if file.getsampwidth() != 2:
            raise wave.Error(f"{8 * file.getsampwidth()} bit")
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return data.reshape(-1, file.getnchannels()), file.getframerate()


def write_wav(samples: Samples, rate: int, path: Path) -> None:
    """Write samples, (N, channels), at the level that is the same for all, without silence at the end."""
    sound = samples.astype(np.float32)
    loudness = np.abs(sound).max(axis=1)
    peak = float(loudness.max(initial=0))
    if peak:
        sound = sound[: int(np.flatnonzero(loudness > SILENCE * peak)[-1]) + 1]
        sound *= PEAK * 32767 / peak
    with wave.open(str(path), "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(sound).astype("<i2").tobytes())


def play(path: Path) -> str:
    """Play a .wav, or a MIDI file by rendering it first, to its end or to Ctrl-C; by what, for the terminal.

    Raises UserError where no player is installed, or none of them plays.
    """
    players = [(program, *flags) for name, *flags in PLAYERS if (program := shutil.which(name))]
    if not players:
        names = ", ".join(name for name, *_ in PLAYERS)
        raise UserError(f"no player of .wav files was found (looked for {names}); open {path} by hand")
    with TemporaryDirectory() as folder:
        wav, renderer = path, ""
        if path.suffix.lower() != ".wav":
            wav = Path(folder) / "take.wav"
            renderer = f", {render_wav(path, wav)}"
        failures = []
        for player in players:
            name = Path(player[0]).name
            try:
                failure = _run_player([*player, str(wav)], _duration(wav))
            except KeyboardInterrupt:
                return f"{name}{renderer}, stopped"
            if failure is None:
                return name + renderer
            failures.append(f"{name}: {failure}")
    raise UserError(f"{path} can't be played here ({'; '.join(failures)})")


def _duration(wav: Path) -> float:
    """Seconds."""
    try:
        with wave.open(str(wav)) as file:
            return file.getnframes() / file.getframerate()
    except (wave.Error, EOFError) as error:
        raise UserError(f"{wav} can't be played ({error or 'it is cut off'})") from None


def _run_player(command: list[str], seconds: float) -> str | None:
    """Wait for a player of so many seconds to end; why it failed, or None. It never outlives this."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        _, error = process.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        return "it does not end"
    finally:
        process.kill()
        process.wait()
    lines = error.strip().splitlines()
    return None if process.returncode == 0 else lines[-1] if lines else f"exit status {process.returncode}"
