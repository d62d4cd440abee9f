"""Takes: what the sampler writes, from nothing or behind a prompt, and the recipe by which each can be made again."""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

import midigpt
from midigpt.files import UserError
from midigpt.generate import Drawing, Length, Lines, go_on
from midigpt.language import GRID, LanguageError, decode, encode, keep_fields, read_header, split_header
from midigpt.model import GPT
from midigpt.prompt import Prompt, before
from midigpt.score import Score, Track

OCTAVE = 12  # keys; a part goes on within its own range and so much beyond
RECIPE = "midigpt recipe: "  # how the text event begins that holds one


# --- behind a prompt -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of a prompt as the model reads it."""

    track: int  # of the prompt's score
    document: str
    reference: int  # the pitch of its last line's first note
    notes: int
    keys: range  # that it goes on within


def read_parts(prompt: Prompt, cut: int, bars: int | None, track: int | None = None) -> list[Part]:
    """The parts to go on with, the busiest first: one track, or all that play before the cut.

    Each is a document of the notes from some bars before the cut on (all of them without `bars`), with tempo and
    meter of the cut. Raises UserError where there is none.
    """
    whole = before(prompt, cut)
    end = _steps(cut, whole)
    start = 0 if bars is None else _steps(prompt.bar_start(max(prompt.bar_at(max(cut - 1, 0)) + 1 - bars, 1)), whole)
    playing = [number for number, part in enumerate(whole.tracks) if len(part)]
    parts = []
    for number, document in zip(playing, encode(whole, end=end), strict=True):
        latest = document.onset.max()
        pitches = document.pitch
        parts.append(
            Part(
                number,
                document.header + _since(document.body, start),
                int(pitches[document.onset == latest].min()),
                int((document.onset >= start).sum()),
                range(max(int(pitches.min()) - OCTAVE, 0), min(int(pitches.max()) + OCTAVE, 127) + 1),
            )
        )
    chosen = [part for part in parts if track is None or part.track == track]
    return sorted(chosen, key=lambda part: -part.notes)


def _steps(tick: int, score: Score) -> int:
    """A tick on the grid, halves up, as the language rounds."""
    return (2 * GRID * tick + score.ticks_per_beat) // (2 * score.ticks_per_beat)


def _since(body: str, start: int) -> str:
    """The lines that start at or after a grid step, with the silence before the first of them."""
    now, silence, kept = 0, 0, []
    for line in body.splitlines(keepends=True):
        count, unit = map(int, line.rpartition("|")[2].split("/"))
        length = count * GRID // unit
        if now >= start and "|" in line:
            kept.append(line)
        else:
            silence += max(now + length - max(now, start), 0)
        now += length
    return (f"{silence}/{GRID}\n" if silence else "") + "".join(kept)


def continuations(
    model: GPT, tokenizer: Tokenizer, drawing: Drawing, parts: Sequence[Part], length: Length, takes: int
) -> list[dict[int, Lines]]:
    """For each take the lines that each part, by its track, goes on with.

    The first part sets how far the others go. Every part has random numbers of its own.
    """
    written: list[dict[int, Lines]] = [{} for _ in range(takes)]
    lengths = [length] * takes
    for number, part in enumerate(parts):
        own = replace(drawing, seed=_seed(drawing.seed, number))
        lines = go_on(model, tokenizer, own, part.document, part.reference, lengths, part.keys)
        for take, its in zip(written, lines, strict=True):
            take[part.track] = its
        if number == 0:
            header = read_header(part.document)
            lengths = [Length(steps=length.in_steps(header) or its.end) for its in lines]
    return written


def _seed(seed: int, part: int) -> int:
    """Another seed for each part but the first, far from those of other takes."""
    return seed if part == 0 else int.from_bytes(hashlib.sha256(f"{seed} {part}".encode()).digest()[:7], "big")


def new_notes(part: Part, lines: Lines, prompt: Prompt, cut: int, end: int | None) -> Track:
    """What a part goes on with, in the prompt's ticks from its file's beginning; notes end by step `end`."""
    header = keep_fields(split_header(part.document)[0], lambda name: name != "key")
    anchor = "" if read_header(header).is_drum else f" key={part.reference}"
    (track,) = decode([f"{header.rstrip()}{anchor}\n{lines.text}"]).tracks
    finish = track.onset + track.duration
    finish = finish if end is None else np.minimum(finish, end)
    beat = prompt.score.ticks_per_beat
    onset, finish = (cut + (2 * beat * steps + GRID) // (2 * GRID) for steps in (track.onset, finish))
    return replace(track, onset=onset, duration=np.maximum(finish - onset, 1))


# --- again -----------------------------------------------------------------------------------------------


def fingerprint(folder: Path) -> str:
    """What tells a checkpoint from all others: 16 hexadecimal digits of its weights and tokenizer."""
    digest = hashlib.sha256()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def versions(device: str) -> dict[str, Any]:
    """What the same seed's draws may depend on besides the model."""
    return {
        "midigpt": midigpt.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{device} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def write_recipe(recipe: dict[str, Any]) -> str:
    """A recipe as a text event of ASCII."""
    return RECIPE + json.dumps(recipe, sort_keys=True)


def read_recipe(texts: Sequence[str], path: Path) -> dict[str, Any]:
    """The recipe among a take's text events. Raises UserError where there is none."""
    for text in reversed(texts):
        if text.startswith(RECIPE):
            try:
                return dict(json.loads(text.removeprefix(RECIPE)))
            except ValueError:
                break
    raise UserError(f"{path} holds no recipe of midigpt: it is no take, or was saved by another program since")
