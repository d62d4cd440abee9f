"""Damaged MIDI files: what can be saved of them.

A damaged file is written anew, byte by byte of what is whole in it, and the copy is read like any other. So
every note saved stands in the file. Specification: as in midi_bytes.
"""

import struct
from dataclasses import dataclass, field

from midigpt.midi import read_midi
from midigpt.midi_bytes import HEADER_WITHIN, MAX_TICKS, MidiError, clock
from midigpt.score import Score

FEWEST_NOTES = 4  # that are worth saving; out of noise come fewer
LONGEST_WAIT = 1000  # beats between two events of a damaged chunk; a longer time is taken for damage too
_NAMED = 3  # damaged chunks to name in a remark

_DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}  # of channel messages
_STRAY_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # of system messages, which have no place in a file; others 0
_AMOUNTS = (0xD0, 0xE0)  # messages whose first data byte says how much; of the others it says which
_CLIP = bytes(min(byte, 127) for byte in range(256))
_EMPTY_TEXT = b"\xff\x01\x00"  # stands for a message left out, so that its time still passes
_END_OF_TRACK = b"\0\xff\x2f\0"


class _Damage(Exception):
    """From here on a chunk's bytes are no events."""


@dataclass
class _Events:
    """The whole events at the beginning of some bytes."""

    mended: bytearray = field(default_factory=bytearray)
    size: int = 0  # bytes read
    ticks: int = 0
    clipped: int = 0  # messages with an amount above 127
    left_out: int = 0  # messages that no file may hold
    long_waits: int = 0
    first_fault: tuple[int, int] | None = None  # (length of `mended`, ticks) before the first of these three
    is_ended: bool = False  # by End of Track
    is_broken: bool = False  # by bytes that are no event


def rescue(data: bytes) -> tuple[Score, str]:
    """Read a MIDI file's bytes, whole or damaged: the score, and what had to be done (empty for a whole file).

    Of a damaged chunk all whole events before the damage are read, also if its stated length is wrong or
    the file ends within it. A velocity, controller value or bend above 127 is clipped, and a message with an
    impossible pitch, controller or program is left out, as long as the chunk then reads to its end; where it
    does not, they are taken for the beginning of the damage. Notes without an end are dropped.

    Raises MidiError with read_midi's reason where no note can be saved.
    """
    try:
        return read_midi(data), ""
    except MidiError:
        for mending in (_mend_newlines, mend):
            try:
                mended, remark = mending(data)
                score = read_midi(mended)
            except MidiError:
                continue
            if score.notes >= FEWEST_NOTES:
                return score, remark
        raise


def _mend_newlines(data: bytes) -> tuple[bytes, str]:
    """A file without the carriage returns that a transfer as text puts before line feeds."""
    is_text = 0 < data.count(b"\n") == data.count(b"\r\n")
    return data.replace(b"\r\n", b"\n") if is_text else b"", "the file was sent as text; its line ends were mended"


def mend(data: bytes) -> tuple[bytes, str]:
    """A damaged file's whole events as a file of their own, and what was done.

    Raises MidiError where the header is damaged: without its division no time is known.
    """
    start = data.find(b"MThd", 0, HEADER_WITHIN)
    if start < 0 or len(data) < start + 14:
        raise MidiError("has no header")
    length, midi_format, declared, division = struct.unpack_from(">IHHH", data, start + 4)
    if not 6 <= length <= len(data) - start - 8:
        raise MidiError("has a damaged header")
    ticks_per_beat = clock(division)[0]
    chunks, remarks = [], []
    clipped = left_out = 0
    position = data.find(b"MTrk", start + 8 + length)
    while 0 <= position <= len(data) - 8:
        events, position, wrong = _read_chunk(data, position, LONGEST_WAIT * ticks_per_beat)
        chunks.append(b"MTrk" + struct.pack(">I", len(events.mended) + 4) + events.mended + _END_OF_TRACK)
        clipped += events.clipped
        left_out += events.left_out
        if wrong:
            upto = f"read up to its beat {events.ticks // ticks_per_beat + 1}" if events.mended else "left out"
            remarks.append(f"track chunk {len(chunks)} {wrong.format(upto)}")
        position = data.find(b"MTrk", position)
    if len(remarks) > _NAMED:
        remarks[_NAMED:] = [f"and so are {len(remarks) - _NAMED} more"]
    if declared > len(chunks):
        remarks.append(f"{declared - len(chunks)} of {declared} track chunks are missing")
    if clipped:
        remarks.append(f"{clipped} values above 127 were clipped")
    if left_out:
        remarks.append(f"{left_out} impossible messages were left out")
    header = b"MThd" + struct.pack(">IHHH", 6, midi_format, len(chunks) & 0xFFFF, division)
    return header + b"".join(chunks), "; ".join(remarks) or "what is no track chunk was passed over"


def _read_chunk(data: bytes, start: int, longest_wait: int) -> tuple[_Events, int, str]:
    """The events of the MTrk chunk at `start`, where to look for the next, and what is wrong ("" if nothing)."""
    begin = start + 8
    length = struct.unpack_from(">I", data, start + 4)[0]
    end = begin + length
    events = _read_events(data[begin:end], longest_wait)
    if not events.is_ended and not _is_boundary(data, end):  # the length is wrong, or the events are
        until = data.find(b"MTrk", begin)
        wider = _read_events(data[begin : until if until >= 0 else len(data)], longest_wait)
        if wider.is_ended or end > len(data):
            events, end = wider, begin + wider.size
    is_doubtful = not events.is_ended or events.left_out > 0 and events.long_waits > 0
    is_cut = events.is_broken or is_doubtful and events.first_fault is not None
    if is_cut and events.first_fault:
        mended, events.ticks = events.first_fault
        del events.mended[mended:]
        events.clipped = events.left_out = 0
    missing = begin + length - len(data)
    if is_cut and missing <= 0:
        wrong = "is damaged; {}"
    elif events.is_ended:
        wrong = f"states a wrong length ({length} bytes)" if missing > 0 or begin + length != end else ""
    else:
        wrong = f"is cut off ({missing} bytes are missing); {{}}" if missing > 0 else ""
    return events, max(min(end, len(data)), begin + events.size), wrong


def _is_boundary(data: bytes, position: int) -> bool:
    """Whether the file ends at a position, or a chunk begins there."""
    kind = data[position : position + 4]
    return position == len(data) or len(kind) == 4 and kind.isascii() and kind.decode().isprintable()


def _read_events(body: bytes, longest_wait: int) -> _Events:
    """Read events up to End of Track, the end of the bytes, or the first that is none. Waits are in ticks."""
    events = _Events()
    running = 0
    try:
        while events.size < len(body) and not events.is_ended:
            delta, at = _variable_length(body, events.size)
            wait = body[events.size : at]
            if events.ticks + delta > MAX_TICKS:
                raise _Damage
            before = len(events.mended), events.ticks
            status = running
            if body[at] >= 0x80:
                status = body[at]
                at += 1
            if status < 0xF0:
                running = status
            following = _message_end(body, status, at)
            message = _mend_message(events, status, body[at:following])
            events.long_waits += delta > longest_wait
            if events.first_fault is None and (events.clipped or events.left_out or events.long_waits):
                events.first_fault = before
            events.is_ended = message[:2] == b"\xff\x2f"
            events.ticks += delta
            if not events.is_ended:
                events.mended += wait + message
            events.size = following
    except (IndexError, _Damage):
        events.is_broken = True
    return events


def _message_end(body: bytes, status: int, at: int) -> int:
    """Where a message ends whose status byte stands before `at`, or is running. Raises _Damage past the bytes."""
    if status < 0x80:
        raise _Damage
    if status < 0xF0:
        following = at + _DATA_BYTES[status & 0xF0]
    elif status in (0xF0, 0xF7, 0xFF):
        length, following = _variable_length(body, at + (status == 0xFF))
        following += length
    else:
        following = at + _STRAY_BYTES.get(status, 0)
    if following > len(body):
        raise _Damage
    return following


def _mend_message(events: _Events, status: int, data: bytes) -> bytes:
    """A message as a file may hold it, with its status byte."""
    if status in (0xF0, 0xF7, 0xFF):
        return bytes([status]) + data
    if status >= 0xF0 or data[0] >= 0x80 and status & 0xF0 not in _AMOUNTS:
        events.left_out += 1
        return _EMPTY_TEXT
    events.clipped += not data.isascii()
    return bytes([status]) + data.translate(_CLIP)


def _variable_length(body: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it. Raises _Damage for one of more than four bytes."""
    number = 0
    for after in range(position + 1, position + 5):
        byte = body[after - 1]
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, after
    raise _Damage
