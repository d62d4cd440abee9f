"""MIDI file <-> Score.

Reading is done by symusic, one MTrk chunk at a time, because only then is it known which notes shared a
chunk. What symusic leaves out is added by midi_bytes: the channel of each track, programs and sustain
pedals that stand in another chunk, SMPTE time. Writing is done by mido.
"""

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mido
import numpy as np
import symusic
from numpy.typing import NDArray

from midigpt.files import UserError, replacing
from midigpt.midi_bytes import MAX_NUMBER, PEDAL, Events, MidiError, check_length, clock, readable, scan, split_file
from midigpt.score import NO_PEDAL, IntArray, Score, Track, cut_repeats

T = TypeVar("T")

DRUM_CHANNEL = 9  # counted from 0; "channel 10" in print
FINE_TICKS = 480  # ticks per beat to write with at least, as sequencers expect
_HEADER = b"MThd" + struct.pack(">IHHH", 6, 1, 1, 480)  # before a single chunk; ticks are read as they are


@dataclass
class _Part:
    """The notes of one channel in one MTrk chunk."""

    chunk: int
    channel: int
    name: str
    notes: list[dict[str, NDArray[Any]]]  # columns of notes, by program


@dataclass
class _Reading:
    """A file's chunks as symusic reads them, and what midi_bytes adds. Ticks are the file's."""

    ticks_per_beat: int
    tick_factor: int  # ticks of a score to one of the file
    is_smpte: bool
    are_patterns: bool  # format 2: what one chunk sets does not hold in another
    parsed: list["symusic.core.ScoreTick"] = field(default_factory=list)
    parts: list[_Part] = field(default_factory=list)
    events: list[Events] = field(default_factory=list)  # of each chunk

    def heard(self, part: _Part) -> list[Events]:
        return [self.events[part.chunk]] if self.are_patterns else self.events


@dataclass(frozen=True)
class Song:
    """A MIDI file's score, and what a score has no place for. Ticks are the score's."""

    score: Score
    seats: tuple[tuple[int, int], ...]  # of each track of the score: MTrk chunk and channel, counted from 0
    programs: tuple[tuple[tuple[int, int], ...], ...]  # of each track: ticks and programs set there, ordered
    tempos: tuple[tuple[int, float], ...]  # tick and BPM, ordered, the first at tick 0
    meters: tuple[tuple[int, tuple[int, int]], ...]  # likewise
    file_tick: int  # ticks of the score to one of the file: 1, in SMPTE time 2
    are_patterns: bool  # a file of format 2: what one chunk sets does not hold in another

    def seconds_at(self, ticks: IntArray) -> NDArray[np.float64]:
        """When ticks, (N,), are played, in seconds, by the whole tempo map."""
        changes, tempos = (np.array(column) for column in zip(*self.tempos, strict=True))
        tick_seconds = 60 / tempos / self.score.ticks_per_beat
        elapsed = np.concatenate([[0.0], np.cumsum(np.diff(changes) * tick_seconds[:-1])])  # at each change
        last = np.searchsorted(changes, ticks, side="right") - 1
        return elapsed[last] + (ticks - changes[last]) * tick_seconds[last]


def in_force(changes: tuple[tuple[int, T], ...], tick: int) -> T:
    """Of changes by tick the last at a tick or before it."""
    return changes[bisect_right(changes, tick, key=lambda change: change[0]) - 1][1]


def load_midi(path: Path) -> Score:
    """read_midi for a command: whatever is wrong with the file becomes a UserError that names it."""
    return load_song(path).score


def load_song(path: Path) -> Song:
    """read_song likewise."""
    try:
        return read_song(path.read_bytes())
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
    return _score(_read(source if isinstance(source, bytes) else source.read_bytes()))


def read_song(data: bytes) -> Song:
    """read_midi, and what else the bytes say of each track's place, programs, tempos and meters."""
    reading = _read(data)
    factor = reading.tick_factor
    programs = []
    for part in reading.parts:
        changes = () if part.channel == DRUM_CHANNEL else _programs(part, reading)
        programs.append(tuple((tick * factor, number) for tick, number in changes))
    tempos = [(t.time, 6e7 / t.mspq) for chunk in reading.parsed for t in chunk.tempos if t.mspq > 0]
    meters = [
        (m.time * factor, (m.numerator, m.denominator))
        for chunk in reading.parsed
        for m in chunk.time_signatures
        if _is_meter(m)
    ]
    return Song(
        _score(reading),
        tuple((part.chunk, part.channel) for part in reading.parts),
        tuple(programs),
        _map([] if reading.is_smpte else tempos, 120.0),
        _map(meters, (4, 4)),
        factor,
        reading.are_patterns,
    )


def _map(changes: list[tuple[int, T]], default: T) -> tuple[tuple[int, T], ...]:
    """Changes by tick, from tick 0 on; of several at one tick the last holds."""
    ordered = sorted(changes, key=lambda change: change[0])
    return tuple({0: default, **dict(ordered)}.items())


def _read(data: bytes) -> _Reading:
    midi_format, division, chunks = split_file(data)
    ticks_per_beat, tick_factor, is_smpte = clock(division)
    check_length(data, chunks)
    reading = _Reading(ticks_per_beat, tick_factor, is_smpte, are_patterns=midi_format == 2)
    for number, chunk in enumerate(map(readable, chunks)):
        try:
            reading.parsed.append(symusic.Score.from_midi(_HEADER + chunk))
        except RuntimeError as error:
            cause = str(error).removeprefix("MiniMidi: ").split(": iostream error")[0]
            raise MidiError(f"has a damaged track chunk ({number + 1} of {len(chunks)}: {cause})") from None
        chunk_parts, chunk_events = _parts(number, chunk, reading.parsed[-1])
        reading.parts += chunk_parts
        reading.events.append(chunk_events)
    if not reading.parts:
        raise MidiError("has no notes")
    return reading


def _score(reading: _Reading) -> Score:
    tempo = 120.0 if reading.is_smpte else _first_tempo(reading.parsed)
    return Score(reading.ticks_per_beat, _tracks(reading), tempo, _first_meter(reading.parsed))


def _tracks(reading: _Reading) -> tuple[Track, ...]:
    """A Track for each part."""
    notes = _joined(reading.parts)
    tracks = []
    stop = 0
    for part in reading.parts:
        start, stop = stop, stop + sum(len(columns["time"]) for columns in part.notes)
        onset, duration, pitch, velocity = (column[start:stop] for column in notes)
        is_drum = part.channel == DRUM_CHANNEL
        program = 0 if is_drum else _program(part, int(onset[0]), reading)
        pedal = _pedal_intervals(part.channel, reading.heard(part), onset, duration)
        if reading.tick_factor != 1:
            onset, duration, pedal = (ticks * reading.tick_factor for ticks in (onset, duration, pedal))
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
        next(((m.time, (m.numerator, m.denominator)) for m in chunk.time_signatures if _is_meter(m)), None)
        for chunk in chunks
    ]
    return min(filter(None, firsts), key=lambda meter: meter[0], default=(0, (4, 4)))[1]


def _is_meter(meter: "symusic.core.TimeSignatureTick") -> bool:
    return meter.numerator > 0 and meter.denominator in (1, 2, 4, 8, 16, 32, 64, 128)


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


def _program(part: _Part, tick: int, reading: _Reading) -> int:
    """The program in force for a part at a tick of the file; 0, piano, if none was set."""
    return next((number for when, number in reversed(_programs(part, reading)) if when <= tick), 0)


def _programs(part: _Part, reading: _Reading) -> list[tuple[int, int]]:
    """Ticks and programs set for a part: by its own chunk, and before that does so, by any."""

    def changes(sources: list[Events]) -> list[tuple[int, int]]:
        found = [
            (tick, number) for events in sources for tick, channel, number in events.programs if channel == part.channel
        ]
        return sorted(found, key=lambda change: change[0])

    own = changes([reading.events[part.chunk]])
    others = changes(reading.heard(part))
    return [change for change in others if not own or change[0] < own[0][0]] + own


def write_midi(score: Score, path: Path, texts: Sequence[str] = ()) -> None:
    """Write a format 1 file: a conductor track with tempo, meter and texts, then a track for each of the score's.

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
    for text in texts:
        conductor.append(mido.MetaMessage("text", text=text))
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
        if tick - now > MAX_NUMBER:
            raise MidiError(f"a silence of {tick - now} ticks is too long for a MIDI file")
        kind = "note_on" if is_on else "note_off"
        out.append(mido.Message(kind, channel=channel, note=pitch, velocity=velocity, time=tick - now))
        now = tick
