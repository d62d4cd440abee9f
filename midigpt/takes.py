"""Takes: what the sampler writes, from nothing or behind a prompt, and the recipe by which each can be made again."""

import hashlib
import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from midigpt.automaton import DRUM_KEYS
from midigpt.decoder import Prepared, best_weights
from midigpt.devices import device_name
from midigpt.files import UserError
from midigpt.generate import Drawing, Length, go_on
from midigpt.header import read_header
from midigpt.language import TRACKS, Language, decode, encode
from midigpt.model import GPT
from midigpt.normal import GRID, normalise, part_marks, song_order
from midigpt.prompt import Prompt, after, before, describe_parts
from midigpt.score import OCTAVE, Score, Track

RECIPE = "midigpt recipe: "  # how the text event begins that holds one


# --- behind a prompt -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of a prompt that goes on."""

    track: int  # of the prompt's score
    last: int  # the pitch that its next note counts from where intervals are chained
    keys: range  # that it stays within
    drums: frozenset[int]  # likewise, if it is drums

    @property
    def reference(self) -> int:
        """The pitch that its next note is to count from: `last`, or where that is none of its keys, the nearest."""
        return min(max(self.last, self.keys[0]), self.keys[-1])


@dataclass(frozen=True)
class Reading:
    """A document of a prompt, up to the cut, as the model reads it."""

    text: str
    start: int  # the tick at which it begins
    notes: int
    parts: dict[str, Part]  # that go on, by their marks; in track layout the one


def read_prompt(
    prompt: Prompt,
    cut: int,
    language: Language = TRACKS,
    bars: int | None = None,
    keys: range | None = None,
    only: int | None = None,
) -> list[Reading]:
    """What the model reads of a prompt: in song layout one document, else one for each part, the busiest first.

    They hold the notes from some bars before the cut on (all of them without `bars`), with tempo and meter of the cut.
    The parts that play there go on, or that of track `only` alone; if it rests there, they hold more bars, back to its
    last. Without `keys` each goes on within its own range and an octave on either side.

    Raises UserError where the track of `only` does not play before the cut.
    """
    start = 0 if bars is None else _window_start(prompt, cut, bars, only)
    window = before(prompt, cut, start)
    playing = song_order(window.tracks) if language.is_song else [track for track in window.tracks if len(track)]
    marks = part_marks(playing) if language.is_song else [""] * len(playing)
    numbers = [next(n for n, track in enumerate(window.tracks) if track is one) for one in playing]
    parts = [
        (mark, _part(prompt, cut, number, track, keys))
        for mark, number, track in zip(marks, numbers, normalise(window, language.layout).tracks, strict=True)
    ]
    documents = encode(window, prompt.steps(cut - start), language)
    readings = []
    for document, some in zip(documents, [parts] if language.is_song else [[part] for part in parts], strict=True):
        going_on = {mark: part for mark, part in some if only in (None, part.track)}
        if going_on:
            readings.append(Reading(document.text, start, document.notes, going_on))
    if not readings:
        listed = "".join(f"\n  {part}" for part in describe_parts(prompt))
        missing = f"--track {(only or 0) + 1}: no such part of {prompt.path} plays before the cut"
        raise UserError(f"{missing}. Its parts:{listed}")
    return sorted(readings, key=lambda reading: -reading.notes)


def _window_start(prompt: Prompt, cut: int, bars: int, only: int | None) -> int:
    """The tick where the bars before the cut begin in which those play that are to go on."""
    tracks = prompt.score.tracks if only is None else prompt.score.tracks[only : only + 1]
    last = max((int(track.onset[track.onset < cut].max(initial=0)) for track in tracks), default=0)
    return prompt.bar_start(max(min(prompt.bar_at(cut - 1) + 1 - bars, prompt.bar_at(last)), 1))


def _part(prompt: Prompt, cut: int, number: int, read: Track, keys: range | None) -> Part:
    """A part of which the model reads these notes, in normal form. It goes on within its range and an octave beyond."""
    last = int(read.pitch[read.onset == read.onset[-1]].min())
    track = prompt.score.tracks[number]
    pitch = track.pitch[track.onset < cut]
    own = range(max(int(pitch.min()) - OCTAVE, 0), min(int(pitch.max()) + OCTAVE, 127) + 1)
    return Part(number, last, own if track.is_drum else keys or own, DRUM_KEYS | set(pitch.tolist()))


def continuations(
    model: GPT,
    tokenizer: Tokenizer,
    language: Language,
    drawing: Drawing,
    prompt: Prompt,
    cut: int,
    readings: Sequence[Reading],
    length: Length,
    takes: int,
) -> list[dict[int, Track]]:
    """For each take what each part goes on with, by its track: in the prompt's ticks, from its beginning on.

    The first document sets how far the others go. Every document has random numbers of its own.
    """
    written: list[dict[int, Track]] = [{} for _ in range(takes)]
    if length.seconds is not None:  # in the prompt's own tempo, of which a header has but the nearest it can name
        steps = round(length.seconds * prompt.tempo_at(cut) / 60 * GRID)
        length = replace(length, seconds=None, steps=max(steps, 1))
    limit = length.in_steps(read_header(readings[0].text))
    lengths, ends = [length] * takes, [limit] * takes
    prepared = Prepared(model)
    for number, reading in enumerate(readings):
        own = replace(drawing, seed=_seed(drawing.seed, number))
        anchor = read_header(reading.text).key if language.is_anchored else None
        references = {m: part.reference if anchor is None else anchor for m, part in reading.parts.items()}
        keys = {mark: part.keys for mark, part in reading.parts.items()}
        drums = frozenset().union(*(part.drums for part in reading.parts.values()))
        lines = go_on(prepared, tokenizer, language, own, reading.text, references, lengths, keys, drums)
        for take, its, end in zip(written, lines, ends, strict=True):
            take |= _new_notes(prompt, cut, language, reading, its.text, end)
        if number == 0 and limit is None:
            ends = [its.end for its in lines]
            lengths = [Length(steps=end) for end in ends]
    return written


def _new_notes(
    prompt: Prompt, cut: int, language: Language, reading: Reading, lines: str, end: int | None
) -> dict[int, Track]:
    """What lines behind a document have of its parts, up to a grid step behind the cut."""
    score = decode([reading.text + lines], language)
    if end is not None:
        score = ending_at(score, prompt.steps(cut - reading.start) + end)
    new = {}
    for mark, track in zip(part_marks(score.tracks) if language.is_song else [""], score.tracks, strict=True):
        if part := reading.parts.get(mark):
            late = after(prompt, cut, track, score.ticks_per_beat, reading.start)
            if len(late):
                # Chained, what is read counts from `last`, but what was drawn from `reference`.
                moved = part.reference - part.last if language.is_chained else 0
                new[part.track] = replace(late, pitch=late.pitch + moved)
    return new


def _seed(seed: int, document: int) -> int:
    """Another seed for each document but the first, far from those of other takes."""
    return seed if document == 0 else int.from_bytes(hashlib.sha256(f"{seed} {document}".encode()).digest()[:7], "big")


def ending_at(score: Score, end: int | None) -> Score:
    """A score whose notes all end by a time, in grid steps."""
    if end is None:
        return score
    end = end * score.ticks_per_beat // GRID
    tracks = [replace(t, duration=np.minimum(t.duration, np.maximum(end - t.onset, 1))) for t in score.tracks]
    return replace(score, tracks=tuple(tracks))


# --- again -----------------------------------------------------------------------------------------------


def fingerprint(folder: Path) -> str:
    """What tells a checkpoint from all others: 16 hexadecimal digits of its weights and tokenizer."""
    digest = hashlib.sha256()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def versions(device: str) -> dict[str, Any]:
    """What the same seed's draws depend on besides the model."""
    return {
        "midigpt": version("midigpt"),
        "torch": torch.__version__,
        "device": device,
        "processor": device_name(device) if device.startswith("cuda") else platform.machine(),
        "weights": best_weights(device.partition(":")[0]),
        "threads": torch.get_num_threads(),
    }


def differences(recorded: dict[str, Any], device: str) -> list[str]:
    """How this machine differs from the one that a take was written on."""
    here = versions(device)
    return [f"{name} was {was} and is {here.get(name)} here" for name, was in recorded.items() if was != here.get(name)]


def write_recipe(recipe: dict[str, Any]) -> str:
    """A recipe as a text event of ASCII."""
    return RECIPE + json.dumps(recipe, sort_keys=True)


def read_recipe(texts: Sequence[str], path: Path) -> dict[str, Any]:
    """The recipe among a take's text events; the last, where the prompt was a take. Raises UserError without one."""
    for text in reversed(texts):
        if text.startswith(RECIPE):
            with suppress(ValueError):
                recipe = dict(json.loads(text.removeprefix(RECIPE)))
                if recipe.keys() >= {"model", "by", "flags", "versions", "take"}:
                    return recipe
    raise UserError(f"{path} holds no recipe of midigpt: it is no take, or another program has saved it since")


def find_model(recipe: dict[str, Any], root: Path, model: Path | None, take: Path) -> Path:
    """The checkpoint that a take was written by: `model`, or where it was then, or any run's. UserError if gone."""
    runs = sorted((root / "train" / "runs").glob("*/*/model.safetensors"))
    for folder in [model] if model else [Path(recipe["by"]), *(path.parent for path in runs)]:
        with suppress(OSError):  # of a folder that is no checkpoint
            if fingerprint(folder) == recipe["model"]:
                return folder
    why = f"{model} is another one" if model else f"no run in {root / 'train' / 'runs'} has it; name it with --model"
    raise UserError(f"{take} was written by the model {recipe['model']}, then in {recipe['by']}: {why}")
