"""Damaged MIDI files: what can be saved of them.

What is whole in a damaged file is written anew, and that is read like any other. So every note that is saved
stands in the file. Specification: as in midi_bytes.
"""

import struct
from collections import Counter
from dataclasses import dataclass, field, replace

from midigpt.midi import read_midi
from midigpt.midi_bytes import HEADER_WITHIN, MAX_TICKS, MidiError, clock, event_end, variable_length
from midigpt.score import Score, Track

FEWEST_NOTES = 4  # worth saving; fewer come out of noise
LONGEST = 256  # beats of a note or between two events; in what is damaged, longer ones come of the damage
_NAMED = 3  # damaged chunks to name in a remark

_AMOUNTS = (0xD0, 0xE0)  # messages whose first data byte says how much; of the others it says which
_LEAST_META = {0x51: 2 + 3, 0x58: 2 + 4}  # bytes of tempo and meter, with kind and length
_CLIP = bytes(min(byte, 127) for byte in range(256))
_EMPTY_TEXT = b"\xff\x01\x00"  # stands for a message left out, so that its time still passes
_END_OF_TRACK = b"\0\xff\x2f\0"


@dataclass
class _Events:
    """The whole events at the beginning of some bytes. A place is (length of `mended`, ticks) before an event."""

    end: int  # the position behind them
    mended: bytearray = field(default_factory=bytearray)
    ticks: int = 0
    clipped: int = 0  # messages with an amount above 127
    left_out: int = 0  # messages that no file may hold
    first_fault: tuple[int, int] | None = None  # the place of the first of these, or of a wait above LONGEST
    is_noise_before: bool = False  # that place
    notes: int = 0  # beginnings
    sounding: Counter[tuple[int, int]] = field(default_factory=Counter)  # of each (channel, pitch)
    stray_ends: int = 0
    first_stray: tuple[int, int] | None = None  # the place of the first of these
    is_ended: bool = False  # by End of Track
    is_broken: bool = False  # by bytes that are no event

    @property
    def is_noise(self) -> bool:
        """Whether beginnings and ends of notes do not match, as where a byte was lost and all after it misread."""
        return self.stray_ends + self.sounding.total() > 4 + self.notes // 8

    def cut(self) -> None:
        """Keep what comes before the first sign of damage."""
        is_noise = self.is_noise_before if self.first_fault else self.is_noise
        signs = [self.first_fault, self.first_stray if is_noise else None]
        if places := [place for place in signs if place]:
            mended, self.ticks = min(places)
            del self.mended[mended:]
            self.clipped = self.left_out = 0


def rescue(data: bytes) -> tuple[Score, str]:
    """Read a MIDI file's bytes, whole or damaged: the score, and what had to be done ("" for a whole file).

    Of a damaged track chunk all whole events before the damage are read, also if its stated length is wrong
    or the file ends within it. Where the rest of the chunk makes sense to its end, a velocity, controller
    value or bend above 127 is clipped, and a message with an impossible pitch, controller, program or status
    left out. Notes without an end, or of more than LONGEST beats, are dropped.

    Raises MidiError with read_midi's reason where fewer than FEWEST_NOTES notes can be saved.
    """
    try:
        return read_midi(data), ""
    except MidiError:
        for mending in (_mend_newlines, mend):
            try:
                mended, remark = mending(data)
                score = _without_endless_notes(read_midi(mended))
            except MidiError:
                continue
            if score.notes >= FEWEST_NOTES:
                return score, remark
        raise


def _without_endless_notes(score: Score) -> Score:
    def kept(track: Track) -> Track:
        short = track.duration <= LONGEST * score.ticks_per_beat
        columns = {name: getattr(track, name)[short] for name in ("onset", "duration", "pitch", "velocity")}
        return replace(track, **columns)

    tracks = map(kept, score.tracks)
    return replace(score, tracks=tuple(track for track in tracks if len(track)))


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
    found = clipped = left_out = 0
    position = data.find(b"MTrk", start + 8 + length)
    while 0 <= position <= len(data) - 8:
        events, position, wrong = _read_chunk(data, position, LONGEST * ticks_per_beat)
        found += 1
        if events.mended:
            chunks.append(b"MTrk" + struct.pack(">I", len(events.mended) + 4) + events.mended + _END_OF_TRACK)
        clipped += events.clipped
        left_out += events.left_out
        if wrong:
            extent = f"read up to its beat {events.ticks // ticks_per_beat + 1}" if events.mended else "left out"
            remarks.append(f"track chunk {found} {wrong.format(extent)}")
        position = data.find(b"MTrk", position)
    if len(remarks) > _NAMED:
        remarks[_NAMED:] = [f"{len(remarks) - _NAMED} more track chunks are damaged too"]
    if declared > found:
        remarks.append(f"{declared - found} of {declared} track chunks are missing")
    if clipped:
        remarks.append(f"clipped to 127: {clipped} messages")
    if left_out:
        remarks.append(f"left out as impossible: {left_out} messages")
    header = b"MThd" + struct.pack(">IHHH", 6, midi_format, len(chunks) & 0xFFFF, division)
    return header + b"".join(chunks), "; ".join(remarks) or "odd bytes were passed over"


def _read_chunk(data: bytes, start: int, longest_wait: int) -> tuple[_Events, int, str]:
    """The events of the MTrk chunk at `start`, where to look for the next, and what is wrong ("" if nothing)."""
    begin = start + 8
    length = struct.unpack_from(">I", data, start + 4)[0]
    end = begin + length
    missing = end - len(data)
    events = _read_events(data, begin, min(end, len(data)), longest_wait)
    if not _is_boundary(data, end):  # the length is wrong, or the events are
        if not events.is_ended:
            until = data.find(b"MTrk", begin)
            wider = _read_events(data, begin, until if until >= 0 else len(data), longest_wait)
            events = wider if wider.is_ended or missing > 0 else events
        end = events.end
    has_wrong_length = end != begin + length or missing > 0
    if ((events.first_fault or has_wrong_length) and (events.is_noise or not events.is_ended)) or events.is_broken:
        events.cut()
        return events, end, f"is cut off ({missing} bytes are missing); {{}}" if missing > 0 else "is damaged; {}"
    return events, end, f"states a wrong length ({length} bytes)" if has_wrong_length else ""


def _is_boundary(data: bytes, position: int) -> bool:
    """Whether the file ends at a position, or a chunk begins there."""
    kind = data[position : position + 4]
    return position == len(data) or (len(kind) == 4 and kind.isascii() and kind.decode().isprintable())


def _read_events(data: bytes, begin: int, end: int, longest_wait: int) -> _Events:
    """Read events up to End of Track, the end position, or the first that is none. Waits are in ticks."""
    events = _Events(begin)
    running = 0
    try:
        while events.end < end and not events.is_ended:
            delta, at = variable_length(data, events.end)
            wait = data[events.end : at]
            if events.ticks + delta > MAX_TICKS:
                raise MidiError("lasts impossibly long")
            status = running
            if data[at] >= 0x80:
                status = data[at]
                at += 1
            if status < 0xF0:
                running = status
            following = event_end(data, status, at) if status >= 0x80 else end + 1
            if following > end:
                raise MidiError("has no event here")
            message = _mend_message(events, status, data[at:following])
            _pair(events, message)
            is_faulty = events.clipped or events.left_out or delta > longest_wait
            if is_faulty and events.first_fault is None:
                events.first_fault = len(events.mended), events.ticks
                events.is_noise_before = events.is_noise
            events.ticks += delta
            events.end = following
            events.is_ended = message[:2] == b"\xff\x2f"
            if not events.is_ended:
                events.mended += wait + message
    except (IndexError, MidiError):
        events.is_broken = True
    return events


def _mend_message(events: _Events, status: int, data: bytes) -> bytes:
    """A message as a file may hold it, with its status byte."""
    if status in (0xF0, 0xF7):
        return bytes([status]) + data
    if status == 0xFF and len(data) >= _LEAST_META.get(data[0], 0):
        # Lyrics become text: symusic would open a track for them.
        return b"\xff\x01" + data[1:] if data[0] == 0x05 else b"\xff" + data
    if status >= 0xF0 or (data[0] >= 0x80 and status & 0xF0 not in _AMOUNTS):
        events.left_out += 1
        return _EMPTY_TEXT
    events.clipped += not data.isascii()
    return bytes([status]) + data.translate(_CLIP)


def _pair(events: _Events, message: bytes) -> None:
    """Keep account of which notes sound."""
    status = message[0]
    if status >= 0xA0:
        return
    key = status & 0x0F, message[1]
    if status >= 0x90 and message[2]:
        events.notes += 1
        events.sounding[key] += 1
    elif events.sounding[key]:
        events.sounding[key] -= 1
    else:
        events.stray_ends += 1
        events.first_stray = events.first_stray or (len(events.mended), events.ticks)
