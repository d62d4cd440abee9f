"""The bytes of a MIDI file, as far as symusic does not tell them: chunks, clock, channels, programs, pedals.

Specification: MIDI 1.0 Detailed Specification, part "Standard MIDI Files 1.0" (MIDI Association).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np

from midigpt.score import IntArray

HEADER_WITHIN = 512  # a RIFF, MacBinary or web-server header may stand before MThd
PEDAL = 64  # the controller number of the sustain pedal
MAX_NUMBER = 0x0FFFFFFF  # that a variable-length quantity can hold: seven bits of four bytes
LYRIC, END_OF_TRACK = 0x05, 0x2F  # meta events; symusic opens a track for a lyric: on "channel" 15
MAX_TICKS = 2**31 - 1  # of a track: symusic counts ticks in 32 bits

DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}  # of channel messages
_STRAY_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # of system messages, which have no place in a file; others 0
_MISREAD = re.compile(rb"\xff(?:\x05\x00|\x51[\x00-\x02]|\x58(?:[\x00-\x03]|[\x00-\xff]{2}[\x08-\xff]))")
_ENDING = re.compile(  # nothing but tempos, meters and keys up to the end of track
    rb"(?:(?:\x51\x03.{3}|\x58\x04.{4}|\x59\x02.{2})[\x80-\xff]{0,3}[\x00-\x7f]\xff)*+\x2f", re.DOTALL
)
_ODD = b"\xf5\0\0"  # for numpy: some event that is no message of two data bytes
_HIGH = bytes(range(0x80, 0x100))  # status bytes, and all but the last of a delta


class MidiError(ValueError):
    """A MIDI file that cannot be read or written, in words its owner understands."""


@dataclass
class Events:
    """What one MTrk chunk says besides its notes. Times in ticks."""

    players: set[tuple[int, int]] = field(default_factory=set)  # (channel, program) that have notes or lyrics
    programs: list[tuple[int, int, int]] = field(default_factory=list)  # (tick, channel, program)
    pedals: dict[int, IntArray] = field(default_factory=dict)  # by channel: ticks and values, (2, P)
    ticks: int = 0  # the chunk's length
    whole: bool = True  # False where reading stopped at the first note


class Event(NamedTuple):
    """One event of an MTrk chunk."""

    tick: int
    begin: int  # the position of its delta in the chunk
    message: bytes  # with its status byte, also where that was a running one


def split_file(data: bytes) -> tuple[int, int, list[bytes]]:
    """The format, the division and the MTrk chunks (with their 8-byte heads) of a file's bytes.

    Raises MidiError where that is not what the bytes are.
    """
    header, chunks = split_chunks(data)
    midi_format, _, division = struct.unpack_from(">HHH", header, 8)
    return midi_format, division, [chunk for chunk in chunks if chunk[:4] == b"MTrk"]


def split_chunks(data: bytes) -> tuple[bytes, list[bytes]]:
    """The MThd chunk of a file's bytes and all whole chunks behind it, of whatever kind, with their heads.

    Raises MidiError as split_file.
    """
    if not data:
        raise MidiError("is empty (0 bytes)")
    start = data.find(b"MThd", 0, HEADER_WITHIN)
    if start < 0:
        raise MidiError("is not a MIDI file (it has no MThd header)")
    if len(data) < start + 14:
        raise MidiError("is truncated (it ends inside the header)")
    length, _, declared = struct.unpack_from(">IHH", data, start + 4)
    if not 6 <= length <= len(data) - start - 8:
        raise MidiError(f"has a damaged header (it claims {length} bytes; 6 are usual)")
    chunks: list[bytes] = []
    tracks = 0
    first = position = start + 8 + length
    while position + 8 <= len(data):
        kind, length = struct.unpack_from(">4sI", data, position)
        end = position + 8 + length
        if kind == b"MTrk":
            tracks += 1
            if end > len(data):
                raise MidiError(f"is truncated ({end - len(data)} bytes of track chunk {tracks} are missing)")
        elif end > len(data) and tracks < declared and b"MTrk" in data[position:]:
            raise MidiError(f"is damaged (no track chunk is where number {tracks + 1} should begin)")
        if end <= len(data):
            chunks.append(data[position:end])
        position = end
    return data[start:first], chunks


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


def read_events(chunk: bytes) -> Iterator[Event]:
    """Every event of an MTrk chunk, one after the other, up to End of Track (which is given too) or its last byte.

    Raises MidiError where the bytes are no events.
    """
    tick = running = 0
    position = 8
    try:
        while position < len(chunk):
            begin = position
            delta, position = variable_length(chunk, begin)
            tick += delta
            status = running
            if chunk[position] >= 0x80:
                status = chunk[position]
                position += 1
            if status < 0xF0:
                running = status
            end = event_end(chunk, status, position)
            if end > len(chunk):
                raise MidiError("has a damaged track chunk (its last event is cut off)")
            yield Event(tick, begin, bytes((status,)) + chunk[position:end])
            if status == 0xFF and chunk[position] == END_OF_TRACK:
                return
            position = end
    except (IndexError, KeyError):  # the chunk ends in mid-event, or begins with data
        raise MidiError("has a damaged track chunk (its bytes are no events)") from None


def scan(chunk: bytes, to_first_note: bool = False) -> Events:
    """Read an MTrk chunk's events; stops where its bytes end.

    With `to_first_note` the scan ends, without counting ticks further, at the first note, unless programs or other
    channels' pedals may come after it; or where only tempos come.
    """
    events = Events()
    program = [0] * 16
    pedals: list[tuple[int, int, int]] = []  # (tick, channel, value)
    tick = running = 0
    position, end = 8, len(chunk)
    try:
        while position < end:
            delta = chunk[position]
            position += 1
            if delta >= 0x80:
                delta, position = variable_length(chunk, position - 1)
            tick += delta
            status = running
            if chunk[position] >= 0x80:
                status = chunk[position]
                position += 1
            if status < 0xF0:
                running = status
                kind, channel, first, second = status & 0xF0, status & 0x0F, chunk[position], chunk[position + 1]
                position += DATA_BYTES[kind]
                if kind == 0x90 and second:
                    events.players.add((channel, program[channel]))
                    events.whole = not to_first_note or _may_set_more(chunk, position, channel, program[channel])
                    if events.whole:
                        tick, more = _scan_rest(chunk, position, tick, status, program, events)
                        pedals += more
                    break
                if kind == 0xB0 and first == PEDAL:
                    pedals.append((tick, channel, second))
                elif kind == 0xC0:
                    program[channel] = first
                    events.programs.append((tick, channel, first))
            elif status == 0xFF and (
                chunk[position] == END_OF_TRACK or (to_first_note and _ENDING.match(chunk, position))
            ):
                break
            else:
                if status == 0xFF and chunk[position] == LYRIC:
                    events.players.add((15, program[15]))
                position = event_end(chunk, status, position)
    except (IndexError, KeyError):  # the chunk ends in mid-event, or begins with data
        pass
    events.ticks = tick
    if pedals:
        ticks, channels, values = np.array(pedals).T
        for channel in set(channels.tolist()):
            events.pedals[channel] = np.stack((ticks, values))[:, channels == channel]
    return events


def _scan_rest(
    chunk: bytes, position: int, tick: int, running: int, program: list[int], events: Events
) -> tuple[int, list[tuple[int, int, int]]]:
    """The rest of `scan`, behind the first note, by numpy: the last tick, and the pedals.

    Every event is made a message of two data bytes. Then every third byte below 0x80 ends a message, and
    what each byte is follows from its place between those.
    """
    pieces, begin = [bytes((0, running, 0, 0))], position
    odd = []  # (status, first data byte) of the events that were no such message
    for byte, data, end in _others(chunk, position, _wanted()):
        has_status = chunk[data - 1] >= 0x80  # else it is running status
        pieces += [chunk[begin : data - has_status], _ODD]
        odd.append((byte, chunk[data]))
        begin = end
    flat = np.frombuffer(b"".join([*pieces, chunk[begin:]]), np.uint8)
    low = np.flatnonzero(flat < 0x80)
    delta_at, first_at, second_at = low[: len(low) // 3 * 3].reshape(-1, 3).T  # (E,) for each event

    deltas = flat[delta_at].astype(np.int64)
    size = delta_at - np.append(-1, second_at[:-1])
    for back in (1, 2, 3):  # bytes before a delta's last
        longer = np.flatnonzero(size > back)
        deltas[longer] |= (flat[delta_at[longer] - back].astype(np.int64) & 0x7F) << 7 * back
    ticks = tick + np.cumsum(deltas)
    status = np.where(first_at - delta_at == 2, flat[first_at - 1], 0)
    is_odd = status == _ODD[0]
    status = status[np.maximum.accumulate(np.where((status > 0) & ~is_odd, np.arange(len(status)), 0))]  # running
    kind, channel = status & 0xF0, status & 0x0F
    first, second = flat[first_at], flat[second_at]

    placed = [(i, *event) for i, event in zip(np.flatnonzero(is_odd).tolist(), odd, strict=False)]
    changes = [(i, byte & 0x0F, data) for i, byte, data in placed if byte & 0xF0 == 0xC0]
    events.programs += [(int(ticks[i]), where, number) for i, where, number in changes]
    is_player = (kind == 0x90) & (second > 0)
    for i in [i for i, *event in placed if event == [0xFF, LYRIC]]:
        is_player[i], channel[i] = True, 15
    for where in set(channel[is_player].tolist()):
        own = [(i, number) for i, place, number in changes if place == where]
        since = np.searchsorted([i for i, _ in own], np.flatnonzero(is_player & (channel == where)))
        events.players |= {(where, own[k - 1][1] if k else program[where]) for k in set(since.tolist())}
    is_pedal = (kind == 0xB0) & (first == PEDAL)
    rows = (ticks[is_pedal].tolist(), channel[is_pedal].tolist(), second[is_pedal].tolist())
    return int(ticks[-1]), list(zip(*rows, strict=True))


def _may_set_more(chunk: bytes, position: int, channel: int, program: int) -> bool:
    """Whether a program or pedal comes that is not the channel's own, or not the one in force."""
    if not chunk[position:].translate(None, _harmless(channel)):
        return False
    return any(
        (kind == 0xC0 and (status & 0x0F, chunk[data]) != (channel, program)) or (kind == 0xB0 and chunk[data] == PEDAL)
        for status, data, _ in _others(chunk, position, _wanted(0xB0 | channel))
        if (kind := status & 0xF0) != 0xF0
    )


def _others(chunk: bytes, position: int, wanted: re.Pattern[bytes]) -> Iterator[tuple[int, int, int]]:
    """The events with a status `wanted`, from an event's beginning on: status, position of the data, of the end.

    Those not wanted are passed over without looking at each: they are messages of two data bytes, so every
    third byte below 0x80 ends one, and the count of such bytes tells a status from the middle of a delta.
    """
    low = running = 0  # bytes below 0x80 since an event's beginning; status of the last wanted message
    try:
        while match := wanted.search(chunk, position):
            low += len(chunk[position : match.start()].translate(None, _HIGH))
            position = match.end()
            if low % 3 == 0:  # in a delta
                continue
            status = chunk[position - 1]
            running = status if status < 0xF0 else running if low == 1 else 0  # others came between
            low = 0
            is_last = status == 0xFF and chunk[position] == END_OF_TRACK
            end = len(chunk) if is_last else event_end(chunk, status, position)
            yield status, position, end
            position = end
            if running:
                _, following = variable_length(chunk, position)
                while chunk[following] < 0x80:
                    position = event_end(chunk, running, following)
                    yield running, following, position
                    _, following = variable_length(chunk, position)
    except IndexError:  # the chunk ends in mid-event
        return


def event_end(chunk: bytes, status: int, data: int) -> int:
    """Where an event ends whose data begin at a position."""
    if status < 0xF0:
        return data + DATA_BYTES[status & 0xF0]
    if status in (0xF0, 0xF7, 0xFF):
        length, begin = variable_length(chunk, data + (status == 0xFF))
        return begin + length
    return data + _STRAY_BYTES.get(status, 0)


@cache
def _harmless(channel: int) -> bytes:
    """Bytes that can't be the status of an event that sets more; the others may be, or be part of a delta."""
    return bytes(b for b in range(256) if b not in range(0xB0, 0xD0) or b == 0xB0 | channel)


@cache
def _wanted(own: int | None = None) -> re.Pattern[bytes]:
    """A status byte of a message that has not two data bytes; or, if one is named, of other controllers."""
    others = bytes(status for status in range(0xB0, 0xC0) if own is not None and status != own)
    return re.compile(b"[\xc0-\xdf\xf0-\xff" + others + b"]")


def variable_length(chunk: bytes, position: int) -> tuple[int, int]:
    """The number at a position, seven bits a byte while the high bit says "more", and the position after it.

    Raises MidiError for one of more than four bytes.
    """
    number = 0
    for at in range(position, position + 4):
        byte = chunk[at]
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, at + 1
    raise MidiError("has a damaged track chunk (a number of more than four bytes)")


def write_number(value: int) -> bytes:
    """A variable-length quantity, as variable_length reads it. Raises MidiError for more than MAX_NUMBER."""
    if value > MAX_NUMBER:
        raise MidiError(f"can't go on: a silence or text of {value} is too long for a MIDI file")
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


def readable(chunk: bytes) -> bytes:
    """The chunk as symusic reads it rightly: events that it does not, turned into text events.

    These are system exclusive, empty lyrics, and tempos and meters that are too short or impossible.
    """
    if b"\xf0" not in chunk and b"\xf7" not in chunk and not _MISREAD.search(chunk):
        return chunk
    pieces, begin = [], 8
    for status, data, _ in _others(chunk, 8, _wanted()):
        if status in (0xF0, 0xF7):
            pieces += [chunk[begin : data - 1], b"\xff\x01"]
            begin = data
        elif status == 0xFF and _MISREAD.match(chunk, data - 1):
            pieces += [chunk[begin:data], b"\x01"]
            begin = data + 1
    if not pieces:
        return chunk
    body = b"".join([*pieces, chunk[begin:]])
    return b"MTrk" + struct.pack(">I", len(body)) + body


def check_length(data: bytes, chunks: list[bytes]) -> None:
    """MidiError where a chunk of a file is longer than symusic can count."""
    if _most_ticks(data) <= MAX_TICKS:
        return
    for chunk in chunks:
        if _most_ticks(chunk) > MAX_TICKS and (ticks := scan(chunk).ticks) > MAX_TICKS:
            raise MidiError(f"lasts impossibly long ({ticks} ticks)")


def _most_ticks(data: bytes) -> int:
    """What the deltas in some bytes can add up to at most, if every byte were part of one."""
    signs = np.frombuffer(data, np.int8)  # negative for all bytes of a delta but its last; seven bits each
    two = signs[1:] & signs[:-1]
    three = two[1:] & signs[:-2]
    singles, pairs, triples = (int(np.count_nonzero(some < 0)) for some in (signs, two, three))
    return (len(data) << 7) + (singles << 14) + (pairs << 21) + (triples << 28)
