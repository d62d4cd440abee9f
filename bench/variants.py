"""What is done to a piece that nevertheless stays the same music, for bench/dedupe.py."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from midigpt.score import Score, Track

Variant = Callable[[Score, np.random.Generator], Score]


def _each(score: Score, change: Callable[[Track], Track]) -> Score:
    return replace(score, tracks=tuple(change(track) for track in score.tracks))


def _selected(track: Track, which: np.ndarray) -> Track:
    columns = {name: getattr(track, name)[which] for name in ("onset", "duration", "pitch", "velocity")}
    return replace(track, **columns)


def transposed(score: Score, rng: np.random.Generator) -> Score:
    """By 1 to 11 keys, downwards where there is no room above."""
    keys = int(rng.integers(1, 12))
    if max((track.pitch.max() for track in score.tracks if not track.is_drum), default=0) + keys > 127:
        keys = -keys
    return _each(score, lambda t: t if t.is_drum else replace(t, pitch=np.clip(t.pitch + keys, 0, 127)))


def at_tempo(factor: float) -> Variant:
    """All times multiplied; where the result isn't on the grid, normalising rounds it."""

    def scaled(ticks: np.ndarray) -> np.ndarray:
        return np.round(ticks * factor).astype(np.int64)

    def change(t: Track) -> Track:
        duration = np.maximum(scaled(t.onset + t.duration) - scaled(t.onset), 1)
        return replace(t, onset=scaled(t.onset), duration=duration, pedal=scaled(t.pedal))

    return lambda score, rng: _each(score, change)


def without_track(score: Score, rng: np.random.Generator) -> Score:
    """Without one of its pitched tracks, any; without notes where it has only one."""
    pitched = [number for number, track in enumerate(score.tracks) if not track.is_drum]
    gone = set(pitched) if len(pitched) < 2 else {int(rng.choice(pitched))}
    return replace(score, tracks=tuple(track for number, track in enumerate(score.tracks) if number not in gone))


def changed(share: float) -> Variant:
    """Of this share of the notes a third is dropped, the others are moved by 1 to 5 keys."""

    def change(track: Track, rng: np.random.Generator) -> Track:
        fate = rng.random(len(track))
        move = rng.integers(1, 6, len(track)) * rng.choice([-1, 1], len(track))
        pitch = np.where(fate < share, np.clip(track.pitch + move, 0, 127), track.pitch)
        moved = _selected(replace(track, pitch=pitch), fate >= share / 3)
        return _selected(moved, np.lexsort((moved.pitch, moved.onset)))

    return lambda score, rng: _each(score, lambda track: change(track, rng))


def first_part(score: Score, rng: np.random.Generator) -> Score:
    """What begins in the first 80 % of its time."""
    end = 0.8 * score.end
    return _each(score, lambda track: _selected(track, track.onset < end))


def _then(first: Variant, second: Variant) -> Variant:
    return lambda score, rng: second(first(score, rng), rng)


VARIANTS: dict[str, Variant] = {
    "copy": lambda score, rng: score,
    "transposed": transposed,
    "tempo x 0.5": at_tempo(0.5),
    "tempo x 2": at_tempo(2),
    "tempo x 1.07": at_tempo(1.07),
    "one track removed": without_track,
    "3 % changed": changed(0.03),
    "10 % changed": changed(0.10),
    "first 80 %": first_part,
    "transposed, first 80 %": _then(transposed, first_part),
    "transposed, 3 % changed": _then(transposed, changed(0.03)),
    "one track removed, x 1.07": _then(without_track, at_tempo(1.07)),
}
