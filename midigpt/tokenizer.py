"""Documents <-> tokens, in which no token crosses a line: learning the tokenizer of a folder, and encoding lines."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import compress, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from midigpt.bpe import START, START_ID, base_alphabet, token_texts, train_tokenizer
from midigpt.documents import Split, is_drawn, read_songs
from midigpt.files import UserError, make, read_json, replacing, write_json
from midigpt.header import shown, split_header
from midigpt.index import language, songs, totals
from midigpt.language import TRACKS, Language
from midigpt.score import IntArray

Tokens = NDArray[np.uint16]
DTYPE = np.dtype("<u2")  # of train.bin and of tokens on the way there

MAX_VOCAB_SIZE = 1 << 16  # train.bin holds two bytes a token
SAMPLE_NOTES = 3_000_000  # BPE learns from about this many notes at most: so many take it up to 1 GB
SONG_NOTES = 30_000  # of them from one song
LINES_AT_ONCE = 1 << 16  # are encoded
REMEMBERED = 1 << 21  # tokens of lines that LineEncoder knows: half a million lines, 120 MB

_NEWLINES = ("\n", "\u010a")  # as tokens have it, characters or bytes


def learn_tokenizer(root: Path, vocab_size: int, split: Split) -> tuple[Tokenizer, int]:
    """Learn BPE from the training songs; writes cache/tokenizer.json and what it was learned from beside it.

    Returns the tokenizer and the number of documents read. Where there are more than SAMPLE_NOTES notes, songs
    are drawn by a hash of their music. Raises UserError where there is nothing to learn from or the size
    can't be.
    """
    spoken = language(root)
    smallest = len(base_alphabet(spoken)) + 1
    if not smallest <= vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(f"--vocab-size {vocab_size} is not in {smallest}..{MAX_VOCAB_SIZE}; 1024 is usual")
    texts = list(sample_documents(root, split))
    if not texts:
        raise UserError(f"all songs are held out; ask for less than --val-fraction {split.val_fraction}")
    tokenizer = train_tokenizer(texts, vocab_size, spoken)
    path = tokenizer_path(root)
    meta = path.with_suffix(".meta.json")
    with replacing(path) as temporary:
        temporary.write_text(tokenizer.to_str(pretty=True), encoding="utf-8", newline="\n")
        meta.unlink(missing_ok=True)  # until the file it describes has its name
    write_json(
        meta,
        {"language": str(spoken), "sha256": file_sha256(path), "val_fraction": split.val_fraction, "seed": split.seed},
    )
    return tokenizer, len(texts)


def sample_documents(root: Path, split: Split) -> Iterator[str]:
    """Documents of training songs with about SAMPLE_NOTES notes, or of all of them if they have fewer.

    Whether a song is drawn depends on its music, the seed and the notes in the index: the same songs under
    other names give the same sample. Of a song with more than SONG_NOTES notes every second line is read, or
    every third, and so on, for BPE looks at no line's neighbours.
    """
    count_songs, notes = totals(root, SONG_NOTES)
    count_notes = language(root).module.count_notes
    fraction = SAMPLE_NOTES / max(notes, SAMPLE_NOTES)
    everything = tqdm(songs(root), desc="tokenizer", total=count_songs, unit="song", disable=None)
    training = (song for song in everything if not split.is_val(song))
    drawn = (song for song in training if is_drawn(f"{split.seed} tokenizer {song.fingerprint}", fraction))
    for _, texts in read_songs(root, drawn):
        step = -(-sum(map(count_notes, texts)) // SONG_NOTES)
        for text in texts:
            header, body = split_header(text)
            yield text if step <= 1 else header + "".join(body.splitlines(keepends=True)[::step])


def tokenizer_path(root: Path) -> Path:
    return root / "cache" / "tokenizer.json"


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def load_tokenizer(root: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """cache/tokenizer.json and its meta data. UserError where it is missing or of another language than documents."""
    path = tokenizer_path(root)
    if not path.exists() or not path.with_suffix(".meta.json").exists():
        raise UserError(f"{path} does not exist yet; make it with: {make(root, 'tokenizer')}")
    meta = read_json(path.with_suffix(".meta.json"))
    spoken = str(language(root))
    if meta["language"] != spoken or meta["sha256"] != file_sha256(path):
        raise UserError(f"{path} is not of the language {spoken!r}; run: {make(root, 'dataset', 'tokenizer')}")
    return Tokenizer.from_file(str(path)), meta


# --- encoding --------------------------------------------------------------------------------------------


def document_tokens(tokenizer: Tokenizer, language: Language, text: str) -> tuple[list[int], list[int]]:
    """A document's tokens, without a start token, and of each the time of its line: grid steps since the beginning."""
    encoding = tokenizer.encode(text)
    steps = np.array([line_steps(line, language) for line in text.splitlines(keepends=True)], np.int64)
    is_end = np.array([token.endswith(_NEWLINES) for token in encoding.tokens], np.int64)
    line = np.cumsum(is_end) - is_end  # of each token
    return encoding.ids, (np.cumsum(steps) - steps)[line].tolist()


def line_steps(line: str, language: Language) -> int:
    """The time of a line, in grid steps; the start token and the header take none. Raises UserError for no line."""
    if line == START or line.startswith("#"):
        return 0
    try:
        return int(language.module.line_steps(line))
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{shown(line.rstrip())} does not say how long it takes; mend or delete its document") from None


class LineEncoder:
    """Lines -> tokens and times. Lines repeat, so each is encoded once, for as long as it is remembered.

    No token crosses a line, so a document's tokens are those of its lines end to end. What is remembered has
    at most `remembered` tokens after each call; when it is more, the half that was most in use lately stays.
    """

    def __init__(self, tokenizer: Tokenizer, language: Language = TRACKS, remembered: int = REMEMBERED) -> None:
        self._tokenizer, self._language, self._remembered = tokenizer, language, remembered
        self._is_end = np.array([text.endswith("\n") for text in token_texts(tokenizer)])  # of a line
        self._is_end[START_ID] = True
        self._number: dict[str, int] = defaultdict(count().__next__)  # of a line; new lines get the next one
        self._tokens = np.empty(0, DTYPE)  # of all lines remembered, end to end
        self._ends = np.zeros(1, np.int64)  # line n has the tokens [ends[n], ends[n + 1])
        self._steps = np.empty(0, np.int64)  # of the grid, that each line takes
        self._uses = np.empty(0, np.int64)  # of each line, of late

    def __call__(self, lines: Sequence[str]) -> tuple[Tokens, IntArray, IntArray]:
        """The tokens of lines, end to end, (N,); how many each line has and how many grid steps it takes, both (L,).

        START counts as a line. Every other line must end in a newline, and have no other. Raises UserError for what
        is no line.
        """
        parts = [self._encode(lines[at : at + LINES_AT_ONCE]) for at in range(0, len(lines), LINES_AT_ONCE)]
        nothing = np.empty(0, np.int64)
        tokens, lengths, steps = zip((np.empty(0, DTYPE), nothing, nothing), *parts, strict=True)
        return np.concatenate(tokens), np.concatenate(lengths), np.concatenate(steps)

    def _encode(self, lines: Sequence[str]) -> tuple[Tokens, IntArray, IntArray]:
        known = len(self._number)
        number = np.fromiter(map(self._number.__getitem__, lines), np.int64, len(lines))
        if new := len(self._number) - known:
            self._learn(list(islice(reversed(self._number), new))[::-1])
        self._uses += np.bincount(number, minlength=len(self._uses))
        begin, end = self._ends[number], self._ends[number + 1]
        tokens, lengths, steps = self._tokens[ranges(begin, end - begin)], end - begin, self._steps[number]
        if len(self._tokens) > self._remembered:
            self._forget()
        return tokens, lengths, steps

    def _learn(self, lines: list[str]) -> None:
        """Encode new lines: many as one text, which costs half as much as each by itself."""
        texts = ["".join(lines[at : at + 1000]) for at in range(0, len(lines), 1000)]
        encoded = [np.array(encoding.ids, DTYPE) for encoding in self._tokenizer.encode_batch_fast(texts)]
        tokens = np.concatenate(encoded)
        self._ends = np.append(self._ends, len(self._tokens) + 1 + np.flatnonzero(self._is_end[tokens]))
        self._tokens = np.append(self._tokens, tokens)
        self._steps = np.append(self._steps, [line_steps(line, self._language) for line in lines])
        self._uses = np.append(self._uses, np.zeros(len(lines), np.int64))

    def _forget(self) -> None:
        lengths = np.diff(self._ends)
        order = np.argsort(-self._uses, kind="stable")
        is_kept = np.zeros(len(lengths), bool)
        is_kept[order[np.cumsum(lengths[order]) <= self._remembered // 2]] = True
        lines = compress(self._number, is_kept.tolist())
        self._number = defaultdict(count(int(is_kept.sum())).__next__, zip(lines, count()))
        self._tokens = self._tokens[np.repeat(is_kept, lengths)]
        self._ends = np.append(0, np.cumsum(lengths[is_kept]))
        self._steps, self._uses = self._steps[is_kept], self._uses[is_kept] // 2


def ranges(begin: IntArray, length: IntArray) -> IntArray:
    """begin[0], begin[0] + 1, ..., `length[0]` numbers in all, then those from begin[1] on, and so on."""
    return np.repeat(begin - np.cumsum(length) + length, length) + np.arange(length.sum())
