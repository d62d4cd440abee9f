"""A MIDI file to listen to: rendered to a .wav by the best renderer there is, and played."""

import importlib.util
import shutil
import struct
import subprocess
import sys
import wave
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from midigpt import tones
from midigpt.files import UserError, install, replacing
from midigpt.midi import Song, in_force, load_song
from midigpt.midi_bytes import END_OF_TRACK, MidiError, read_events, split_file, write_number

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

MIDI, WAV = "take.mid", "take.wav"  # in the folder that a renderer works in
MIDIRENDERER = """
import midirenderer, pathlib, sys
font, midi, wav = map(pathlib.Path, sys.argv[1:])
wav.write_bytes(midirenderer.render_wave_from(font.read_bytes(), midi.read_bytes()))
"""

Samples = NDArray[Any]  # (N, channels)


class RendererError(Exception):
    """Why a renderer gives no sound here; nothing where it is not installed."""


def render_wav(midi: Path, wav: Path) -> str:
    """Play a MIDI file into a .wav of 16 bit stereo; the renderer's name, for the person at the terminal.

    That is fluidsynth; where it is missing, the packages of the `audio` extra; where they are, plain tones. Raises
    UserError where the file can't be read or is too long.
    """
    song = load_song(midi)
    (seconds,) = song.seconds_at(np.array([song.score.end])).tolist()
    if seconds > 60 * MAX_MINUTES:
        raise UserError(f"{midi} lasts {seconds / 3600:.1f} hours; a .wav is made of up to {MAX_MINUTES} minutes")
    failures = []
    data = _playable(midi.read_bytes(), song)
    renderers = (_fluidsynth, _midirenderer, lambda *_: _tones(song))
    for render in renderers:
        try:
            name, samples, rate = render(data, seconds)
            break
        except RendererError as error:
            failures += [str(error)] if str(error) else []
    with replacing(wav) as temporary:
        write_wav(samples, rate, temporary)
    return "; ".join([name, *failures])


def _fluidsynth(data: bytes, seconds: float) -> tuple[str, Samples, int]:
    program, font = shutil.which("fluidsynth"), next(iter(_soundfonts()), None)
    if not program or not font:
        raise RendererError
    # The gain is low: what is too loud is cut off at full scale, and levelling comes afterwards.
    command = [program, "-ni", "-g", "0.15", "-r", "44100", "-T", "wav", "-F", WAV, str(font), MIDI]
    return f"fluidsynth with {font.name}", *_rendered("fluidsynth", command, data, seconds)


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


def _midirenderer(data: bytes, seconds: float) -> tuple[str, Samples, int]:
    font = _packaged_soundfont()
    if not font or not importlib.util.find_spec("midirenderer"):
        raise RendererError
    # In a process of its own: where it dislikes a file, it may take the process down.
    command = [sys.executable, "-c", MIDIRENDERER, str(font), MIDI, WAV]
    return f"midirenderer with {font.name}", *_rendered("midirenderer", command, data, seconds)


def _rendered(name: str, command: list[str], data: bytes, seconds: float) -> tuple[Samples, int]:
    """What a command makes, as WAV, of a file of so many seconds that it finds as MIDI."""
    with TemporaryDirectory() as folder:
        (Path(folder) / MIDI).write_bytes(data)
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=60 + seconds
            )
            if done.returncode:
                raise RendererError(f"{name} failed ({_complaint(done.returncode, done.stderr)})")
            samples, rate = read_wav(Path(folder) / WAV)
        except (subprocess.SubprocessError, OSError, EOFError, wave.Error) as error:
            raise RendererError(f"{name} failed ({error})") from None
    if not samples.any():
        raise RendererError(f"{name} gave silence")
    return samples, rate


def _complaint(status: int, errors: bytes) -> str:
    """The last line of what a program said before it failed, else with what status."""
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {status}"


def _playable(data: bytes, song: Song) -> bytes:
    """A file's bytes without what comes later than TAIL seconds after the last note's end.

    Renderers stop at the end of the last track: some of these are hours late, others leave a note no time to ring. And
    of a damaged chunk they take nothing, so it is cut where it breaks off.
    """
    _, division, chunks = split_file(data)
    end = song.score.end
    beat_seconds = 60 / in_force(song.tempos, end)
    end = (end + int(TAIL / beat_seconds * song.score.ticks_per_beat)) // song.file_tick
    bodies = [_events_until(chunk, end) for chunk in chunks]
    header = struct.pack(">4sIHHH", b"MThd", 6, 1, len(bodies), division)
    return header + b"".join(b"MTrk" + struct.pack(">I", len(body)) + body for body in bodies)


def _events_until(chunk: bytes, end: int) -> bytes:
    """The events of a track chunk up to a tick, and the track's end there."""
    pieces, now = [], 0
    with suppress(MidiError):  # where it breaks off
        for tick, _, message in read_events(chunk):
            if tick > end or message[:2] == bytes((0xFF, END_OF_TRACK)):
                break
            pieces += [write_number(tick - now), message]
            now = tick
    return b"".join([*pieces, write_number(end - now), bytes((0xFF, END_OF_TRACK, 0))])


def _tones(song: Song) -> tuple[str, Samples, int]:
    hint = f"for real instruments: apt install fluidsynth fluid-soundfont-gm, or {install('audio')}"
    return f"built-in tones ({hint})", tones.synthesize(song), tones.RATE


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
            wav = Path(folder) / WAV
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
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=subprocess.PIPE)
    try:
        _, errors = process.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        return "it does not end"
    finally:
        process.kill()
        process.wait()
    return _complaint(process.returncode, errors) if process.returncode else None
