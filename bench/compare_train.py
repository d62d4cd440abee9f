"""Train a model on a way's tokens and measure it, for bench/compare.py."""

import copy
import math
import re
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from compare_data import Way
from tokenizers import Tokenizer

from midigpt.batches import Batches
from midigpt.bpe import START_ID, token_texts
from midigpt.decoder import Decoder, Prepared
from midigpt.devices import autocast, keep_freed_memory
from midigpt.evaluate import evaluation_windows, token_nats
from midigpt.generate import mended, time_of
from midigpt.header import LanguageError
from midigpt.language import Language, decode
from midigpt.model import GPT, ModelConfig, build_model, flops_per_token
from midigpt.optimizer import groups, make_optimizers, update
from midigpt.plan import averaging_weight, learning_rate_factor, regularisation
from midigpt.settings import Config
from midigpt.sides import Side

BATCH_TOKENS = 2048
TAKE_TOKENS = 200


def train_and_measure(way: Way, data: Path, seed: int, equal: str, args: Any) -> dict[str, Any]:
    """All columns of a run."""
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    keep_freed_memory()
    arrays = np.load(data)
    sides = {name: side(arrays, name, way) for name in ("train", "val", "moved")}
    config = ModelConfig(
        vocab_size=int(arrays["vocab_size"]),
        block_size=way.block_size,
        n_layer=args.n_layer,
        n_head=args.n_head,
        n_kv_head=args.n_head,
        n_embd=args.n_embd,
        n_hidden=math.ceil(args.n_embd * 8 / 3 / 32) * 32,
        positions=way.positions,
    )
    train = sides["train"]
    flops = flops_per_token(config) * BATCH_TOKENS
    steps = round(args.pflop * 1e15 / flops)
    if equal == "notes":
        steps = round(args.notes * train.epoch_tokens / train.notes / BATCH_TOKENS)
    begun = time.perf_counter()
    model = train_model(config, train, steps, seed, args.device)
    seconds = time.perf_counter() - begun
    result: dict[str, Any] = {
        "steps": steps,
        "pflop": steps * flops / 1e15,
        "epochs": steps * BATCH_TOKENS / train.epoch_tokens,
        "notes_seen": steps * BATCH_TOKENS * train.notes / train.epoch_tokens,
        "train_pieces": len(train.docs) // train.keys,
        "train_notes": train.notes,
        "val_notes": sides["val"].notes,
        "tokens_per_note": len(sides["val"].tokens) / sides["val"].notes,
        "training_seconds": seconds,
    }
    for name in ("val", "moved"):
        windows = evaluation_windows(sides[name], way.block_size)
        nats = token_nats(model, sides[name], windows, args.device, autocast(args.device))
        bits = float(nats.sum(dtype=np.float64)) / math.log(2)
        prefix = "" if name == "val" else "moved_"
        result[f"{prefix}bits_per_note"] = bits / sides[name].notes
        if name == "val":
            result["bits_per_second"] = bits / float(arrays["seconds"])
            if not way.is_peer and not way.vocab_size:
                result["parts"] = by_part(nats, sides[name], data)
    if not way.is_peer and not way.switch:
        result |= draw_takes(way, model, data, args.takes, seed)
    return result


def side(arrays: Any, name: str, way: Way) -> Side:
    """The packed side of that name."""
    tokens, docs, times, places = (arrays[f"{name}_{what}"] for what in ("tokens", "docs", "times", "places"))
    positions = (times * way.a_step).astype(np.uint32) + places.astype(np.uint32)
    keys = way.keys if name == "train" else 1
    return Side(tokens=tokens, docs=docs, notes=int(arrays[f"{name}_notes"]), positions=positions, keys=keys)


def train_model(config: ModelConfig, train: Side, steps: int, seed: int, device: str) -> GPT:
    """The averaged weights after so many steps, by the settings and rules of a run of scripts/train.py."""
    settings = Config()
    repeats = steps * BATCH_TOKENS / len(train.tokens)
    dropout, weight_decay = regularisation(repeats, steps, settings.learning_rate, keys=train.keys)
    torch.manual_seed(seed)
    model = build_model(config, dropout).to(device)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    stepped = torch.compile(model) if device.startswith("cuda") else model
    optimizers = make_optimizers(model, settings.learning_rate, settings.adam_learning_rate, weight_decay)
    batch = Batches(train, BATCH_TOKENS // config.block_size, config.block_size, seed, device, config.positions)
    for step in range(steps):
        factor = learning_rate_factor(step, steps, settings.warmup_steps, settings.decay)
        for group in groups(optimizers):
            group["lr"] = group["peak"] * factor
        x, y, positions = batch(step)
        with autocast(device):
            loss = stepped(x, positions, targets=y)
        loss.backward()
        update(model, optimizers, average, averaging_weight(step, steps))
    return average


# --- what the bits say -----------------------------------------------------------------------------------

_NOTE = r"(?P<part>[\dd.]+@)?(?P<pitch>\d+[+=-])(?P<velocity>\d+)(?P<length>:[\d/]+)?\|"
_PARTS = re.compile(rf"{_NOTE}|(?P<time>\d+/\d+\n)")


def by_part(nats: np.ndarray, val: Side, data: Path) -> dict[str, float]:
    """Bits per note of each part of the text, where a token is a character: a note's end tells of its length."""
    texts = token_texts(Tokenizer.from_file(str(data.with_suffix(".tokenizer.json"))))
    bits: dict[str, float] = dict.fromkeys(("part", "pitch", "velocity", "length", "time", "end"), 0.0)
    for (start, first), end in zip(val.docs.tolist(), val.ends.tolist(), strict=True):
        body = "".join(texts[token] for token in val.tokens[first:end])
        code = nats[first:end] / math.log(2)
        for match in _PARTS.finditer(body):
            for name in match.groupdict():
                if match[name]:
                    bits[name] += float(code[match.start(name) : match.end(name)].sum())
            if not match["time"]:
                bits["length"] += float(code[match.end() - 1])
        bits["end"] += float(nats[start]) / math.log(2)
    return {name: total / val.notes for name, total in bits.items()}


# --- takes -----------------------------------------------------------------------------------------------


def draw_takes(way: Way, model: GPT, data: Path, takes: int, seed: int) -> dict[str, float]:
    """Takes of some hundred tokens, drawn without a grammar: the share that can be read, and notes per second."""
    if not takes:
        return {}
    language = Language(way.encoding, way.layout)
    texts = token_texts(Tokenizer.from_file(str(data.with_suffix(".tokenizer.json"))))
    decoder = Decoder(Prepared(model), takes)
    random = torch.Generator().manual_seed(seed)
    rows = [_Take(language, way) for _ in range(takes)]
    begun = time.perf_counter()
    logits = decoder.read(torch.full((1, 1), START_ID), torch.zeros(1, 1, dtype=torch.long))
    for _ in range(min(TAKE_TOKENS, way.block_size - 1)):
        tokens = torch.multinomial(logits.softmax(-1), 1, generator=random)[:, 0]
        positions = [row.add(texts[token]) for row, token in zip(rows, tokens.tolist(), strict=True)]
        logits = decoder.step(tokens, torch.tensor(positions))
    seconds = time.perf_counter() - begun
    return {
        "valid": mean(row.is_valid() for row in rows),
        "notes_per_second": sum(language.module.count_notes(row.text) for row in rows) / seconds,
    }


class _Take:
    """A document as it is drawn."""

    def __init__(self, language: Language, way: Way) -> None:
        self.language, self.text = language, ""
        self._way, self._line, self._time, self._place, self._tokens, self._is_done = way, "", 0, 0, 0, False

    def add(self, text: str) -> int:
        """Take one more token; its position."""
        self._is_done |= not text
        self._tokens += 1
        position = self._tokens if self._way.positions == "index" else self._time * self._way.a_step + self._place
        self._place, self._line = self._place + 1, self._line + text
        if text.endswith("\n"):
            line = mended(self._line)
            self.text += "" if self._is_done else line
            self._time += time_of(line, self.language)
            self._line, self._place = "", 0
        return position

    def is_valid(self) -> bool:
        """Whether its whole lines can be read and hold a note."""
        try:
            return decode([self.text], self.language).notes > 0
        except LanguageError:
            return False
