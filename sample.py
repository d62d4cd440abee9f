"""Write takes with a trained model: new music, or a continuation of your own MIDI file.

Examples:
  python sample.py --takes 5 --bars 16
  python sample.py --prompt song.mid --prompt-bars 8 --takes 5 --temperature 0.9
  python sample.py --again out/take-0003.mid
"""

import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from midigpt.files import UserError, make, parse_arguments, write_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from midigpt.generate import Drawing, Length
    from midigpt.model import GPT
    from midigpt.prompt import Prompt
    from midigpt.score import Score, Track

CONTINUED_BARS = 8  # behind a prompt, where nothing else is asked


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    run: str = "default"
    """The run whose best model writes."""
    model: Path | None = None
    """Any checkpoint folder, instead of a run's."""
    prompt: Path | None = None
    """A MIDI file to go on from; without it the model begins by itself, one part."""
    at: int | None = None
    """The bar of the prompt where the continuation begins, counted from 1 (default: the beat after its end)."""
    prompt_bars: int | None = None
    """How many bars before that the model reads (default: what fits)."""
    track: int | None = None
    """The part of the prompt that goes on, counted from 1 (default: all of them)."""
    takes: int = 1
    """How many to write."""
    bars: float | None = None
    """New bars a take (behind a prompt 8, if no other length is asked)."""
    seconds: float | None = None
    """New seconds a take."""
    notes: int | None = None
    """New notes a take (of a prompt: of its busiest part)."""
    ending: bool = False
    """Let the model end its takes (without a prompt the default; at most 1000 notes)."""
    temperature: float = 1.0
    """Below 1 plays safer, above 1 wilder; 0 always takes the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Draw from tokens at least this many times as likely as the likeliest."""
    seed: int | None = None
    """Take i is drawn with seed + i; without it another seed each time, which is named."""
    program: str | None = None
    """Instrument without a prompt: a General MIDI program 0..127, or d for drums."""
    tempo: int | None = None
    """Beats per minute without a prompt, 20..320."""
    meter: str | None = None
    """Time signature without a prompt, such as 3/4."""
    key: str | None = None
    """First note without a prompt: C4 (middle C), F#3, Bb5, or a MIDI number 0..127."""
    keys: str | None = None
    """Lowest and highest note, such as C2-C6 (behind a prompt: each part's own range and an octave around it)."""
    png: bool = False
    """Draw a piano roll beside each take."""
    wav: bool = False
    """Render each take."""
    play: bool = False
    """Play each take."""
    again: Path | None = None
    """A take to make once more, by the recipe in it. Its model is looked for among the runs and as --model."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps (default: the fastest there is)."""
    out: Path | None = None
    """Folder for the takes (default: out/ of the working folder); nothing in it is overwritten."""


# What has no bearing on a take's music, or is looked for anew.
NOT_IN_RECIPE = {"root", "run", "model", "png", "wav", "play", "again", "device", "out"}


def main(args: Args) -> None:
    check(args)
    if args.again:
        make_again(args, args.again)
        return
    from midigpt.checkpoint import find_checkpoint
    from midigpt.devices import find_device

    runs = args.root / "train" / "runs" / args.run
    folder = args.model or find_checkpoint(runs / "best") or find_checkpoint(runs / "latest")
    if folder is None:
        raise UserError(f"{runs} holds no checkpoint yet; make one with: {make(args.root, 'train')}")
    if args.seed is None:
        args = replace(args, seed=random.randrange(2**31))
    files = write_takes(args, folder, find_device(args.device))
    print(f"sample: {len(files)} takes by {folder} in {files[0].parent}")


def check(args: Args) -> None:
    """Raise UserError for wishes that can't be met."""
    for name in ("takes", "notes", "prompt_bars", "top_k", "track"):
        if (number := getattr(args, name)) is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')} {number} must be at least 1")
    for name in ("bars", "seconds"):
        if (number := getattr(args, name)) is not None and not 0 < number < 1e6:
            raise UserError(f"--{name} {number} must be above 0")
    if [args.bars, args.seconds, args.notes, args.ending or None].count(None) < 3:
        raise UserError("--bars, --seconds, --notes and --ending each say how long a take is; give one of them")
    if not 0 <= args.temperature < 100:
        raise UserError(f"--temperature {args.temperature} is not in 0..100")
    for name in ("top_p", "min_p"):
        if (share := getattr(args, name)) is not None and not 0 < share <= 1:
            raise UserError(f"--{name.replace('_', '-')} {share} is not a share above 0 and up to 1")
    if args.seed is not None and not 0 <= args.seed < 2**62:
        raise UserError(f"--seed {args.seed} is not in 0..2^62")
    if args.prompt and [args.program, args.tempo, args.meter, args.key].count(None) < 4:
        raise UserError("--program, --tempo, --meter and --key are the prompt's own where there is a --prompt")
    if not args.prompt and [args.at, args.prompt_bars, args.track].count(None) < 3 and not args.again:
        raise UserError("--at, --prompt-bars and --track say something about a --prompt; name one")
    wishes(args)
    key_range(args)


def write_takes(
    args: Args, folder: Path, device: str, recipe: dict[str, Any] | None = None, only: int | None = None
) -> list[Path]:
    """Write all takes that are asked for, or the one of that number alone; with a recipe, or one made here."""
    from midigpt.checkpoint import load_checkpoint
    from midigpt.prompt import load_prompt
    from midigpt.takes import fingerprint, sha256, versions, write_recipe

    prompt = load_prompt(args.prompt) if args.prompt else None
    model, tokenizer, _ = load_checkpoint(folder, device)
    if recipe is None:
        flags = {name: value for name, value in asdict(args).items() if name not in NOT_IN_RECIPE}
        flags["prompt"] = str(args.prompt) if prompt else None
        recipe = {"model": fingerprint(folder), "by": str(folder), "flags": flags}
        recipe |= {"prompt_sha256": sha256(prompt.data)} if prompt else {}
    recipe |= {"versions": versions(device)}
    cut = prompt.cut(args.at) if prompt else None
    compose = continue_prompt(args, model, tokenizer, prompt) if prompt else begin(args, model, tokenizer)
    files = []
    for number, write in enumerate(compose):
        if only in (None, number):
            files.append(save(write, [write_recipe(recipe | {"take": number})], args.out or args.root / "out"))
            print(f"{files[-1]}: {describe(args, files[-1], cut)}; seed {drawing(args).seed + number}", flush=True)
    return files


# Writes a take, with text events in it, to a file.
Write = Callable[[Path, list[str]], None]


def begin(args: Args, model: "GPT", tokenizer: "Tokenizer") -> Iterator[Write]:
    """Pieces from nothing: one part each, as a document holds one."""
    from midigpt.generate import compose
    from midigpt.language import decode, read_header
    from midigpt.midi import write_midi
    from midigpt.takes import ending_at

    length = wanted_length(args)
    for text in compose(model, tokenizer, drawing(args), wishes(args), length, args.takes, key_range(args) or ALL_KEYS):
        score = ending_at(decode([text]), length.in_steps(read_header(text)))
        yield partial(write_midi, score)


def continue_prompt(args: Args, model: "GPT", tokenizer: "Tokenizer", prompt: "Prompt") -> Iterator[Write]:
    """The prompt up to the cut, and behind it its parts, or one of them, going on."""
    from midigpt.prompt import describe_parts
    from midigpt.splice import continue_midi
    from midigpt.takes import continuations, read_parts

    cut = prompt.cut(args.at)
    parts = read_parts(prompt, cut, args.prompt_bars, key_range(args))
    if args.track is not None:
        parts = [part for part in parts if part.track == args.track - 1]
    if not parts:
        listed = "".join(f"\n  {part}" for part in describe_parts(prompt))
        raise UserError(f"--track {args.track}: no such part of {prompt.path} plays before the cut. Its parts:{listed}")
    if all(prompt.score.tracks[part.track].is_drum for part in parts):
        print(f"sample: what goes on of {prompt.path} is drums alone, and so is the continuation")
    for tracks in continuations(model, tokenizer, drawing(args), prompt, cut, parts, wanted_length(args), args.takes):

        def write(path: Path, texts: list[str], tracks: "dict[int, Track]" = tracks) -> None:
            write_bytes(path, continue_midi(prompt, cut, tracks, texts))

        yield write


def make_again(args: Args, take: Path) -> None:
    """Write a take once more by its recipe, and say whether it came out the same."""
    import torch

    from midigpt.devices import find_device
    from midigpt.splice import read_texts
    from midigpt.takes import differences, find_model, read_recipe, sha256

    recipe = read_recipe(read_texts(take), take)
    flags = recipe["flags"]
    prompt = args.prompt or (flags["prompt"] and Path(flags["prompt"]))
    if prompt and not prompt.exists():
        raise UserError(f"{prompt}, which {take} goes on from, is not there; name it with --prompt")
    if prompt and sha256(prompt.read_bytes()) != recipe["prompt_sha256"]:
        raise UserError(f"{prompt} is not the file that {take} goes on from; name that one with --prompt")
    folder = find_model(recipe, args.root, args.model, take)
    device = find_device(args.device or recipe["versions"]["device"])
    torch.set_num_threads(recipe["versions"]["threads"])
    for difference in differences(recipe["versions"], device):
        print(f"sample: {difference}; the take may differ")
    args = replace(args, **(flags | {"prompt": prompt}))
    (path,) = write_takes(args, folder, device, recipe, recipe["take"])
    is_same = path.read_bytes() == take.read_bytes()
    print(f"sample: {path} is " + (f"{take}, byte for byte" if is_same else f"not the same as {take}"))


# --- wishes ----------------------------------------------------------------------------------------------

ALL_KEYS = range(128)


def drawing(args: Args) -> "Drawing":
    from midigpt.generate import Drawing

    return Drawing(args.temperature, args.top_k, args.top_p, args.min_p, args.seed or 0)


def wanted_length(args: Args) -> "Length":
    from midigpt.generate import Length

    length = Length(args.notes, args.bars, args.seconds)
    return Length(bars=CONTINUED_BARS) if args.prompt and not args.ending and not length.is_given else length


def wishes(args: Args) -> dict[str, str]:
    """The wished fields of the header. Raises UserError for a value that no header has."""
    from midigpt.language import METERS, nearest_tempo

    fields = {}
    if args.program is not None:
        if args.program != "d" and not (args.program.isdecimal() and int(args.program) < 128):
            raise UserError(f"--program {args.program} is neither 0..127 nor d")
        fields["program"] = args.program if args.program == "d" else str(int(args.program))
    if args.tempo is not None:
        if not 20 <= args.tempo <= 320:
            raise UserError(f"--tempo {args.tempo} is not in 20..320")
        fields["tempo"] = str(nearest_tempo(args.tempo))
    if args.meter is not None:
        if args.meter not in METERS:
            raise UserError(f"--meter {args.meter} is none of {METERS[0]} .. {METERS[-1]}, as 3/4 is")
        fields["meter"] = args.meter
    if args.key is not None:
        fields["key"] = str(pitch(args.key, "--key"))
    return fields


def key_range(args: Args) -> range | None:
    """From the lowest to the highest note wished. Raises UserError where that is none, or without the first note."""
    if args.keys is None:
        return None
    lowest, _, highest = args.keys.partition("-")
    keys = range(pitch(lowest, "--keys"), pitch(highest, "--keys") + 1)
    if len(keys) < 12:
        raise UserError(f"--keys {args.keys} must hold an octave at least, lowest note first: C2-C6")
    if args.key is not None and pitch(args.key, "--key") not in keys:
        raise UserError(f"--key {args.key} is outside --keys {args.keys}")
    return keys


def pitch(text: str, flag: str) -> int:
    """C4, F#3, Bb5 or 60 as a MIDI number; C4 is middle C, 60."""
    match = re.fullmatch(r"([A-Ga-g])([#b]?)(-?\d)", text)
    number = -1
    if text.isdecimal():
        number = int(text)
    elif match:
        step, sign, octave = match.groups()
        number = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}[step.lower()]
        number += {"#": 1, "b": -1, "": 0}[sign] + 12 * (int(octave) + 1)
    if not 0 <= number < 128:
        raise UserError(f"{flag} {text} is no note such as C4, F#3, Bb5 or 60, in 0..127")
    return number


# --- files -----------------------------------------------------------------------------------------------


def save(write: Write, texts: list[str], out: Path) -> Path:
    """Write to the first free take-N.mid of the folder."""
    out.mkdir(parents=True, exist_ok=True)
    path = next(path for path in free_names(out) if reserve(path))
    try:
        write(path, texts)
    except BaseException:
        path.unlink()  # the empty file that held the name
        raise
    return path


def free_names(out: Path) -> Iterator[Path]:
    return (path for path in (out / f"take-{number:04d}.mid" for number in count(1)) if not path.exists())


def reserve(path: Path) -> bool:
    """Whether the name is ours now and not that of another run."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def describe(args: Args, path: Path, cut: int | None) -> str:
    """Draw, render and play a take as asked; what there is to say of it."""
    from midigpt.prompt import load_prompt
    from midigpt.show import draw_piano_roll
    from midigpt.sound import play, render_wav
    from midigpt.tones import seconds_at

    take = load_prompt(path)
    (seconds,) = seconds_at(path, take.score, np.array([take.score.end]))
    said = [f"{take.score.notes} notes, {seconds:.0f} s"]
    if cut is not None:
        new = sum(int((track.onset >= cut).sum()) for track in take.score.tracks)
        said.append(f"{new} of the notes new, from bar {take.bar_at(cut)} on")
    said.append(copied(args, take.score, cut or 0))
    if args.png:
        bars = [take.bar_start(bar) for bar in range(1, take.bars + 2)]
        draw_piano_roll(take.score, path.with_suffix(".png"), path.name, cut, bars)
    if args.wav:
        said.append(f"sound by {render_wav(path, path.with_suffix('.wav'))}")
    if args.play:
        said.append(f"played by {play(path.with_suffix('.wav') if args.wav else path)}")
    return "; ".join(said)


def copied(args: Args, score: "Score", cut: int) -> str:
    """The longest passage from a tick on that stands in the working folder's training songs, in any key."""
    from midigpt.copies import open_copies
    from midigpt.language import encode

    try:
        index = open_copies(args.root)
    except UserError as error:
        return f"not compared with training songs, as {error}"
    tracks = tuple(track.from_tick(cut) for track in score.tracks)
    found = [index.longest(document.text) for document in encode(replace(score, tracks=tracks))]
    copy = max(filter(None, found), key=lambda copy: copy.notes, default=None)
    if copy is None:
        return "copies nothing"
    where = f"{copy.song}, track {copy.track}, bar {copy.bar}"
    return f"copies {copy.notes} notes at most ({copy.seconds:.1f} s), of {where}"


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
