"""Judge a trained model: write takes and compare them with held-out pieces, beside a ceiling and a floor.

The figures are printed; train/runs/NAME/evaluation/ gets them as evaluation.html with pictures and as
evaluation.json, and the takes as .mid. Examples:
  python scripts/evaluate.py --takes 200
  python scripts/evaluate.py --run small --temperature 0.9 --notes 64
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midigpt.files import UserError, make, parse_arguments

if TYPE_CHECKING:
    from midigpt.judge import Group, Judgement
    from midigpt.score import Score


BANDS = 10  # training songs whose instruments the takes of songs have
WIDTHS = (12, 6, 14, 6, 13, 6, 9, 10, 10)  # of the table's columns


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    run: str = "default"
    """The run whose best model is judged."""
    model: Path | None = None
    """Any checkpoint folder, instead of a run's."""
    takes: int = 100
    """How many to write, 10 at least."""
    notes: int | None = None
    """Of each take and each real piece, of which the beginning counts; by itself what three of four held-out
    documents have, 512 at most (128 in track layout)."""
    temperature: float = 1.0
    """Below 1 plays safer, above 1 wilder; 1 is the model as it is."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Draw from tokens with at least this share of the likeliest one's probability."""
    seed: int = 0
    """The same seed gives the same takes and figures."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps (default: the fastest there is)."""
    out: Path | None = None
    """Folder for what is written; by itself evaluation/ in the run's folder, or beside the --model."""


def main(args: Args) -> None:
    check(args)
    from midigpt.checkpoint import best_checkpoint
    from midigpt.files import write_json, write_text
    from midigpt.judge import as_json
    from midigpt.judge_page import render

    start = time.perf_counter()
    folder = args.model or best_checkpoint(args.root, args.run)
    judgement, takes = evaluate(args, folder)
    out = args.out or folder.parent / "evaluation"
    save_takes(takes, out / "takes")
    write_json(out / "evaluation.json", as_json(judgement))
    write_text(out / "evaluation.html", render(judgement))
    print("\n".join(report(judgement)))
    print(f"evaluate: {out / 'evaluation.html'}; {time.perf_counter() - start:.0f} s")


def check(args: Args) -> None:
    """Raise UserError for wishes that can't be met."""
    if args.takes < 10:
        raise UserError(f"--takes {args.takes} are too few to compare; 10 is the least, 100 is usual")
    if args.notes is not None and args.notes < 16:
        raise UserError(f"--notes {args.notes} are too few to measure; 16 is the least")
    if not args.temperature:
        raise UserError("--temperature 0 writes one take over and over; above 0 there is something to compare")


def evaluate(args: Args, folder: Path) -> "tuple[Judgement, list[Score]]":
    """Let the model read what is held out, write takes, and compare; gives the valid takes, too."""
    from midigpt import index
    from midigpt.checkpoint import load_checkpoint, training_band
    from midigpt.devices import autocast, find_device
    from midigpt.documents import Split
    from midigpt.evaluate import Evaluation, unigram_bits_per_note
    from midigpt.generate import Drawing, Length, compose
    from midigpt.judge import Judgement, find_copies, is_valid, judge, read_side, usual_notes
    from midigpt.language import decode, read_language
    from midigpt.sides import load_side
    from midigpt.tokenizer import file_sha256

    device = find_device(args.device)
    model, tokenizer, run = load_checkpoint(folder, device)
    language = read_language(run["language"])
    (train, meta), (val, _) = (load_side(args.root, name) for name in ("train", "val"))
    if meta["tokenizer"] != file_sha256(folder / "tokenizer.json"):
        raise UserError(
            f"{args.root / 'train'} has tokens of another tokenizer than {folder}; make them with the model's:"
            f' {make(args.root, "train-bin")} ARGS="--init-from {folder}"'
        )
    if (written := index.language(args.root)) != language:
        again = make(args.root, "dataset") + f' ARGS="--layout {language.layout} --encoding {language.encoding}"'
        raise UserError(f"{args.root / 'data'} is in another language ({written}) than {folder}; make it anew: {again}")
    split = Split.of(meta)
    held_out, training = (read_side(args.root, language, split, is_val, args.seed) for is_val in (True, False))
    notes = args.notes or usual_notes(held_out, language.layout)
    bits = Evaluation(val, tokenizer, model.config.block_size)(model, device, autocast(device)).bits_per_note

    drawing = Drawing(args.temperature, args.top_k, args.top_p, args.min_p, args.seed)
    print(f"evaluate: {bits:.3f} bits per note; writing {args.takes} takes of {notes} notes", flush=True)
    at_once = -(-args.takes // BANDS) if language.is_song else args.takes
    takes: list[str] = []
    for first in range(0, args.takes, at_once):
        own, some = replace(drawing, seed=args.seed + first), min(at_once, args.takes - first)
        marks = training_band(run, args.seed + first)
        takes += compose(model, tokenizer, language, own, length=Length(notes=notes), takes=some, marks=marks)
    valid = [text for text in takes if is_valid(text, language)]
    groups, remarks = judge(args.root, valid, held_out, training, notes, args.seed, language)
    if _music(run["data"]) != _music(meta):
        remarks.append("the model was trained on other files, or another split: it may know the held-out songs")
    try:
        copies = find_copies(args.root, groups)
    except UserError as error:
        copies = {}
        remarks.append(f"copied passages were not looked for: {error}")
    judgement = Judgement(
        model=str(folder),
        drawing=asdict(drawing),
        notes=notes,
        takes=args.takes,
        valid=len(valid),
        bits_per_note=bits,
        unigram_bits_per_note=unigram_bits_per_note(train, val, model.config.vocab_size),
        songs=meta["val"]["songs"],
        documents=meta["val"]["documents"],
        groups=groups,
        copies=copies,
        remarks=remarks,
    )
    return judgement, [decode([text], language) for text in valid]


def _music(meta: dict[str, Any]) -> list[Any]:
    """Which music was trained on and held out, by what meta.json says."""
    sides = [meta[side][what] for side in ("train", "val") for what in ("songs", "documents", "notes")]
    return [meta["val_fraction"], meta["seed"], *sides]


def save_takes(takes: "list[Score]", folder: Path) -> None:
    """Write the takes as .mid in place of those of an earlier evaluation."""
    from midigpt.judge import take_names
    from midigpt.midi import write_midi

    names = [f"{name}.mid" for name in take_names(len(takes))]
    for name, take in zip(names, takes, strict=True):
        write_midi(take, folder / name)
    for old in folder.glob("take-*.mid"):
        if old.name not in names:
            old.unlink()


def report(judgement: "Judgement") -> list[str]:
    """What is printed."""
    from midigpt.judge_page import basis, copies_lines, headline

    lines = [f"  {figure}  {what}" for figure, what in headline(judgement)] + [f"  {basis(judgement)}"]
    for group in judgement.groups:
        lines += table(group)
    if judgement.copies:
        lines.append("  longest passage that stands in the training set:")
        lines += [f"    {line}" for line in copies_lines(judgement.copies)]
    return lines + [f"  {remark}" for remark in judgement.remarks]


def table(group: "Group") -> list[str]:
    """A group's features for the terminal: overlaps with their errors, divergences, means."""
    from midigpt.judge import REAL, SHUFFLED, TAKES
    from midigpt.judge_page import figure_and_error, means

    def line(name: str, cells: list[str]) -> str:
        return f"  {name:<20}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, WIDTHS, strict=True)).rstrip()

    lines = [
        "  Overlap with the held-out pieces ± standard error, KL divergence in bits; means",
        line(group.name, ["takes", "KL", "real/real", "KL", "shuffled", "KL", "takes", "training", "held out"]),
    ]
    for row in group.rows:
        cells = []
        for found in (row.likeness[of] for of in (TAKES, REAL, SHUFFLED)):
            cells += [figure_and_error(found.overlap, found.overlap_error), f"{found.divergence:.2f}"]
        lines.append(line(row.feature.name, cells + means(row)))
    overlaps = [part for of in (TAKES, REAL, SHUFFLED) for part in (f"{group.mean_overlap(of):.2f}      ", "")]
    return [*lines, line("mean overlap", [*overlaps, "", "", ""])]


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
