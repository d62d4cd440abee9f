"""A plain synthesizer for where no renderer is installed: sums of harmonics, and noise for drums.

It hears notes, velocities, the sustain pedal and tempo changes; no other controller, and no pitch bend.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from midigpt.general_midi import drum_kind
from midigpt.midi import Song
from midigpt.normal import held_ends
from midigpt.score import IntArray, Track

Sound = NDArray[np.float32]  # samples between -1 and 1 or, before levelling, of any size

RATE = 44_100  # samples a second
LONGEST = 20.0  # seconds; a note held longer has ended by then
FADE = 0.06  # seconds from a note's end to silence
HIGHEST = 12_000.0  # Hz; harmonics above are left out


@dataclass(frozen=True)
class Timbre:
    """How an instrument sounds: its harmonics' amplitudes, how fast it sets in and dies away."""

    harmonics: tuple[float, ...]
    attack: float  # seconds
    decay: float | None = None  # seconds to 1/e of the fundamental at 440 Hz; None: it stays


STRUCK = Timbre((1.0, 0.45, 0.28, 0.16, 0.1, 0.07, 0.04), 0.004, 1.1)  # and plucked
BLOWN = Timbre((1.0, 0.6, 0.45, 0.3, 0.2, 0.12, 0.07), 0.025)
BOWED = Timbre((1.0, 0.4, 0.22, 0.1, 0.05), 0.06)
# By General MIDI family, eight programs each, in the order of general_midi.FAMILIES.
TIMBRES: tuple[Timbre, ...] = (STRUCK, STRUCK, BLOWN, STRUCK, STRUCK, BOWED, BOWED, BLOWN)
TIMBRES += (BLOWN, BOWED, BLOWN, BOWED, BOWED, STRUCK, STRUCK, BOWED)


@dataclass(frozen=True)
class Drum:
    """How a kind of drum sounds: a falling tone and noise."""

    hertz: tuple[float, float]  # of the tone, at the beginning and later
    tone: float  # its share; the rest is noise
    decay: float  # seconds to 1/e
    loudness: float = 1.0
    bright: bool = False  # noise without lows


DRUMS = {
    "kick": Drum((130.0, 48.0), 0.95, 0.12, 1.6),
    "snare": Drum((210.0, 170.0), 0.35, 0.09),
    "toms": Drum((170.0, 100.0), 0.8, 0.16, 1.2),
    "hi-hat": Drum((0.0, 0.0), 0.0, 0.04, 0.5, bright=True),
    "cymbals": Drum((0.0, 0.0), 0.0, 0.45, 0.5, bright=True),
    "percussion": Drum((450.0, 400.0), 0.6, 0.05, 0.6),
}
OPEN_HI_HAT = 46


def synthesize(song: Song) -> Sound:
    """A MIDI file as sound, (samples, 2: left and right), at RATE."""
    score = song.score
    plays = []
    for track in score.tracks:
        end = track.onset + track.duration
        end = held_ends(end, track.pedal) if len(track.pedal) and not track.is_drum else end
        first, last = (np.rint(song.seconds_at(tick) * RATE).astype(np.int64) for tick in (track.onset, end))
        plays.append((track, first, last - first))
    length = max(int((first + samples).max()) for _, first, samples in plays) + 2 * RATE
    sound = np.zeros((length, 2), np.float32)
    places = _places([track.is_drum for track in score.tracks])
    for (track, first, samples), place in zip(plays, places, strict=True):
        part = _part(track, first, samples, length)
        sound[:, 0] += part * np.float32(np.sqrt((1 - place) / 2))
        sound[:, 1] += part * np.float32(np.sqrt((1 + place) / 2))
    return sound


def _places(are_drums: list[bool]) -> list[float]:
    """Where tracks sit between left, -1, and right, 1: drums in the middle, the others alternately to its sides."""
    pitched = are_drums.count(False)
    spread = iter([0.0] if pitched == 1 else [0.5 * (-1) ** n * (n + 1) / pitched for n in range(pitched)])
    return [0.0 if is_drum else next(spread) for is_drum in are_drums]


def _part(track: Track, first: IntArray, samples: IntArray, length: int) -> Sound:
    """A track's notes, (N,), from the sample first[i] on for samples[i], as mono sound of a length."""
    sound = np.zeros(length, np.float32)
    fade = np.linspace(1, 0, int(FADE * RATE), dtype=np.float32)
    gain = (track.velocity / 127) ** 2  # what General MIDI level 2 recommends
    for pitch in np.unique(track.pitch).tolist():
        notes = np.flatnonzero(track.pitch == pitch)
        if track.is_drum:  # rings as long as it does
            tone = _drum(pitch)
            held = np.full(len(notes), len(tone))
        else:
            held = np.minimum(samples[notes], int(LONGEST * RATE))
            tone = _tone(TIMBRES[track.program // 8], pitch, int(held.max()) + len(fade))
        for start, duration, loudness in zip(first[notes].tolist(), held.tolist(), gain[notes].tolist(), strict=True):
            note = tone[: duration + len(fade)] * np.float32(loudness)
            note[duration:] *= fade[: len(note) - duration]
            sound[start : start + len(note)] += note[: length - start]
    return sound


def _tone(timbre: Timbre, pitch: int, samples: int) -> Sound:
    """A note of a pitch that lasts for some samples, mono."""
    time = np.arange(samples, dtype=np.float32) / RATE
    hertz = 440.0 * 2 ** ((pitch - 69) / 12)
    sound = np.zeros(samples, np.float32)
    for number, amplitude in enumerate(timbre.harmonics, 1):
        if number * hertz > HIGHEST:
            break
        harmonic = amplitude * np.sin(2 * np.pi * _phase(number * hertz, samples))
        if timbre.decay:  # high strings and high harmonics die away sooner
            harmonic *= np.exp(-time * np.float32(number**0.7 / timbre.decay * (hertz / 440) ** 0.5))
        sound += harmonic
    return sound * np.minimum(time / np.float32(timbre.attack), 1) * np.float32(0.2)


def _phase(hertz: float, samples: int) -> Sound:
    """Turns of an oscillation, each the fraction only: in float32 a whole count would be too coarse after seconds."""
    return (np.arange(samples) * (hertz / RATE) % 1).astype(np.float32)


def _drum(pitch: int) -> Sound:
    """A stroke on a key of the drum channel, mono."""
    drum = DRUMS[drum_kind(pitch)]
    decay = 0.2 if pitch == OPEN_HI_HAT else drum.decay
    time = np.arange(int(6 * decay * RATE)) / RATE
    noise = np.random.default_rng(pitch).standard_normal(len(time) + 1)
    noise = np.diff(noise) * 0.5 if drum.bright else noise[1:] * 0.4
    first, last = drum.hertz
    hertz = (last + (first - last) * np.exp(-time / 0.03)) * (2 ** ((pitch - 45) / 24) if pitch > 40 else 1)
    tone = np.sin(2 * np.pi * np.cumsum(hertz) / RATE)
    sound = (drum.tone * tone + (1 - drum.tone) * noise) * np.exp(-time / decay)
    return (sound * (0.4 * drum.loudness)).astype(np.float32)
