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
from midigpt.encodings.interval import steps_of, time_text
from midigpt.files import UserError
from midigpt.generate import Drawing, Length, go_on, without_key
from midigpt.header import read_header, split_header
from midigpt.language import TRACKS, decode, encode
from midigpt.model import GPT
from midigpt.normal import GRID
from midigpt.prompt import Prompt, after, before
from midigpt.score import Score, Track

OCTAVE = 12  # keys; a part goes on within its own range and so much beyond
RECIPE = "midigpt recipe: "  # how the text event begins that holds one


# --- behind a prompt -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of a prompt as the model reads it."""

    track: int  # of the prompt's score
    document: str
    reference: int  # the pitch that its next line counts from
    notes: int
    keys: range  # that it goes on within
    drums: frozenset[int]  # likewise, if it is drums


def read_parts(prompt: Prompt, cut: int, bars: int | None = None, keys: range | None = None) -> list[Part]:
    """The parts that play before the cut, the busiest first.

    Each is a document of its notes from some bars before the cut on (all of them without `bars`), with tempo and
    meter of the cut. Without `keys` it goes on within its own range and an octave on either side.
    """
    whole = before(prompt, cut)
    start = 0
    if bars is not None:
        start = prompt.steps(prompt.bar_start(max(prompt.bar_at(cut - 1) + 1 - bars, 1)))
    playing = [number for number, track in enumerate(whole.tracks) if len(track)]
    parts = []
    for number, document in zip(playing, encode(whole, end=prompt.steps(cut)), strict=True):
        pitch = document.pitch
        last = int(pitch[document.onset == document.onset.max()].min())
        within = keys or range(max(int(pitch.min()) - OCTAVE, 0), min(int(pitch.max()) + OCTAVE, 127) + 1)
        parts.append(
            Part(
                number,
                document.header + _since(document.body, start),
                min(max(last, within[0]), within[-1]),
                int((document.onset >= start).sum()),
                within,
                DRUM_KEYS | set(pitch.tolist()),
            )
        )
    return sorted(parts, key=lambda part: -part.notes)


def _since(body: str, start: int) -> str:
    """The lines that start at or after a grid step, with the silence before the first of them."""
    now, silence, kept = 0, 0, []
    for line in body.splitlines(keepends=True):
        length = steps_of(line.rpartition("|")[2])
        if now >= start and "|" in line:
            kept.append(line)
        else:
            silence += max(now + length - max(now, start), 0)
        now += length
    return (f"{time_text(silence)}\n" if silence else "") + "".join(kept)


def continuations(
    model: GPT,
    tokenizer: Tokenizer,
    drawing: Drawing,
    prompt: Prompt,
    cut: int,
    parts: Sequence[Part],
    length: Length,
    takes: int,
) -> list[dict[int, Track]]:
    """For each take what each part goes on with, by its track: in the prompt's ticks, from its beginning on.

    The first part sets how far the others go. Every part has random numbers of its own.
    """
    written: list[dict[int, Track]] = [{} for _ in range(takes)]
    if length.seconds is not None:  # in the prompt's own tempo, of which a header has but the nearest it can name
        steps = round(length.seconds * prompt.tempo_at(cut) / 60 * GRID)
        length = replace(length, seconds=None, steps=max(steps, 1))
    limit = length.in_steps(read_header(parts[0].document))
    lengths, ends = [length] * takes, [limit] * takes
    prepared = Prepared(model)
    for number, part in enumerate(parts):
        own = replace(drawing, seed=_seed(drawing.seed, number))
        lines = go_on(
            prepared, tokenizer, TRACKS, own, part.document, {"": part.reference}, lengths, part.keys, part.drums
        )
        for take, its, end in zip(written, lines, ends, strict=True):
            header = split_header(part.document)[0]
            anchored = header if read_header(header).is_drum else f"{without_key(header)[:-1]} key={part.reference}\n"
            score = ending_at(decode([anchored + its.text]), end)
            take[part.track] = after(prompt, cut, score.tracks[0], score.ticks_per_beat, start=cut)
        if number == 0 and limit is None:
            ends = [its.end for its in lines]
            lengths = [Length(steps=end) for end in ends]
    return written


def _seed(seed: int, part: int) -> int:
    """Another seed for each part but the first, far from those of other takes."""
    return seed if part == 0 else int.from_bytes(hashlib.sha256(f"{seed} {part}".encode()).digest()[:7], "big")


def ending_at(score: Score, end: int | None) -> Score:
    """A score whose notes all end by a tick."""
    if end is None:
        return score
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
