"""The bytes of a MIDI file, as far as symusic does not tell them: chunks, clock, channels, programs, pedals.

Specification: MIDI 1.0 Detailed Specification, part "Standard MIDI Files 1.0" (MIDI Association).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

HEADER_WITHIN = 512  # a RIFF, MacBinary or web-server header may stand before MThd
PEDAL = 64  # the controller number of the sustain pedal
MAX_TICKS = 2**31 - 1  # of a track: symusic counts ticks in 32 bits

_DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}  # of channel messages
_STRAY_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # of system messages, which have no place in a file; others 0
_HIGH = bytes(byte >= 0x80 for byte in range(256))  # to mark status bytes, and all but the last of a delta


class MidiError(ValueError):
    """A MIDI file that cannot be read or written, in words its owner understands."""


@dataclass
class Events:
    """What one MTrk chunk says besides its notes. Times in ticks."""

    players: set[tuple[int, int]] = field(default_factory=set)  # (channel, program) that have notes or lyrics
    programs: list[tuple[int, int, int]] = field(default_factory=list)  # (tick, channel, program)
    pedals: list[tuple[int, int, int]] = field(default_factory=list)  # (tick, channel, value)
    ticks: int = 0  # the chunk's length
    whole: bool = True  # False where reading stopped at the first note


def split_file(data: bytes) -> tuple[int, int, list[bytes]]:
    """The format, the division and the MTrk chunks (with their 8-byte heads) of a file's bytes."""
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


def clock(division: int) -> tuple[int, int, bool]:
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


def scan(chunk: bytes, to_first_note: bool = False) -> Events:
    """Read an MTrk chunk's events; stops where its bytes end.

    With `to_first_note` the scan ends at the first note, unless programs or other channels' controllers may
    come after it.
    """
    events = Events()
    program = [0] * 16
    running = 0
    position, end = 8, len(chunk)
    try:
        while position < end:
            delta, position = _variable_length(chunk, position)
            events.ticks += delta
            status = running
            if chunk[position] >= 0x80:
                status = chunk[position]
                position += 1
            if status < 0xF0:
                running = status
                _channel_message(events, program, status, chunk[position], chunk[position + 1])
                position += _DATA_BYTES[status & 0xF0]
                if to_first_note and events.players:
                    to_first_note = False
                    if not _may_set_more(chunk, position, status & 0x0F, program[status & 0x0F]):
                        events.whole = False
                        break
            elif status in (0xF0, 0xF7):
                length, position = _variable_length(chunk, position)
                position += length
            elif status == 0xFF:
                meta = chunk[position]
                length, position = _variable_length(chunk, position + 1)
                position += length
                if meta == 0x2F:  # end of track
                    break
                if meta == 0x05:  # symusic opens a track for a lyric too: on "channel" 15
                    events.players.add((15, program[15]))
            else:
                position += _STRAY_BYTES.get(status, 0)
    except (IndexError, KeyError):  # the chunk ends in mid-event, or begins with data
        pass
    return events


def _channel_message(events: Events, program: list[int], status: int, first: int, second: int) -> None:
    kind, channel = status & 0xF0, status & 0x0F
    if kind == 0x90 and second:
        events.players.add((channel, program[channel]))
    elif kind == 0xB0 and first == PEDAL:
        events.pedals.append((events.ticks, channel, second))
    elif kind == 0xC0:
        program[channel] = first
        events.programs.append((events.ticks, channel, first))


def _may_set_more(chunk: bytes, position: int, channel: int, program: int) -> bool:
    """Whether other events come than notes, bends, the channel's own controllers and program, and meta events."""
    harmless = (0xFF, None), (0xC0 | channel, program)
    return any(
        (status, None if status == 0xFF else chunk[data]) not in harmless
        for status, data in _others(chunk, position, _run(bytes([0xB0 | channel])))
    )


def _others(chunk: bytes, position: int, run: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
    """(status byte, position behind it) of the events from a position on that no `run` passes over.

    This is 20 times as fast as going event by event, where almost all of them are in runs.
    """
    try:
        while True:
            match = run.match(chunk, position)
            assert match  # it may be empty
            _, position = _variable_length(chunk, match.end())
            status = chunk[position]
            position += 1
            yield status, position
            if status in (0xF0, 0xF7, 0xFF):
                if chunk[position] == 0x2F and status == 0xFF:  # end of track
                    return
                length, position = _variable_length(chunk, position + (status == 0xFF))
                position += length
            elif status > 0xF0:
                position += _STRAY_BYTES.get(status, 0)
            elif status >= 0x80:
                position += _DATA_BYTES[status & 0xF0]
                if _DATA_BYTES[status & 0xF0] == 1:  # a run would take running status for two bytes a message
                    _, following = _variable_length(chunk, position)
                    while chunk[following] < 0x80:
                        yield status, following
                        position = following + 1
                        _, following = _variable_length(chunk, position)
            else:  # data without a status
                return
    except IndexError:  # the chunk ends in mid-event
        return


@cache
def _run(controllers: bytes) -> re.Pattern[bytes]:
    """A run of messages of two data bytes, of which only the controllers of the given status bytes."""
    status = b"\x80-\xaf\xe0-\xef" + re.escape(controllers)  # or none: running status
    return re.compile(rb"(?:[\x80-\xff]{0,3}[\x00-\x7f][" + status + rb"]?[\x00-\x7f]{2})*+")


def _variable_length(chunk: bytes, position: int) -> tuple[int, int]:
    """The number at a position, seven bits a byte while the high bit says "more", and the position after it."""
    number = 0
    while True:
        byte = chunk[position]
        position += 1
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, position


def readable(chunk: bytes) -> bytes:
    """The chunk as symusic reads it rightly: system exclusive, which it misreads, turned into text events.

    Raises MidiError where the chunk is longer than symusic can count.
    """
    if b"\1\1\1" in chunk.translate(_HIGH) and (ticks := scan(chunk).ticks) > MAX_TICKS:
        raise MidiError(f"lasts impossibly long ({ticks} ticks)")
    if b"\xf0" not in chunk and b"\xf7" not in chunk:
        return chunk
    pieces, begin = [], 8
    for status, data in _others(chunk, 8, _run(bytes(range(0xB0, 0xC0)))):
        if status in (0xF0, 0xF7):
            pieces += [chunk[begin : data - 1], b"\xff\x01"]
            begin = data
    if not pieces:
        return chunk
    body = b"".join([*pieces, chunk[begin:]])
    return b"MTrk" + struct.pack(">I", len(body)) + body
