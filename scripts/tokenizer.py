"""Learn the tokenizer (byte-pair encoding) from the training songs; writes cache/tokenizer.json.

Example: python scripts/tokenizer.py --vocab-size 2048
"""

import time
from dataclasses import dataclass
from pathlib import Path

from midigpt.documents import Split
from midigpt.files import locked, parse_arguments
from midigpt.tokenizer import learn_tokenizer, tokenizer_path


@dataclass(frozen=True)
class Args:
    root: Path = Path()
    """The working folder."""
    vocab_size: int = 1024
    """Tokens in the vocabulary."""
    val_fraction: float = 0.05
    """Share of the songs held out for validation; the tokenizer does not see them."""
    seed: int = 0
    """Chooses which songs are held out."""


def main(args: Args) -> None:
    start = time.perf_counter()
    with locked(args.root):
        tokenizer, documents = learn_tokenizer(args.root, args.vocab_size, Split(args.val_fraction, args.seed))
    size = tokenizer.get_vocab_size()
    if size < args.vocab_size:
        print(f"  {size} is the largest vocabulary these documents allow: no other two tokens meet twice")
    print(
        f"tokenizer: {size} tokens learned from {documents} documents of the training songs,"
        f" in {tokenizer_path(args.root)}; {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
