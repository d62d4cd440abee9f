"""Write takes with a trained model: new music, or a continuation of your own MIDI file.

Examples:
  python sample.py --takes 5
  python sample.py --prompt song.mid --notes 200 --temperature 0.9 --seed 7
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from midigpt.files import UserError, make, parse_arguments

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from midigpt.generate import Drawing
    from midigpt.model import GPT
    from midigpt.score import Score


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    run: str = "default"
    """The run whose best model writes."""
    model: Path | None = None
    """Any checkpoint folder, instead of a run's."""
    prompt: Path | None = None
    """A MIDI file to go on from, all its parts; without it the model begins by itself, one part."""
    takes: int = 1
    """How many to write."""
    notes: int | None = None
    """New notes a take (of a prompt: of its busiest part); without it the model decides, up to 1000."""
    temperature: float = 1.0
    """Below 1 plays safer, above 1 wilder; 0 always takes the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    seed: int | None = None
    """Take i is drawn with seed + i; without it another seed each time, which is named."""
    program: str | None = None
    """Instrument without a prompt: a General MIDI program 0..127, or d for drums."""
    tempo: int | None = None
    """Beats per minute without a prompt, 20..320."""
    png: bool = False
    """Draw a piano roll beside each take."""
    wav: bool = False
    """Render each take as sound beside it, by fluidsynth or the best there is instead."""
    play: bool = False
    """Play each take; Ctrl-C stops it."""
    out: Path | None = None
    """Folder for the takes (default: out/ of the working folder); nothing in it is overwritten."""


def main(args: Args) -> None:
    check(args)
    from tqdm import tqdm

    from midigpt.checkpoint import find_checkpoint, load_checkpoint
    from midigpt.devices import pick_device
    from midigpt.generate import Drawing
    from midigpt.language import normalise
    from midigpt.midi import load_midi
    from midigpt.show import draw_piano_roll
    from midigpt.sound import play, render_wav

    runs = args.root / "train" / "runs" / args.run
    folder = args.model or find_checkpoint(runs / "best") or find_checkpoint(runs / "latest")
    if folder is None:
        raise UserError(f"{runs} holds no checkpoint yet; make one with: {make(args.root, 'train')}")
    prompt = normalise(load_midi(args.prompt)) if args.prompt else None
    model, tokenizer, _ = load_checkpoint(folder, pick_device())
    seed = random.randrange(2**31) if args.seed is None else args.seed
    out = args.out or args.root / "out"
    for take in tqdm(range(args.takes), desc="sample", unit="take", disable=None):
        drawing = Drawing(args.temperature, args.top_k, seed + take)
        if prompt:
            score = continue_prompt(model, tokenizer, drawing, prompt, args.notes)
        else:
            score = begin(model, tokenizer, drawing, args)
        path = save(score, out)
        if args.png:
            draw_piano_roll(score, path.with_suffix(".png"), path.name)
        if args.wav:
            tqdm.write(f"  sound by {render_wav(path, path.with_suffix('.wav'))}")
        seconds = score.end / score.ticks_per_beat * 60 / score.tempo_bpm
        tqdm.write(f"{path}: {score.notes} notes, {seconds:.0f} s, seed {seed + take}")
        if args.play:
            tqdm.write(f"  played by {play(path.with_suffix('.wav') if args.wav else path)}")
    print(f"sample: {args.takes} takes by {folder} in {out}")


def check(args: Args) -> None:
    """Raise UserError for wishes that can't be met."""
    if args.takes < 1 or (args.notes is not None and args.notes < 1):
        raise UserError("--takes and --notes must be at least 1")
    if not 0 <= args.temperature < 100 or (args.top_k is not None and args.top_k < 1):
        raise UserError("--temperature must be in 0..100, --top-k at least 1")
    if args.seed is not None and not 0 <= args.seed < 2**62:
        raise UserError(f"--seed {args.seed} is not in 0..2^62")
    if args.prompt and (args.program is not None or args.tempo is not None):
        raise UserError("--program and --tempo are the prompt's own where there is a --prompt; leave them out")
    if args.program is not None and args.program != "d" and not (args.program.isdecimal() and int(args.program) < 128):
        raise UserError(f"--program {args.program} is neither 0..127 nor d")
    if args.tempo is not None and not 20 <= args.tempo <= 320:
        raise UserError(f"--tempo {args.tempo} is not in 20..320")


def begin(model: "GPT", tokenizer: "Tokenizer", drawing: "Drawing", args: Args) -> "Score":
    """A piece from nothing: one part, as a document holds one."""
    from midigpt.generate import compose
    from midigpt.language import nearest_tempo

    wishes = {}
    if args.program is not None:
        wishes["program"] = args.program if args.program == "d" else str(int(args.program))
    if args.tempo is not None:
        wishes["tempo"] = str(nearest_tempo(args.tempo))
    return compose(model, tokenizer, drawing, wishes, args.notes)


def continue_prompt(
    model: "GPT", tokenizer: "Tokenizer", drawing: "Drawing", prompt: "Score", notes: int | None
) -> "Score":
    """The prompt and behind it, from the next beat on, all its parts going on.

    The busiest part goes first and sets how far the others go.
    """
    from midigpt.generate import Writer, write_lines
    from midigpt.language import decode, encode, keep_fields, read_header
    from midigpt.tokenizer import START_ID

    cut = -(-prompt.end // prompt.ticks_per_beat) * prompt.ticks_per_beat
    documents = encode(prompt, end=cut)
    texts = {}
    until = None
    for number in sorted(range(len(documents)), key=lambda n: -documents[n].notes):
        document = documents[number]
        writer = Writer(model, tokenizer, drawing)
        unkeyed = keep_fields(document.header, lambda name: name != "key")  # which says nothing of the lines
        head = [START_ID, *tokenizer.encode(unkeyed).ids]
        writer.head = len(head)
        writer.read(head + tokenizer.encode(document.body).ids)
        header = read_header(document.header)
        lines = write_lines(writer, header, document.body, notes=notes if until is None else None, until=until)
        until = lines.end if until is None else until
        texts[number] = document.text + lines.text
    return decode(texts[number] for number in range(len(documents)))


def save(score: "Score", out: Path) -> Path:
    """Write to the first free take-N.mid of the folder."""
    from midigpt.midi import write_midi

    out.mkdir(parents=True, exist_ok=True)
    path = next(path for path in free_names(out) if reserve(path))
    try:
        write_midi(score, path)
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


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
