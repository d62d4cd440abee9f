"""MIDI file <-> Score.

Reading is done by symusic, one MTrk chunk at a time, because only then is it known which notes shared a
chunk. What symusic leaves out is added by midi_bytes: the channel of each track, programs and sustain
pedals that stand in another chunk, SMPTE time. Writing is done by mido.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mido
import numpy as np
import symusic
from numpy.typing import NDArray

from midigpt.files import UserError, replacing
from midigpt.midi_bytes import PEDAL, Events, MidiError, check_length, clock, readable, scan, split_file
from midigpt.score import NO_PEDAL, IntArray, Score, Track, cut_repeats

DRUM_CHANNEL = 9  # counted from 0; "channel 10" in print
FINE_TICKS = 480  # ticks per beat to write with at least, as sequencers expect
MAX_DELTA = 0x0FFFFFFF  # the largest time between two events a MIDI file can hold
_HEADER = b"MThd" + struct.pack(">IHHH", 6, 1, 1, 480)  # before a single chunk; ticks are read as they are


@dataclass
class _Part:
    """The notes of one channel in one MTrk chunk."""

    chunk: int
    channel: int
    name: str
    notes: list[dict[str, NDArray[Any]]]  # columns of notes, by program


def load_midi(path: Path) -> Score:
    """read_midi for a command: whatever is wrong with the file becomes a UserError that names it."""
    try:
        return read_midi(path)
    except MidiError as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from None


def read_midi(source: Path | bytes) -> Score:
    """Read a Standard MIDI File (also inside RIFF or behind a foreign header of up to 512 bytes).

    One Track for each channel of each MTrk chunk that has notes, in file order; its program is the one in
    force on the channel at its first note (0, piano, if none was set). The sustain pedal holds for all
    tracks of its channel. SMPTE time becomes beats at 120 BPM. Notes without an end are dropped.

    Raises MidiError where the file is not MIDI, is damaged or has no notes; OSError where it can't be opened.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    midi_format, division, chunks = split_file(data)
    ticks_per_beat, tick_factor, is_smpte = clock(division)
    check_length(data, chunks)
    parsed, parts, events = [], [], []
    for number, chunk in enumerate(map(readable, chunks)):
        try:
            parsed.append(symusic.Score.from_midi(_HEADER + chunk))
        except RuntimeError as error:
            cause = str(error).removeprefix("MiniMidi: ").split(": iostream error")[0]
            raise MidiError(f"has a damaged track chunk ({number + 1} of {len(chunks)}: {cause})") from None
        chunk_parts, chunk_events = _parts(number, chunk, parsed[-1])
        parts += chunk_parts
        events.append(chunk_events)
    if not parts:
        raise MidiError("has no notes")
    tracks = _tracks(parts, events, tick_factor, are_patterns=midi_format == 2)
    return Score(ticks_per_beat, tracks, 120.0 if is_smpte else _first_tempo(parsed), _first_meter(parsed))


def read_tempos(source: Path | bytes) -> tuple[IntArray, NDArray[np.float64]]:
    """The tempo map of a file on the clock of its Score: from tick[i] on, a beat lasts beat_seconds[i]; both (T,).

    The first holds from tick 0. SMPTE time has 120 BPM throughout. Raises what read_midi does.
    """
    _, division, chunks = split_file(source if isinstance(source, bytes) else source.read_bytes())
    tempos = [(0, 500_000)]
    if not clock(division)[2]:
        for chunk in map(readable, chunks):
            found = symusic.Score.from_midi(_HEADER + chunk).tempos
            tempos += [(tempo.time, tempo.mspq) for tempo in found if tempo.mspq > 0]
    tempos.sort(key=lambda tempo: tempo[0])  # of those at one tick the last holds
    return np.array([tick for tick, _ in tempos], np.int64), np.array([mspq for _, mspq in tempos]) / 1e6


def _tracks(parts: list[_Part], events: list[Events], tick_factor: int, are_patterns: bool) -> tuple[Track, ...]:
    """A Track for each part. In patterns (format 2), what one chunk sets does not hold in another."""
    notes = _joined(parts)
    tracks = []
    stop = 0
    for part in parts:
        start, stop = stop, stop + sum(len(columns["time"]) for columns in part.notes)
        onset, duration, pitch, velocity = (column[start:stop] for column in notes)
        own = events[part.chunk]
        heard = [own] if are_patterns else events
        is_drum = part.channel == DRUM_CHANNEL
        program = 0 if is_drum else _program(part.channel, int(onset[0]), own, heard)
        pedal = _pedal_intervals(part.channel, heard, onset, duration)
        if tick_factor != 1:
            onset, duration, pedal = onset * tick_factor, duration * tick_factor, pedal * tick_factor
        tracks.append(Track(program, is_drum, onset, duration, pitch, velocity, pedal, part.name))
    return tuple(tracks)


def _joined(parts: list[_Part]) -> list[IntArray]:
    """Onset, duration, pitch and velocity of all parts, each (N,), ordered by part, onset, pitch."""
    columns = ("time", "duration", "pitch", "velocity")
    members = [(number, notes) for number, part in enumerate(parts) for notes in part.notes]
    joined = [np.concatenate([notes[column] for _, notes in members]).astype(np.int64) for column in columns]
    part = np.repeat([number for number, _ in members], [len(notes["time"]) for _, notes in members])
    place = part << 40 | joined[0] << 7 | joined[2]
    if (place[1:] < place[:-1]).any():
        order = np.argsort(place, kind="stable")
        joined = [column[order] for column in joined]
    return joined


def _first_tempo(chunks: list["symusic.core.ScoreTick"]) -> float:
    """Quarter notes a minute."""
    firsts = [next(((tempo.time, tempo.mspq) for tempo in chunk.tempos if tempo.mspq > 0), None) for chunk in chunks]
    return 6e7 / min(filter(None, firsts), key=lambda tempo: tempo[0], default=(0, 500_000))[1]


def _first_meter(chunks: list["symusic.core.ScoreTick"]) -> tuple[int, int]:
    firsts = [
        next(
            (
                (meter.time, (meter.numerator, meter.denominator))
                for meter in chunk.time_signatures
                if meter.numerator > 0 and meter.denominator in (1, 2, 4, 8, 16, 32, 64, 128)
            ),
            None,
        )
        for chunk in chunks
    ]
    return min(filter(None, firsts), key=lambda meter: meter[0], default=(0, (4, 4)))[1]


def _parts(number: int, chunk: bytes, score: "symusic.core.ScoreTick") -> tuple[list[_Part], Events]:
    """One chunk's notes by channel, and its other events.

    symusic gives one track for each (channel, program) with notes, in that order, but not the channel.
    """
    tracks = list(score.tracks)
    events = scan(chunk, to_first_note=len(tracks) <= 1)
    players = sorted(events.players)
    if len(players) != len(tracks):
        raise MidiError(f"has a damaged track chunk ({number + 1}: its events can't be told apart)")
    parts: dict[int, _Part] = {}
    for (channel, _), track in zip(players, tracks, strict=True):
        notes = track.notes.numpy()
        if len(notes["time"]):
            parts.setdefault(channel, _Part(number, channel, track.name, [])).notes.append(notes)
        if not events.whole:
            own = _pedals(track)
            if own.size:
                events.pedals[channel] = own
    return list(parts.values()), events


def _pedals(track: "symusic.core.TrackTick") -> IntArray:
    """Ticks and values of the pedal, (2, P) (symusic's own intervals go wrong on channels above 0)."""
    controls = track.controls.numpy()
    is_pedal = np.flatnonzero(controls["number"] == PEDAL)
    return np.array((controls["time"][is_pedal], controls["value"][is_pedal]), np.int64)


def _pedal_intervals(channel: int, heard: list[Events], onset: IntArray, duration: IntArray) -> IntArray:
    """(P, 2) ticks of down and up on a channel; a pedal never lifted is held to the part's end."""
    tables = [events.pedals[channel] for events in heard if channel in events.pedals]
    if not tables:
        return NO_PEDAL
    tick, value = tables[0] if len(tables) == 1 else np.concatenate(tables, axis=1)
    if len(tables) > 1:
        order = np.argsort(tick, kind="stable")
        tick, value = tick[order], value[order]
    is_down = np.zeros(len(tick) + 1, bool)
    is_down[1:] = value >= 64
    turns = tick[is_down[1:] != is_down[:-1]]  # down, up, down, ...
    if len(turns) % 2:
        end = int((onset + duration).max())
        turns = np.append(turns, end) if turns[-1] < end else turns[:-1]
    return turns.reshape(-1, 2)


def _program(channel: int, first_tick: int, own: Events, heard: list[Events]) -> int:
    """The program in force on a channel at a part's first note: the chunk's own, else the last of any."""
    for sources in ([own], heard):
        changes = [
            (tick, program)
            for events in sources
            for tick, where, program in events.programs
            if where == channel and tick <= first_tick
        ]
        if changes:
            return sorted(changes, key=lambda change: change[0])[-1][1]
    return 0


def write_midi(score: Score, path: Path) -> None:
    """Write a format 1 file: a conductor track with tempo and meter, then a track for each of the score's.

    Drums go to channel 10; every track gets a channel of its own as long as the 15 others last. A note ends
    where its pitch starts again, else a player could not tell the two apart. Pedals are not written:
    normalise() turns them into lengths. Raises MidiError for a silence longer than a MIDI file can hold.
    """
    scale = -(-FINE_TICKS // score.ticks_per_beat)
    file = mido.MidiFile(type=1, ticks_per_beat=score.ticks_per_beat * scale, charset="utf-8")
    if file.ticks_per_beat > 0x7FFF:
        raise MidiError(f"a MIDI file can't hold {file.ticks_per_beat} ticks per beat (32767 is the most)")
    conductor = file.add_track()
    conductor.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(score.tempo_bpm)))
    numerator, denominator = score.meter
    conductor.append(mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator))
    for track, channel in zip(score.tracks, _channels(score.tracks), strict=True):
        _write_track(file.add_track(track.name or None), track, channel, scale)
    with replacing(path) as temporary:
        file.save(temporary)


def _channels(tracks: tuple[Track, ...]) -> list[int]:
    """A channel for each track: one of its own while there are enough, else tracks of one program share."""
    free = [channel for channel in range(16) if channel != DRUM_CHANNEL]
    pitched = [track.program for track in tracks if not track.is_drum]
    enough = len(pitched) <= len(free)
    seats: list[int] = list(range(len(pitched))) if enough else [sorted(set(pitched)).index(p) for p in pitched]
    seat = iter(seats)
    return [DRUM_CHANNEL if track.is_drum else free[next(seat) % len(free)] for track in tracks]


def _write_track(out: mido.MidiTrack, track: Track, channel: int, scale: int) -> None:
    if not track.is_drum:
        out.append(mido.Message("program_change", channel=channel, program=track.program))
    onset = track.onset * scale
    end = cut_repeats(onset, onset + track.duration * scale, track.pitch)
    end = np.maximum(end, onset + 1)  # an end at its own beginning would come before it
    events = [
        (t, 1, p, v) for t, p, v in zip(onset.tolist(), track.pitch.tolist(), track.velocity.tolist(), strict=True)
    ]
    events += [(t, 0, p, 64) for t, p in zip(end.tolist(), track.pitch.tolist(), strict=True)]
    now = 0
    for tick, is_on, pitch, velocity in sorted(events):  # at one tick, ends come before beginnings
        if tick - now > MAX_DELTA:
            raise MidiError(f"a silence of {tick - now} ticks is too long for a MIDI file")
        kind = "note_on" if is_on else "note_off"
        out.append(mido.Message(kind, channel=channel, note=pitch, velocity=velocity, time=tick - now))
        now = tick
