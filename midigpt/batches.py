"""Tokens -> training batches, as a pure function of the step."""

import numpy as np
import torch
from torch import Tensor

from midigpt.score import IntArray
from midigpt.settings import Counted
from midigpt.train_data import Side

GPU_SHARE = 0.25  # of the free memory of a GPU, which the tokens may take


class Batches:
    """Batches of windows that together read each epoch's documents end to end.

    Each epoch puts the documents into a new order; the epochs follow one another in one endless stream, cut into
    windows without gap. So a window starts at a document's start or goes on with a document, every token is a
    target exactly once an epoch, and nothing is thrown away. A batch depends on nothing but the tokens, where
    documents start, the seed and the step: with four processes, each takes its rows of the same batch.
    Positions are those of musical time, or tokens' numbers in their window.
    """

    def __init__(
        self,
        side: Side,
        batch_size: int,
        block_size: int,
        seed: int,
        device: str = "cpu",
        positions: Counted = "time",
    ) -> None:
        self.batch_size, self.block_size, self.seed, self.device = batch_size, block_size, seed, device
        # The tokens live on the GPU where they fit, else in the memory map that the system keeps in memory. They
        # are held as int16, the type of two bytes that torch can index everywhere, and positions as int32; see _take.
        data = [torch.from_numpy(side.tokens.view(np.int16))]
        if positions == "time":
            data.append(torch.from_numpy(side.positions.view(np.int32)))
        self._home = "cpu"
        if device.startswith("cuda"):
            size = sum(tensor.nbytes for tensor in data)
            self._home = device if size < GPU_SHARE * torch.cuda.mem_get_info(device)[0] else "cpu"
        self._tokens, *self._positions = (tensor.to(self._home) for tensor in data)
        self._starts, self._lengths = side.docs[:, 0], side.ends - side.docs[:, 0]
        self._epoch = -1  # of the order at hand

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and the inputs' positions of a step on the device, each int64 (batch_size, block_size)."""
        window, shape = self.batch_size * self.block_size, (self.batch_size, self.block_size)
        at = self._places(step * window, (step + 1) * window + 1)
        stream = self._take(self._tokens, at, 0xFFFF)
        inputs, targets = stream[:-1].view(shape), stream[1:].view(shape)
        if not self._positions:
            return inputs, targets, torch.arange(self.block_size, device=self.device).expand(shape)
        return inputs, targets, self._take(self._positions[0], at[:-1], 0xFFFFFFFF).view(shape)

    def _take(self, values: Tensor, at: Tensor, bits: int) -> Tensor:
        """Values of unsigned numbers, held as signed ones of as many bits."""
        taken = values[at].long() & bits
        if self._home == self.device:
            return taken
        to_gpu = self.device.startswith("cuda")
        return (taken.pin_memory() if to_gpu else taken).to(self.device, non_blocking=to_gpu)

    def _places(self, start: int, end: int) -> Tensor:
        """Where in the data the tokens [start, end) of the endless stream are."""
        length = len(self._tokens)
        parts = []
        for epoch in range(start // length, (end - 1) // length + 1):
            self._arrange(epoch)
            first, last = max(start - epoch * length, 0), min(end - epoch * length, length)
            at = torch.arange(first, last, device=self._home)
            place = torch.searchsorted(self._begins, at, right=True) - 1  # which document of the epoch
            parts.append(at + self._moves[place])
        return torch.cat(parts)

    def _arrange(self, epoch: int) -> None:
        """Set where each of the epoch's documents, in their order, begins in it, and how far away it lies, (D,)."""
        if epoch != self._epoch:
            self._epoch = epoch
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self._starts))
            begins: IntArray = np.cumsum(self._lengths[order]) - self._lengths[order]
            self._begins = torch.from_numpy(begins).to(self._home)
            self._moves = torch.from_numpy(self._starts[order] - begins).to(self._home)
