"""MIDI file <-> Score.

Reading is done by symusic, one MTrk chunk at a time, because only then is it known which notes shared a
chunk. What symusic leaves out is added by midi_bytes: the channel of each track, programs and sustain
pedals that stand in another chunk, SMPTE time. Writing is done by mido.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import mido
import numpy as np
import symusic

from midigpt.files import UserError, replacing
from midigpt.midi_bytes import PEDAL, Events, MidiError, clock, readable, scan, split_file
from midigpt.score import IntArray, Score, Track, cut_repeats

DRUM_CHANNEL = 9  # counted from 0; "channel 10" in print
FINE_TICKS = 480  # ticks per beat to write with at least, as sequencers expect
MAX_DELTA = 0x0FFFFFFF  # the largest time between two events a MIDI file can hold
_HEADER = b"MThd" + struct.pack(">IHHH", 6, 1, 1, 480)  # before a single chunk; ticks are read as they are


@dataclass
class _Part:
    """The notes of one channel in one MTrk chunk, as symusic's arrays joined."""

    chunk: int
    channel: int
    name: str
    notes: dict[str, IntArray]


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
    # In format 2, chunks are independent patterns: what one sets does not hold in another.
    heard = [events[part.chunk : part.chunk + 1] if midi_format == 2 else events for part in parts]
    tracks = tuple(_track(part, events[part.chunk], h, tick_factor) for part, h in zip(parts, heard, strict=True))
    return Score(ticks_per_beat, tracks, 120.0 if is_smpte else _first_tempo(parsed), _first_meter(parsed))


def _track(part: _Part, own: Events, heard: list[Events], tick_factor: int) -> Track:
    is_drum = part.channel == DRUM_CHANNEL
    return Track(
        program=0 if is_drum else _program(part, own, heard),
        is_drum=is_drum,
        onset=part.notes["time"] * tick_factor,
        duration=part.notes["duration"] * tick_factor,
        pitch=part.notes["pitch"],
        velocity=part.notes["velocity"],
        pedal=_pedal_intervals(part, heard) * tick_factor,
        name=part.name,
    )


def _first_tempo(chunks: list["symusic.core.ScoreTick"]) -> float:
    """Quarter notes a minute."""
    tempos = [(tempo.time, tempo.mspq) for chunk in chunks for tempo in chunk.tempos if tempo.mspq > 0]
    return 6e7 / min(tempos, key=lambda tempo: tempo[0], default=(0, 500_000))[1]


def _first_meter(chunks: list["symusic.core.ScoreTick"]) -> tuple[int, int]:
    meters = [
        (meter.time, (meter.numerator, meter.denominator))
        for chunk in chunks
        for meter in chunk.time_signatures
        if meter.numerator > 0 and meter.denominator in (1, 2, 4, 8, 16, 32, 64, 128)
    ]
    return min(meters, key=lambda meter: meter[0], default=(0, (4, 4)))[1]


def _parts(number: int, chunk: bytes, score: "symusic.core.ScoreTick") -> tuple[list[_Part], Events]:
    """One chunk's notes by channel, and its other events.

    symusic gives one track for each (channel, program) with notes, in that order, but not the channel.
    """
    tracks = list(score.tracks)
    events = scan(chunk, to_first_note=len(tracks) == 1)
    players = sorted(events.players)
    if len(players) != len(tracks):
        raise MidiError(f"has a damaged track chunk ({number + 1}: its events can't be told apart)")
    by_channel: dict[int, list[symusic.core.TrackTick]] = {}
    for (channel, _), track in zip(players, tracks, strict=True):
        by_channel.setdefault(channel, []).append(track)
    parts = []
    for channel, members in by_channel.items():
        if not events.whole:
            events.pedals = [row for row in events.pedals if row[1] != channel] + _pedals(members[0], channel)
        arrays = [member.notes.numpy() for member in members if len(member.notes)]
        if not arrays:
            continue
        notes = {name: np.concatenate([a[name] for a in arrays]).astype(np.int64) for name in arrays[0]}
        order = np.lexsort((notes["pitch"], notes["time"]))
        parts.append(_Part(number, channel, members[0].name, {name: a[order] for name, a in notes.items()}))
    return parts, events


def _pedals(track: "symusic.core.TrackTick", channel: int) -> list[tuple[int, int, int]]:
    """(tick, channel, value) of the pedal's controllers (symusic's own intervals go wrong on channels above 0)."""
    controls = track.controls.numpy()
    is_pedal = controls["number"] == PEDAL
    rows = zip(controls["time"][is_pedal].tolist(), controls["value"][is_pedal].tolist(), strict=True)
    return [(tick, channel, value) for tick, value in rows]


def _program(part: _Part, own: Events, heard: list[Events]) -> int:
    """The program in force on the part's channel at its first note: the chunk's own, else the last of any."""
    first = int(part.notes["time"][0])
    for sources in ([own], heard):
        changes = [
            (tick, program)
            for events in sources
            for tick, channel, program in events.programs
            if channel == part.channel and tick <= first
        ]
        if changes:
            return sorted(changes, key=lambda change: change[0])[-1][1]
    return 0


def _pedal_intervals(part: _Part, heard: list[Events]) -> IntArray:
    """(P, 2) ticks of down and up on the part's channel; a pedal never lifted is held to the part's end."""
    rows = [(tick, value) for events in heard for tick, channel, value in events.pedals if channel == part.channel]
    end = int((part.notes["time"] + part.notes["duration"]).max())
    intervals = []
    down = None
    for tick, value in sorted(rows, key=lambda row: row[0]):
        if value >= 64 and down is None:
            down = tick
        elif value < 64 and down is not None:
            intervals.append((down, tick))
            down = None
    if down is not None and down < end:
        intervals.append((down, end))
    return np.array(intervals, np.int64).reshape(-1, 2)


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
