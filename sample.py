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

from midigpt.files import UserError, counted, parse_arguments, write_bytes
from midigpt.general_midi import PROGRAMS, instrument, read_instrument
from midigpt.keys import NOTE, read_note, read_scale, to_scale

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from midigpt.copies import CopyIndex
    from midigpt.generate import Drawing, Length
    from midigpt.language import Language
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
    """A MIDI file to go on from; without it the model begins by itself: a song, or in track layout one part."""
    at: int | None = None
    """The bar of the prompt where the continuation begins, counted from 1 (default: the beat after its end)."""
    prompt_bars: int | None = None
    """How many bars before that the model reads, or more, if what goes on rests in them (default: what fits)."""
    track: int | None = None
    """The part of the prompt that goes on, counted from 1 (default: all that play in what the model reads)."""
    takes: int = 1
    """How many to write."""
    bars: float | None = None
    """New bars a take (behind a prompt 8, if no other length is asked)."""
    seconds: float | None = None
    """New seconds a take."""
    notes: int | None = None
    """New notes a take, and what starts with the last (in track layout behind a prompt: of its busiest part)."""
    ending: bool = False
    """Let the model end its takes (without a prompt the default; at most 1000 notes, counted as for --notes)."""
    temperature: float = 1.0
    """Below 1 plays safer, above 1 wilder; 0 always takes the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Draw from tokens with at least this share of the likeliest one's probability."""
    seed: int | None = None
    """Take i is drawn with seed + i; without it another seed each time, which is named."""
    program: str | None = None
    """Instrument without a prompt: a General MIDI program 0..127 or its name, or drums. In song layout all that may
    play, such as 0,0,cello,drums, each as often as there may be parts of it (default: those of a training song, which
    one depends on the seed)."""
    tempo: float | None = None
    """Beats per minute without a prompt, 20..320."""
    meter: str | None = None
    """Time signature without a prompt, such as 3/4."""
    key: str | None = None
    """Key without a prompt: D, Bb, or F#m, which is the scale of A; each take is moved there."""
    keys: str | None = None
    """Lowest and highest note of what is not drums, such as C2-C6 (default: a piano's A0-C8; behind a prompt each
    part's range and an octave around it)."""
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
    from midigpt.checkpoint import best_checkpoint
    from midigpt.devices import find_device

    folder = args.model or best_checkpoint(args.root, args.run)
    if args.seed is None:
        args = replace(args, seed=random.randrange(2**31))
    files = write_takes(args, folder, find_device(args.device))
    print(f"sample: {counted(len(files), 'take')} by {folder} in {files[0].parent}")


def check(args: Args) -> None:
    """Raise UserError for wishes that can't be met."""
    for name in ("takes", "notes", "prompt_bars", "track"):
        if (number := getattr(args, name)) is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')} {number} must be at least 1")
    for name in ("bars", "seconds"):
        if (number := getattr(args, name)) is not None and not 0 < number <= 10_000:
            raise UserError(f"--{name} {number} must be above 0 and up to 10000")
    if [args.bars, args.seconds, args.notes, args.ending or None].count(None) < 3:
        raise UserError("--bars, --seconds, --notes and --ending each say how long a take is; give one of them")
    if args.prompt and [args.program, args.tempo, args.meter, args.key].count(None) < 4:
        raise UserError("--program, --tempo, --meter and --key are the prompt's own where there is a --prompt")
    if not args.prompt and [args.at, args.prompt_bars, args.track].count(None) < 3:
        raise UserError("--at, --prompt-bars and --track say something about a --prompt; name one")
    if args.again:
        allowed = NOT_IN_RECIPE | {"prompt"}
        given = [n for n, value in asdict(args).items() if n not in allowed and value != getattr(Args(), n)]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} is the recipe's with --again; leave it out")
    if set(programs(args)) == {"d"} and (args.key or args.keys):
        raise UserError(f"--program {args.program} is drums, which have no --key and no --keys")
    wishes(args)
    keys = key_range(args)
    if args.key is not None:
        read_scale(args.key, "--key")
        if keys and len(keys) < 24:
            raise UserError(f"--keys {args.keys} must hold two octaves for a --key: takes are moved to it")
    drawing(args)


def write_takes(
    args: Args, folder: Path, device: str, recipe: dict[str, Any] | None = None, only: int | None = None
) -> list[Path]:
    """Write all takes that are asked for, or the one of that number alone; with a recipe, or one made here."""
    from midigpt.checkpoint import load_checkpoint
    from midigpt.copies import open_copies
    from midigpt.grammar import NOTES
    from midigpt.language import read_language
    from midigpt.prompt import load_prompt
    from midigpt.takes import fingerprint, versions, write_recipe
    from midigpt.tokenizer import file_sha256

    prompt = load_prompt(args.prompt) if args.prompt else None
    model, tokenizer, run = load_checkpoint(folder, device)
    language = read_language(run["language"])
    if recipe is None:
        flags = {name: value for name, value in asdict(args).items() if name not in NOT_IN_RECIPE}
        flags["prompt"] = str(args.prompt) if prompt else None
        recipe = {"model": fingerprint(folder), "by": str(folder), "flags": flags}
        recipe |= {"prompt_sha256": file_sha256(prompt.path)} if prompt else {}
    recipe |= {"versions": versions(device)}
    flag = "--keys" if args.keys else "--program" if args.program and language.is_song else ""
    if flag and language.encoding not in NOTES:
        raise UserError(f"{flag} can't be kept to: lines of the encoding {language.encoding} are written freely")
    cut = prompt.cut(args.at) if prompt else 0
    if prompt:
        compose = continue_prompt(args, model, tokenizer, language, prompt, cut, run)
    else:
        compose = begin(args, model, tokenizer, language, run)
    try:
        index, unknown = open_copies(args.root), ""
    except UserError as error:
        index, unknown = None, f"not compared with training songs, as {error}"
    files = []
    for number, write in enumerate(compose):
        if only in (None, number):
            files.append(save(write, [write_recipe(recipe | {"take": number})], args.out or args.root / "out"))
            take = load_prompt(files[-1])
            said = [*describe(take, cut), copied(index, take.score, cut) if index else unknown]
            said += show(args, take, cut if prompt else None)
            print(f"{files[-1]}: {'; '.join(said)}; seed {drawing(args).seed + number}", flush=True)
    return files


# Writes a take, with text events in it, to a file.
Write = Callable[[Path, list[str]], None]


def begin(
    args: Args, model: "GPT", tokenizer: "Tokenizer", language: "Language", run: dict[str, Any]
) -> Iterator[Write]:
    """Pieces from nothing: a document each, for the programs that are wished, or those of a training song."""
    from midigpt.automaton import PIANO
    from midigpt.checkpoint import heard_programs, training_band
    from midigpt.generate import compose
    from midigpt.header import read_header, split_header
    from midigpt.language import decode
    from midigpt.midi import write_midi
    from midigpt.normal import program_marks
    from midigpt.takes import ending_at

    length, wished, named = wanted_length(args), wishes(args), programs(args)
    say_unheard(heard_programs(run), named)
    if named and not language.is_song:
        if len(named) > 1:
            raise UserError(f"--program {args.program}: what this model writes has one part, so name one program")
        wished, named = {"program": named[0], **wished}, []
    keys = key_range(args) or PIANO
    if args.key is not None:  # half an octave of room for moving
        keys = range(keys[0] + 6, keys[-1] - 5)
    marks = program_marks(named) or training_band(run, drawing(args).seed)
    texts = compose(model, tokenizer, language, drawing(args), wished, length, args.takes, keys, marks=marks)
    if (lost := args.takes - len(texts)) == args.takes:
        raise UserError("nothing that the model writes can be read; train it longer")
    if lost:
        print(f"sample: {counted(lost, 'take')} can't be read, and so left out")
    for text in texts:
        if not length.is_given:
            say_endless(language.module.count_notes(split_header(text)[1]))
        score = ending_at(decode([text], language), length.in_steps(read_header(text)))
        if args.key is not None:
            if all(track.is_drum for track in score.tracks):
                print(f"sample: a take is drums alone, of which --key {args.key} says nothing")
            score = to_scale(score, read_scale(args.key, "--key"))
        yield partial(write_midi, score)


def continue_prompt(
    args: Args,
    model: "GPT",
    tokenizer: "Tokenizer",
    language: "Language",
    prompt: "Prompt",
    cut: int,
    run: dict[str, Any],
) -> Iterator[Write]:
    """The prompt up to the cut, and behind it its parts, or one of them, going on."""
    from midigpt.checkpoint import heard_programs
    from midigpt.header import program_text
    from midigpt.splice import continue_midi
    from midigpt.takes import continuations, read_prompt

    only = args.track and args.track - 1
    readings = read_prompt(prompt, cut, language, args.prompt_bars, key_range(args), only)
    playing = [prompt.score.tracks[part.track] for reading in readings for part in reading.parts.values()]
    say_unheard(heard_programs(run), [program_text(track.program, track.is_drum) for track in playing])
    if all(track.is_drum for track in playing):
        print(f"sample: what goes on of {prompt.path} is drums alone, and so is the continuation")
    length = wanted_length(args)
    takes = continuations(model, tokenizer, language, drawing(args), prompt, cut, readings, length, args.takes)
    for tracks in takes:
        if not length.is_given:
            new = [len(track) for track in tracks.values()]
            say_endless(sum(new) if language.is_song else max(new, default=0))

        def write(path: Path, texts: list[str], tracks: "dict[int, Track]" = tracks) -> None:
            write_bytes(path, continue_midi(prompt, cut, tracks, texts))

        yield write


def make_again(args: Args, take: Path) -> None:
    """Write a take once more by its recipe, and say whether it came out the same."""
    import torch

    from midigpt.devices import find_device
    from midigpt.midi import read_midi
    from midigpt.splice import read_texts
    from midigpt.takes import differences, find_model, read_recipe
    from midigpt.tokenizer import file_sha256

    recipe = read_recipe(read_texts(take), take)
    flags = recipe["flags"]
    prompt = args.prompt or (flags["prompt"] and Path(flags["prompt"]))
    if prompt and not prompt.exists():
        raise UserError(f"{prompt}, which {take} goes on from, is not there; name it with --prompt")
    if prompt and file_sha256(prompt) != recipe["prompt_sha256"]:
        raise UserError(f"{prompt} is not the file that {take} goes on from; name that one with --prompt")
    folder = find_model(recipe, args.root, args.model, take)
    device = find_device(args.device or recipe["versions"]["device"])
    torch.set_num_threads(recipe["versions"]["threads"])
    for difference in differences(recipe["versions"], device):
        print(f"sample: {difference}; the take may differ")
    if unknown := flags.keys() - asdict(args).keys():
        raise UserError(f"{take} was made by another version of midigpt: this one has no --{min(unknown)}")
    args = replace(args, **(flags | {"prompt": prompt}))
    (path,) = write_takes(args, folder, device, recipe, recipe["take"])
    if path.read_bytes() == take.read_bytes():
        said = f"is {take}, byte for byte"
    elif read_midi(path) == read_midi(take):
        said = f"has the notes of {take}; what else is in the files differs"
    else:
        said = f"is not the same as {take}"
    print(f"sample: {path} {said}")


# --- wishes ----------------------------------------------------------------------------------------------


def drawing(args: Args) -> "Drawing":
    from midigpt.generate import Drawing

    return Drawing(args.temperature, args.top_k, args.top_p, args.min_p, args.seed or 0)


def wanted_length(args: Args) -> "Length":
    from midigpt.generate import Length

    length = Length(args.notes, args.bars, args.seconds)
    return Length(bars=CONTINUED_BARS) if args.prompt and not args.ending and not length.is_given else length


def wishes(args: Args) -> dict[str, str]:
    """The wished fields of the header, but for the program. Raises UserError for a value that no header has."""
    from midigpt.header import METERS, nearest_tempo

    fields = {}
    if args.tempo is not None:
        if not 20 <= args.tempo <= 320:
            raise UserError(f"--tempo {args.tempo} is not in 20..320")
        fields["tempo"] = str(nearest_tempo(args.tempo))
    if args.meter is not None:
        if args.meter not in METERS:
            raise UserError(f"--meter {args.meter} is none of {METERS[0]} .. {METERS[-1]}, as 3/4 is")
        fields["meter"] = args.meter
    return fields


def programs(args: Args) -> list[str]:
    """The wished programs, "d" for drums. Raises UserError for what is none."""
    named = [] if args.program is None else [name.strip() for name in args.program.lower().split(",")]
    found = []
    for name in named:
        program = read_instrument(name)
        if program is None:
            like = [known for known in ("drums", *PROGRAMS) if len(name) > 2 and name in known][:8]
            advice = f"do you mean {' or '.join(like)}?" if like else "give 0..127, a General MIDI name, or drums"
            raise UserError(f"--program {args.program}: {name!r} is no instrument; {advice}")
        found.append(program)
    return found


def key_range(args: Args) -> range | None:
    """From the lowest to the highest note wished. Raises UserError where that is none."""
    if args.keys is None:
        return None
    match = re.fullmatch(rf"({NOTE})-({NOTE})", args.keys)
    if not match:
        raise UserError(f"--keys {args.keys} is not two notes such as C2-C6")
    keys = range(read_note(match[1], "--keys"), read_note(match[match.lastindex or 0], "--keys") + 1)
    if len(keys) < 12:
        raise UserError(f"--keys {args.keys} must hold an octave at least, lowest note first: C2-C6")
    return keys


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


def describe(take: "Prompt", cut: int) -> list[str]:
    """What a take is; from the tick `cut` on, if that is not its beginning, it is new."""
    (seconds,) = take.song.seconds_at(np.array([take.score.end]))
    parts = f" in {len(take.score.tracks)} parts" if len(take.score.tracks) > 1 else ""
    said = [f"{counted(take.score.notes, 'note')}{parts}, {seconds:.0f} s"]
    if cut:
        new = sum(int((track.onset >= cut).sum()) for track in take.score.tracks)
        bar = take.bar_at(cut)
        beat = (cut - take.bar_start(bar)) / take.score.ticks_per_beat + 1
        said.append(f"{new} of them new, from bar {bar}{f', beat {beat:g}' if beat > 1 else ''} on")
    return said


def copied(index: "CopyIndex", score: "Score", cut: int) -> str:
    """The longest passage of a part from a tick on that stands in the training songs, in any key."""
    tracks = tuple(track.select(track.onset >= cut) for track in score.tracks)
    copy = index.longest_in(replace(score, tracks=tracks))
    if copy is None:
        return "copies nothing"
    where = f"{copy.song}, part {copy.track}, bar {copy.bar}"
    return f"copies {counted(copy.notes, 'note')} at most ({copy.seconds:.1f} s), of {where}"


def say_unheard(heard: dict[str, int] | None, programs: list[str]) -> None:
    """Say which of the instruments no training song has; `heard` is in how many songs each plays, if that is known."""
    if heard is None:
        return
    if unheard := [program for program in dict.fromkeys(programs) if program not in heard]:
        names = " or ".join(map(instrument, unheard))
        often = sorted(heard, key=lambda program: -heard[program])[:8]
        print(
            f"sample: no training song has {names}, so the model does not know how to play that;"
            f" it has learned most of {', '.join(map(instrument, often))}"
        )


def say_endless(notes: int) -> None:
    """Say so where a take of so many notes that might have ended has not."""
    from midigpt.generate import MAX_NOTES

    if notes >= MAX_NOTES:
        print(f"sample: a take has not come to an end in {MAX_NOTES} notes, and stops there")


def show(args: Args, take: "Prompt", cut: int | None) -> list[str]:
    """Draw, render and play a take as asked; by what."""
    from midigpt.show import draw_piano_roll
    from midigpt.sound import play, render_wav

    path, wav = take.path, take.path.with_suffix(".wav")
    said = []
    if args.png:
        bars = [take.bar_start(bar) for bar in range(1, take.bars + 2)]
        draw_piano_roll(take.score, path.with_suffix(".png"), path.name, cut, bars)
    if args.wav:
        said.append(f"sound by {render_wav(path, wav)}")
    if args.play:
        try:
            said.append(f"played by {play(wav if args.wav else path)}")
        except UserError as error:  # the takes to come are written all the same
            said.append(f"not played: {error}")
    return said


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
