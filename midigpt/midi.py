"""MIDI file <-> Score.

Reading is done by symusic, one MTrk chunk at a time, because only then is it known which notes shared a
chunk. What symusic leaves out is added here from the bytes themselves: the channel of each track, programs
and sustain pedals that stand in another chunk, and SMPTE time. Writing is done by mido.

Specification: MIDI 1.0 Detailed Specification, part "Standard MIDI Files 1.0" (MIDI Association).
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path

import mido
import numpy as np
import symusic

from midigpt.files import replacing
from midigpt.score import IntArray, Score, Track

DRUM_CHANNEL = 9  # counted from 0; "channel 10" in print
PEDAL = 64  # the controller number of the sustain pedal
HEADER_WITHIN = 512  # a RIFF, MacBinary or web-server header may stand before MThd
TICKS_PER_BEAT = 480  # at least this fine when writing, as most sequencers expect
MAX_DELTA = 0x0FFFFFFF  # the largest time between two events a MIDI file can hold


class MidiError(ValueError):
    """A MIDI file that cannot be read or written, in words its owner understands."""


@dataclass
class _Events:
    """What one MTrk chunk says besides its notes. Times in ticks."""

    keys: dict[tuple[int, int], int] = field(default_factory=dict)  # (channel, program) -> first note
    programs: list[tuple[int, int, int]] = field(default_factory=list)  # (tick, channel, program)
    pedals: list[tuple[int, int, int]] = field(default_factory=list)  # (tick, channel, value of CC 64)
    whole: bool = True  # False where reading stopped at the first note


@dataclass
class _Part:
    """The notes of one channel in one MTrk chunk, as symusic's arrays joined."""

    chunk: int
    channel: int
    name: str
    notes: dict[str, IntArray]


def read_midi(source: Path | bytes) -> Score:
    """Read a Standard MIDI File (also inside RIFF or behind a foreign header of up to 512 bytes).

    One Track for each channel of each MTrk chunk that has notes, in file order; its program is the one in
    force on the channel at its first note (0, piano, if none was set). The sustain pedal holds for all
    tracks of its channel. SMPTE time becomes beats at 120 BPM. Notes without an end are dropped.

    Raises MidiError where the file is not MIDI, is damaged or has no notes; OSError where it can't be opened.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    midi_format, division, chunks = _split(data)
    ticks_per_beat, tick_factor, smpte = _clock(division)
    header = b"MThd" + struct.pack(">IHHH", 6, 1, 1, TICKS_PER_BEAT)  # ticks are read as they are
    parsed = []
    for number, chunk in enumerate(chunks):
        try:
            parsed.append(symusic.Score.from_midi(header + chunk))
        except RuntimeError as error:
            cause = str(error).removeprefix("MiniMidi: ").split(": iostream error")[0]
            raise MidiError(f"has a damaged track chunk ({number + 1} of {len(chunks)}: {cause})") from None

    events, parts = [], []
    for number, (chunk, score) in enumerate(zip(chunks, parsed, strict=True)):
        chunk_parts, chunk_events = _parts(number, chunk, score)
        parts += chunk_parts
        events.append(chunk_events)
    if not parts:
        raise MidiError("has no notes")

    tracks = []
    for part in parts:
        # In format 2, chunks are independent patterns: what one sets does not hold in another.
        heard = events[part.chunk : part.chunk + 1] if midi_format == 2 else events
        is_drum = part.channel == DRUM_CHANNEL
        tracks.append(
            Track(
                program=0 if is_drum else _program(part, events[part.chunk], heard),
                is_drum=is_drum,
                onset=part.notes["time"] * tick_factor,
                duration=part.notes["duration"] * tick_factor,
                pitch=part.notes["pitch"],
                velocity=part.notes["velocity"],
                pedal=_pedal_intervals(part, heard) * tick_factor,
                name=part.name,
            )
        )
    tempo = 120.0 if smpte else _first_tempo(parsed)
    return Score(ticks_per_beat, tuple(tracks), tempo, _first_meter(parsed))


def _first_tempo(chunks: list["symusic.core.ScoreTick"]) -> float:
    tempos = [(tempo.time, number, tempo.mspq) for number, chunk in enumerate(chunks) for tempo in chunk.tempos]
    microseconds_per_beat = next((mspq for _, _, mspq in sorted(tempos) if mspq > 0), 500_000)
    return 6e7 / microseconds_per_beat


def _first_meter(chunks: list["symusic.core.ScoreTick"]) -> tuple[int, int]:
    meters = [
        (meter.time, number, meter.numerator, meter.denominator)
        for number, chunk in enumerate(chunks)
        for meter in chunk.time_signatures
        if meter.numerator > 0 and meter.denominator in (1, 2, 4, 8, 16, 32, 64, 128)
    ]
    return min(meters)[2:] if meters else (4, 4)


def _split(data: bytes) -> tuple[int, int, list[bytes]]:
    """The format, the division and the MTrk chunks of a file's bytes."""
    if not data:
        raise MidiError("is empty (0 bytes)")
    start = data.find(b"MThd", 0, HEADER_WITHIN)
    if start < 0:
        raise MidiError("is not a MIDI file (it has no MThd header)")
    if len(data) < start + 14:
        raise MidiError("is truncated (it ends inside the header)")
    length, midi_format, _, division = struct.unpack_from(">IHHH", data, start + 4)
    if not 6 <= length <= len(data) - start - 8:
        raise MidiError(f"has a damaged header (it claims {length} bytes; 6 are usual)")
    chunks: list[bytes] = []
    position = start + 8 + length
    while position + 8 <= len(data):
        kind, length = struct.unpack_from(">4sI", data, position)
        end = position + 8 + length
        if kind == b"MTrk":
            if end > len(data):
                raise MidiError(f"is truncated ({end - len(data)} bytes of track chunk {len(chunks) + 1} are missing)")
            chunks.append(data[position:end])
        position = end
    return midi_format, division, chunks


def _clock(division: int) -> tuple[int, int, bool]:
    """(ticks per beat, factor for every tick, whether it was SMPTE time) of a header's division field.

    SMPTE time counts ticks of a second; at 120 BPM a beat is half a second, so two of our ticks are one of
    the file's.
    """
    if division < 0x8000:
        if division == 0:
            raise MidiError("has a damaged header (0 ticks per beat)")
        return division, 1, False
    frames, ticks_per_frame = 256 - (division >> 8), division & 0xFF
    if frames not in (24, 25, 29, 30) or ticks_per_frame == 0:
        raise MidiError(f"has a damaged header (SMPTE time of {frames} frames of {ticks_per_frame} ticks)")
    frame_rate = 30000 / 1001 if frames == 29 else frames
    return round(frame_rate * ticks_per_frame), 2, True


def _parts(number: int, chunk: bytes, score: "symusic.core.ScoreTick") -> tuple[list[_Part], _Events]:
    """One chunk's notes by channel, and its other events.

    symusic gives one track for each (channel, program) with notes, in that order, but not the channel. It
    is read from the bytes: up to the first note where there is one track, else (or where there is no note
    to stop at) to the chunk's end.
    """
    tracks = list(score.tracks)
    events = _scan(chunk, to_first_note=len(tracks) == 1)
    keys = sorted(events.keys)
    if len(keys) != len(tracks):  # never seen; it would mean the scan and symusic read different events
        raise MidiError(f"has a damaged track chunk ({number + 1}: its events can't be told apart)")
    by_channel: dict[int, list[symusic.core.TrackTick]] = {}
    for (channel, _), track in zip(keys, tracks, strict=True):
        by_channel.setdefault(channel, []).append(track)
    parts = []
    for channel, members in by_channel.items():
        if not events.whole:
            controls = members[0].controls.numpy()
            is_pedal = controls["number"] == PEDAL
            pedal = zip(controls["time"][is_pedal].tolist(), controls["value"][is_pedal].tolist(), strict=True)
            events.pedals = [(tick, channel, value) for tick, value in pedal]
        arrays = [member.notes.numpy() for member in members if len(member.notes)]
        if not arrays:
            continue
        notes = {name: np.concatenate([a[name] for a in arrays]).astype(np.int64) for name in arrays[0]}
        order = np.lexsort((notes["pitch"], notes["time"]))
        parts.append(_Part(number, channel, members[0].name, {name: a[order] for name, a in notes.items()}))
    return parts, events


def _scan(chunk: bytes, to_first_note: bool) -> _Events:
    """Read programs, pedals and who plays from an MTrk chunk's bytes; stops where the bytes end."""
    events = _Events()
    program = [0] * 16
    tick = running = 0
    position, end = 8, len(chunk)
    try:
        while position < end:
            delta, position = _variable_length(chunk, position)
            tick += delta
            status = running
            if chunk[position] >= 0x80:
                status = chunk[position]
                position += 1
            if status < 0xF0:
                running = status
            channel, kind = status & 0x0F, status & 0xF0
            if kind == 0x90:
                if chunk[position + 1]:
                    events.keys.setdefault((channel, program[channel]), tick)
                    if to_first_note:
                        events.whole = False
                        return events
                position += 2
            elif kind in (0x80, 0xA0, 0xE0):
                position += 2
            elif kind == 0xB0:
                if chunk[position] == PEDAL:
                    events.pedals.append((tick, channel, chunk[position + 1]))
                position += 2
            elif kind == 0xC0:
                program[channel] = chunk[position]
                events.programs.append((tick, channel, chunk[position]))
                position += 1
            elif kind == 0xD0:
                position += 1
            elif status in (0xF0, 0xF7, 0xFF):
                if status == 0xFF:
                    meta = chunk[position]
                    position += 1
                    if meta == 0x2F:  # end of track
                        break
                    if meta == 0x05:  # symusic opens a track for a lyric too: on "channel" 15
                        events.keys.setdefault((15, program[15]), tick)
                length, position = _variable_length(chunk, position)
                position += length
            else:  # 0xF1..0xFE have no place in a file
                break
    except IndexError:
        pass
    return events


def _variable_length(chunk: bytes, position: int) -> tuple[int, int]:
    """The number at a position, seven bits a byte while the high bit says "more", and the position after it."""
    number = 0
    while True:
        byte = chunk[position]
        position += 1
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, position


def _program(part: _Part, own: _Events, heard: list[_Events]) -> int:
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


def _pedal_intervals(part: _Part, heard: list[_Events]) -> IntArray:
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

    Drums go to channel 10; every program gets a channel of its own as long as the 15 others last.
    Raises MidiError for a silence longer than a MIDI file can hold.
    """
    scale = -(-TICKS_PER_BEAT // score.ticks_per_beat)
    file = mido.MidiFile(type=1, ticks_per_beat=score.ticks_per_beat * scale)
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
    end = onset + np.maximum(track.duration * scale, 1)  # an end at its own beginning would come before it
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
