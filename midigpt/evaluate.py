"""How well a model knows music it has not seen: nats per token and bits per note of the held-out documents.

Bits per note is the code length, in bits, of all lines of the held-out documents, divided by their notes: start
tokens and headers are given and not counted. Unlike loss per token it compares vocabularies and languages.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from midigpt.bpe import token_texts
from midigpt.kernels import IGNORED
from midigpt.sides import Side, line_tokens

LOGITS_AT_ONCE = 1 << 25  # numbers: 128 MB
POSITIONS = 0, 16, 64, 256, 1024  # notes from the beginning of a piece at which a new figure begins

Nats = NDArray[np.float32]
Windows = list[tuple[int, int, int]]


@dataclass(frozen=True)
class Figures:
    """What a model's code length comes to."""

    nats_per_token: float
    bits_per_note: float
    by_position: dict[str, float]  # bits per note from the note of that number of each document on


class Evaluation:
    """The held-out documents, ready to be read by a model again and again."""

    def __init__(self, val: Side, tokenizer: Tokenizer, block_size: int) -> None:
        self.val = val
        self.windows = evaluation_windows(val, block_size)
        self.tokens_read = sum(end - start for start, end, _ in self.windows)
        notes_of = np.array([val.language.module.count_notes(text) for text in token_texts(tokenizer)])
        notes = notes_of[val.tokens]  # (N,) that end in each token
        document = np.repeat(np.arange(len(val.docs)), val.ends - val.docs[:, 0])
        before = np.cumsum(notes) - notes
        of_piece = before - before[val.docs[:, 0]][document]  # (N,) notes of its document before each token
        self._bucket = np.searchsorted(POSITIONS, of_piece, side="right") - 1
        self._notes = np.bincount(self._bucket, notes, len(POSITIONS))
        self._line_tokens = len(line_tokens(val))

    def __call__(self, model: nn.Module, device: str, autocast: AbstractContextManager) -> Figures:
        """Let a model read all documents, each from its start. Every process reads its share of them."""
        nats = token_nats(model, self.val, self.windows, device, autocast)
        total, bits = float(nats.sum(dtype=np.float64)), np.bincount(self._bucket, nats, len(POSITIONS)) / math.log(2)
        return Figures(
            nats_per_token=total / self._line_tokens,
            bits_per_note=total / math.log(2) / self.val.notes,
            by_position={str(p): bits[i] / n for i, (p, n) in enumerate(zip(POSITIONS, self._notes, strict=True)) if n},
        )


@torch.no_grad()
def token_nats(model: nn.Module, side: Side, windows: Windows, device: str, autocast: AbstractContextManager) -> Nats:
    """The code length of each token under the model, (N,); zero for start tokens and headers, which are given.

    A window that begins within a document has the document's times: only their differences matter.
    Of several processes each reads every n-th window; all return the whole.
    """
    was_training = model.training
    model.eval()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = windows[rank::world]
    nats = torch.zeros(len(side.tokens), device=device)
    vocab_size = model.config.vocab_size
    first = 0
    while first < len(mine):
        longest = mine[first][1] - mine[first][0] - 1  # windows are ordered by length, the longest first
        rows = mine[first : first + max(LOGITS_AT_ONCE // (vocab_size * longest), 1)]
        x = torch.zeros(len(rows), longest, dtype=torch.long)
        y = torch.full((len(rows), longest), IGNORED)
        place, position = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
        for row, (start, end, counted) in enumerate(rows):
            tokens = torch.from_numpy(side.tokens[start:end].astype(np.int64))
            x[row, : end - start - 1] = tokens[:-1]
            skip = max(counted - start - 1, 0)
            y[row, skip : end - start - 1] = tokens[1 + skip :]
            place[row, : end - start - 1] = torch.arange(start + 1, end)
            position[row, : end - start - 1] = torch.from_numpy(side.positions[start : end - 1].astype(np.int64))
        if model.config.positions == "index":
            position = torch.arange(longest)[None]
        x, y, place, position = x.to(device), y.to(device), place.to(device), position.to(device)
        with autocast:
            logits = model(x, position)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), ignore_index=IGNORED, reduction="none")
        nats.index_add_(0, place.flatten(), loss)
        first += len(rows)
    model.train(was_training)
    if world > 1:
        dist.all_reduce(nats)
    return nats.cpu().numpy()


def unigram_bits_per_note(train: Side, val: Side, vocab_size: int) -> float:
    """Under the frequencies of the tokens in training alone: what any model must beat."""
    frequency = np.bincount(line_tokens(train), minlength=vocab_size) + 1.0
    nats = -np.log(frequency / frequency.sum())[line_tokens(val)].sum()
    return float(nats) / math.log(2) / val.notes


def evaluation_windows(side: Side, block_size: int) -> Windows:
    """Windows (start, end, counted) that read every document from its start and count every line token once.

    A window's inputs are tokens [start, end - 1), its targets [start + 1, end), of which those at or after
    `counted` count. Documents longer than a block go on in windows half a block further, so that a counted
    target has at least half a block before it. The longest come first, so that batches need little padding.
    """
    windows = []
    for (start, counted), end in zip(side.docs.tolist(), side.ends.tolist(), strict=True):
        while counted < end:
            stop = min(start + block_size + 1, end)
            if counted < stop:
                windows.append((start, stop, counted))
            start, counted = start + max(block_size // 2, 1), max(counted, stop)
    return sorted(windows, key=lambda window: (window[0] - window[1], window))
