"""Documents <-> tokens: byte-pair encoding in which no token crosses an event."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from midigpt.documents import Split, document_paths, read_document
from midigpt.files import UserError, make, read_json, replacing, write_json
from midigpt.index import songs
from midigpt.language import ALPHABET, LANGUAGE

START = "<|start|>"  # the one special token: a document begins, and so the one before it has ended
START_ID = 0
MAX_VOCAB_SIZE = 1 << 16  # train.bin holds two bytes a token
SAMPLE_LINES = 2_000_000  # BPE learns from at most about this many lines

# A line is one piece; so is each field of the header (with the space before it), its "#" and its newline.
_PIECES = r" [^ \n]*|[^ \n]+\n?|\n"


def new_tokenizer(vocab_size: int) -> tuple[Tokenizer, trainers.BpeTrainer]:
    """A tokenizer that has yet to learn its merges, and what teaches it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[START],
        initial_alphabet=list(ALPHABET),
        limit_alphabet=len(ALPHABET),
        show_progress=False,
    )
    return tokenizer, trainer


def learn_tokenizer(root: Path, vocab_size: int, split: Split) -> tuple[Tokenizer, int]:
    """Learn BPE from the training songs; writes cache/tokenizer.json and what it was learned from beside it.

    Returns the tokenizer and the number of documents read. Where there are more than SAMPLE_LINES lines,
    documents are drawn in an order that the seed gives until that many are seen. Raises UserError where
    there is nothing to learn from or the size can't be.
    """
    smallest = len(ALPHABET) + 1
    if not smallest <= vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(f"--vocab-size {vocab_size} is not in {smallest}..{MAX_VOCAB_SIZE}; 4096 is usual")
    training = [song for song in songs(root) if not split.is_val(song)]
    if not training:
        raise UserError(f"all songs are held out; ask for less than --val-fraction {split.val_fraction}")
    paths = list(document_paths(root, training))
    random.Random(split.seed).shuffle(paths)

    tokenizer, trainer = new_tokenizer(vocab_size)
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        lines = 0
        for path in tqdm(paths, desc="tokenizer", unit="document", disable=None):
            if lines >= SAMPLE_LINES:
                break
            text = read_document(path)
            lines += text.count("\n")
            read += 1
            yield text

    tokenizer.train_from_iterator(texts(), trainer)
    path = tokenizer_path(root)
    meta = path.with_suffix(".meta.json")
    with replacing(path) as temporary:
        tokenizer.save(str(temporary))
        meta.unlink(missing_ok=True)  # until the file it describes has its name
    write_json(
        meta,
        {"language": LANGUAGE, "sha256": file_sha256(path), "val_fraction": split.val_fraction, "seed": split.seed},
    )
    return tokenizer, read


def tokenizer_path(root: Path) -> Path:
    return root / "cache" / "tokenizer.json"


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def load_tokenizer(root: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """cache/tokenizer.json and its meta data. Raises UserError where it is missing or of another language."""
    path = tokenizer_path(root)
    if not path.exists() or not path.with_suffix(".meta.json").exists():
        raise UserError(f"{path} does not exist yet; make it with: {make(root, 'tokenizer')}")
    meta = read_json(path.with_suffix(".meta.json"))
    if meta["language"] != LANGUAGE or meta["sha256"] != file_sha256(path):
        raise UserError(f"{path} is not of the language {LANGUAGE!r}; run: {make(root, 'dataset', 'tokenizer')}")
    return Tokenizer.from_file(str(path)), meta
