"""Tokens -> training batches, as a pure function of the step."""

import numpy as np
import torch
from torch import Tensor

from midigpt.score import IntArray
from midigpt.settings import Counted
from midigpt.sides import Side

GPU_SHARE = 0.25  # of the free memory of a GPU, which the tokens may take


class Batches:
    """Batches of windows that together read each epoch's documents end to end.

    Each epoch puts the documents into a new order, each in another of its keys than before; the epochs follow one
    another in one endless stream, cut into windows without gap. So a window starts at a document's start or goes on
    with a document, every token is a target exactly once in as many epochs as there are keys, and nothing is thrown
    away. The rows of a batch are far apart in the stream: songs are long, and a batch of one song alone would teach
    that song. So each row reads a part of its own, from step to step, of as much of the stream as goes into the whole
    steps of an epoch. A batch depends on nothing but the tokens, where documents start, the seed and the step: with
    four processes, each takes its rows of the same batch.
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
        self._keys = side.keys
        self._steps = max(side.epoch_tokens // (batch_size * block_size), 1)  # in which each row reads on
        self._orders: dict[int, tuple[Tensor, Tensor]] = {}  # of the rounds at hand

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and the inputs' positions of a step on the device, each int64 (batch_size, block_size)."""
        at = self._places(step)
        tokens = self._take(self._tokens, at, 0xFFFF)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        if not self._positions:
            return inputs, targets, torch.arange(self.block_size, device=self.device).expand(inputs.shape)
        return inputs, targets, self._take(self._positions[0], at[:, :-1], 0xFFFFFFFF)

    def _take(self, values: Tensor, at: Tensor, bits: int) -> Tensor:
        """Values of unsigned numbers, held as signed ones of as many bits."""
        taken = values[at].long() & bits
        if self._home == self.device:
            return taken
        to_gpu = self.device.startswith("cuda")
        return (taken.pin_memory() if to_gpu else taken).to(self.device, non_blocking=to_gpu)

    def _places(self, step: int) -> Tensor:
        """Where in the data the tokens of a step's windows are, (batch_size, block_size + 1)."""
        turn, place = divmod(step, self._steps)
        rows = torch.arange(self.batch_size, device=self._home)
        first = ((turn * self.batch_size + rows) * self._steps + place) * self.block_size
        stream = first[:, None] + torch.arange(self.block_size + 1, device=self._home)
        length = len(self._tokens)
        begin = (turn * self.batch_size * self._steps + place) * self.block_size
        end = begin + (self.batch_size - 1) * self._steps * self.block_size + self.block_size
        at = torch.empty_like(stream)
        for number in range(begin // length, end // length + 1):
            begins, moves = self._order(number)
            within = stream - number * length
            document = torch.searchsorted(begins, within, right=True) - 1
            at = torch.where((within >= 0) & (within < length), within + moves[document.clamp(min=0)], at)
        return at

    def _order(self, number: int) -> tuple[Tensor, Tensor]:
        """Where each document of a round, in their order, begins in it, and how far away it lies, (D,).

        A round is as many epochs as there are keys, and has every document in every key.
        """
        if number not in self._orders:
            random = np.random.default_rng([self.seed, number])
            music = len(self._starts) // self._keys
            epochs = np.stack([random.permutation(music) for _ in range(self._keys)])  # (keys, D / keys)
            key = (random.integers(self._keys, size=music)[epochs] + np.arange(self._keys)[:, None]) % self._keys
            order = (epochs * self._keys + key).ravel()
            begins: IntArray = np.cumsum(self._lengths[order]) - self._lengths[order]
            begin, move = torch.from_numpy(begins), torch.from_numpy(self._starts[order] - begins)
            kept = sorted(self._orders)[-1:]  # a step reads from two rounds at most, but in the smallest folders
            self._orders = {old: self._orders[old] for old in kept}
            self._orders[number] = begin.to(self._home), move.to(self._home)
        return self._orders[number]
