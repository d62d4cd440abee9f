"""Pack the documents as tokens for training: train/train.bin and train/val.bin, split by song.

Beside them goes an index of the training songs, train/copies.*, in which takes are looked up.

Example: python scripts/train_bin.py --keys 1
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from midigpt.documents import Split
from midigpt.files import UserError, locked, parse_arguments
from midigpt.train_data import learned_split, make_train_bin


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    val_fraction: float | None = None
    """Share of the songs held out for validation (default: as given to the tokenizer; with --init-from 0.05)."""
    seed: int | None = None
    """Chooses which songs are held out (default: as given to the tokenizer; with --init-from 0)."""
    init_from: Path | None = None
    """A checkpoint folder whose tokenizer to use, to train on from it."""
    keys: int | None = None
    """In how many keys each training piece is written, 1..12 (default: 12, or fewer of very many notes)."""
    workers: int = os.cpu_count() or 1
    """Worker processes; each takes about 250 MB."""


def main(args: Args) -> None:
    if args.workers < 1:
        raise UserError("--workers must be at least 1")
    start = time.perf_counter()
    with locked(args.root):
        usual = Split() if args.init_from else learned_split(args.root)
        split = Split(
            usual.val_fraction if args.val_fraction is None else args.val_fraction,
            usual.seed if args.seed is None else args.seed,
        )
        train, val = make_train_bin(args.root, split, args.workers, args.init_from, args.keys)
    if not val.songs:
        print(
            "  no song is held out, so training can't tell how well it does;"
            " give tokenizer and train-bin a larger --val-fraction or another --seed"
        )
    in_keys = f", each in {train.keys} keys," if train.keys > 1 else ""
    print(
        f"train-bin: {train.songs} songs{in_keys} to {train.tokens} training tokens, {val.songs} songs to {val.tokens}"
        f" validation tokens; {train.tokens_per_note:.2f} tokens per note;"
        f" {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
