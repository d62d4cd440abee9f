"""A prompt's own MIDI file with more notes behind a cut: everything before it stays byte for byte.

Each MTrk chunk is its old bytes up to the first event that goes, and then new events. Specification: as in midi_bytes.
"""

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import numpy as np

from midigpt.files import UserError
from midigpt.midi_bytes import (
    END_OF_TRACK,
    MAX_TICKS,
    PEDAL,
    MidiError,
    read_events,
    split_chunks,
    variable_length,
    write_number,
)
from midigpt.prompt import Prompt
from midigpt.score import Track, cut_repeats

_END_OF_TRACK = bytes((0xFF, END_OF_TRACK))
_TEXT = b"\xff\x01"
_OFF, _ON, _CONTROL = 0x80, 0x90, 0xB0
_RESET = 121  # the controller that resets others
_OF_PIECE = b"\xff\x51", b"\xff\x58", b"\xff\x59"  # tempo, time and key signature: at the cut they are of what comes
_SETTLING, _BEGINNING, _CLOSING = range(3)  # the order of new events at one tick; ends of notes settle too

# What is set on a channel, by status and controller, and its value before anything is said.
_PROGRAM, _VOLUME, _EXPRESSION, _PEDAL, _BEND = b"\xc0", b"\xb0\x07", b"\xb0\x0b", bytes((_CONTROL, PEDAL)), b"\xe0"
_AFTER_RESET = {_EXPRESSION: b"\x7f", _PEDAL: b"\0", _BEND: b"\0\x40"}
_AT_FIRST = {_PROGRAM: b"\0", _VOLUME: b"\x64", **_AFTER_RESET}

NewEvents = list[tuple[int, int, bytes]]  # tick of the file, order at it, message


@dataclass
class _Head:
    """What stays of an MTrk chunk. Ticks are the file's."""

    kept: bytes  # its events, as they stand
    tick: int = 0  # of the last of them
    end: int = 0  # of End of Track
    messages: list[tuple[int, int, bytes]] = field(default_factory=list)  # of channels: tick, chunk, message
    sounding: Counter[tuple[int, int]] = field(default_factory=Counter)  # of each (channel, pitch), at the end
    releases: list[tuple[int, bytes]] = field(default_factory=list)  # later events that end those
    signatures: list[bytes] = field(default_factory=list)  # tempos, meters and keys at the cut, if not among the kept


@dataclass
class _Channel:
    """What is set on a channel. In format 2 each chunk has channels of its own."""

    chunk: int = 0  # that said something last
    now: dict[bytes, bytes] = field(default_factory=lambda: dict(_AT_FIRST))
    at_last_note: dict[bytes, bytes] | None = None


def continue_midi(prompt: Prompt, cut: int, parts: Mapping[int, Track], texts: Sequence[str] = ()) -> bytes:
    """The prompt's file up to the cut and the parts behind it, in the same format and division.

    `parts` are notes by the index of a track of the score; onsets, none before the cut, are in the score's ticks
    from the file's beginning. They join that track's chunk and channel. `texts` become text events at the end of
    the first MTrk chunk. Chunks of other kinds stay; a foreign header goes.

    Every event before the cut stays as it is, and one at the cut too where no note starts there or later; else of those
    at the cut the tempo, meter and key. What comes after goes, but not the end of a note that sounds over the cut,
    unless its pitch starts again on its channel: then it ends there. At the cut, what the file leaves hanging is
    settled:

    - a note that nothing ends is ended, and a pedal that is down is lifted;
    - on channels that go on, a bend is undone, and program, volume and expression become again what they were
      when the channel's last note began: many files reset them, or fade out, behind it;
    - a part that has not begun yet gets its program.

    Raises UserError for a piece or a silence longer than a MIDI file can hold.
    """
    unit = prompt.song.file_tick
    header, chunks = split_chunks(prompt.data)
    last = prompt.last_kept(cut) // unit
    try:
        tracks = filter(_is_track, chunks)
        heads = [_read_head(number, chunk, last, cut // unit) for number, chunk in enumerate(tracks)]
        events = _new_events(prompt, cut, parts, heads)
        end = max([cut // unit, *(tick for tick, *_ in events[0])])
        events[0] += [(end, _CLOSING, _text(text)) for text in texts]
        bodies = [_body(head, more, cut // unit) for head, more in zip(heads, events, strict=True)]
    except MidiError as error:
        raise UserError(f"{prompt.path} {error}") from None
    following = iter(bodies)
    out = [next(following) if _is_track(chunk) else chunk for chunk in chunks]
    return header[:10] + struct.pack(">H", len(bodies) & 0xFFFF) + header[12:] + b"".join(out)


def read_texts(path: Path) -> list[str]:
    """The text events (FF 01) of a MIDI file, chunk by chunk. Raises UserError where it is damaged or can't be read."""
    texts = []
    try:
        for chunk in split_chunks(path.read_bytes())[1]:
            for event in read_events(chunk) if _is_track(chunk) else ():
                if event.message.startswith(_TEXT):
                    begin = variable_length(event.message, len(_TEXT))[1]
                    texts.append(event.message[begin:].decode("utf-8", "replace"))
    except MidiError as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from None
    return texts


def _is_track(chunk: bytes) -> bool:
    return chunk[:4] == b"MTrk"


def _read_head(number: int, chunk: bytes, last: int, cut: int) -> _Head:
    """An MTrk chunk up to the last tick that is kept, and which notes sound then."""
    head = _Head(chunk[8:])
    is_over = False
    unended: Counter[tuple[int, int]] = Counter()
    for tick, begin, message in read_events(chunk):
        head.end = tick
        is_last = message[:2] == _END_OF_TRACK
        if not is_over and (is_last or tick > last):
            is_over = True
            head.kept = chunk[8:begin]
            unended = head.sounding.copy()
        kind, key = message[0] & 0xF0, (message[0] & 0x0F, message[1] if len(message) > 1 else 0)
        is_release = kind == _OFF or (kind == _ON and message[2] == 0)
        if is_over:
            if tick == cut and message.startswith(_OF_PIECE):
                head.signatures.append(message)
            if is_release and unended[key]:  # an end is the oldest note's
                unended[key] -= 1
                head.releases.append((tick, message))
            continue
        head.tick = tick
        if kind == 0xF0:
            continue
        head.messages.append((tick, number, message))
        if is_release:
            head.sounding[key] -= head.sounding[key] > 0
        elif kind == _ON:
            head.sounding[key] += 1
    return head


def _new_events(prompt: Prompt, cut: int, parts: Mapping[int, Track], heads: list[_Head]) -> list[NewEvents]:
    """What comes behind the heads, chunk by chunk."""
    unit = prompt.song.file_tick
    cut //= unit
    events: list[NewEvents] = [[] for _ in heads]
    voices: dict[tuple[int, int], int] = {}  # by channel: the first part that goes on there
    starts: dict[tuple[int, int, int], int] = {}  # by channel and pitch: the first new onset
    for index in sorted(parts, key=lambda index: prompt.seats[index]):
        chunk, channel = prompt.seats[index]
        world = _world(prompt, chunk)
        notes = _notes(parts[index], channel, unit)
        if notes and min(notes)[0] < cut:
            raise ValueError(f"part {index} begins before the cut")
        events[chunk] += notes
        voices.setdefault((world, channel), index)
        for tick, order, message in notes:
            if order == _BEGINNING:
                place = (world, channel, message[1])
                starts[place] = min(tick, starts.get(place, tick))
    for chunk, head in enumerate(heads):
        events[chunk] += [(cut, _SETTLING, message) for message in head.signatures]
        hanging = head.sounding - Counter((message[0] & 0x0F, message[1]) for _, message in head.releases)
        ends = head.releases + [(cut, _off(*key)) for key in hanging.elements()]
        for tick, message in ends:
            again = starts.get((_world(prompt, chunk), message[0] & 0x0F, message[1]), tick)
            events[chunk].append((min(tick, again), _SETTLING, message))
    for (world, channel), state in _channels(prompt, heads).items():
        voice = voices.get((world, channel))
        chunk = state.chunk if voice is None else prompt.seats[voice][0]
        wanted = _settled(state, None if voice is None else prompt.score.tracks[voice])
        for setting, value in wanted.items():
            if state.now[setting] != value:
                message = bytes((setting[0] | channel,)) + setting[1:] + value
                events[chunk].append((cut, _SETTLING, message))
    return events


def _world(prompt: Prompt, chunk: int) -> int:
    """Chunks in one world share their channels."""
    return chunk if prompt.song.are_patterns else 0


def _channels(prompt: Prompt, heads: list[_Head]) -> dict[tuple[int, int], _Channel]:
    """What is set at the cut, by world and channel."""
    channels = {(_world(prompt, chunk), channel): _Channel(chunk) for chunk, channel in reversed(prompt.seats)}
    messages = [message for head in heads for message in head.messages]
    for _, chunk, message in sorted(messages, key=itemgetter(0)):  # at one tick in the order of chunks
        kind = message[0] & 0xF0
        state = channels.setdefault((_world(prompt, chunk), message[0] & 0x0F), _Channel())
        state.chunk = chunk
        if kind == _ON and message[2]:
            state.at_last_note = dict(state.now)
        size = 2 if kind == _CONTROL else 1
        key = bytes((kind,)) + message[1:size]
        if key in state.now:
            state.now[key] = message[size:]
        elif key == bytes((_CONTROL, _RESET)):
            state.now.update(_AFTER_RESET)
    return channels


def _settled(state: _Channel, voice: Track | None) -> dict[bytes, bytes]:
    """What is to be set on a channel at the cut; `voice` is the part that goes on there, if one does."""
    wanted = {_PEDAL: _AT_FIRST[_PEDAL]}
    if voice is None:
        return wanted
    wanted[_BEND] = _AT_FIRST[_BEND]
    if state.at_last_note is None:
        return wanted if voice.is_drum else {**wanted, _PROGRAM: bytes((voice.program,))}
    return {**wanted, **{key: state.at_last_note[key] for key in (_PROGRAM, _VOLUME, _EXPRESSION)}}


def _notes(track: Track, channel: int, unit: int) -> NewEvents:
    """A part's beginnings and ends of notes; one ends where its pitch starts again, as in write_midi."""
    onset = track.onset // unit
    end = cut_repeats(onset, (track.onset + track.duration) // unit, track.pitch)
    end = np.maximum(end, onset + 1)
    rows = list(zip(onset.tolist(), end.tolist(), track.pitch.tolist(), track.velocity.tolist(), strict=True))
    begins = [(t, _BEGINNING, bytes((_ON | channel, pitch, velocity))) for t, _, pitch, velocity in rows]
    return begins + [(t, _SETTLING, _off(channel, pitch)) for _, t, pitch, _ in rows]


def _off(channel: int, pitch: int) -> bytes:
    return bytes((_OFF | channel, pitch, 64))


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "replace")
    return _TEXT + write_number(len(content)) + content


def _body(head: _Head, events: NewEvents, cut: int) -> bytes:
    """The MTrk chunk: what is kept, what is new, and End of Track, which does not come before the cut if it did not."""
    pieces = [head.kept]
    now = head.tick
    end = max([now, min(head.end, cut), *(tick for tick, *_ in events)])
    for tick, _, message in [*sorted(events, key=itemgetter(0, 1)), (end, _CLOSING, _END_OF_TRACK + b"\0")]:
        pieces += [write_number(tick - now), message]
        now = tick
    if now > MAX_TICKS:
        raise MidiError(f"would go on to tick {now}; {MAX_TICKS} is the most a MIDI file is read to")
    body = b"".join(pieces)
    return b"MTrk" + struct.pack(">I", len(body)) + body
