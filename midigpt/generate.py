"""The model writes music: a document, or more lines of one, drawn token by token.

Headers are drawn from the fields there can be; a line that breaks the language, or leaves the keyboard, is
drawn again. So every take can be decoded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.files import UserError
from midigpt.language import DEFAULT_KEY, GRID, TEMPOS, Header, LanguageError, decode, read_header, read_line
from midigpt.model import GPT, Cache
from midigpt.score import Score
from midigpt.tokenizer import START_ID

T = TypeVar("T")

MAX_TRIES = 100  # of a line until the model is called untrained
MAX_LINE_TOKENS = 200
MAX_NOTES = 1000  # of a take that the model does not end
MAX_LINE_BEATS = 256  # a longer wait, or note, is taken for a slip
KEPT = 0.75  # of a full context, when it is made room in
# The fields of a header in their order, with the values to draw from.
FIELDS = {
    "program": [*map(str, range(128)), "d"],
    "tempo": [*map(str, TEMPOS)],
    "meter": [f"{numerator}/{denominator}" for denominator in (2, 4, 8, 16) for numerator in range(1, 17)],
    "key": [*map(str, range(128))],
}


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn from the model's distribution."""

    temperature: float = 1.0  # below 1: more of the likely; 0: always the likeliest
    top_k: int | None = None  # draw from the k likeliest only
    seed: int = 0


@dataclass(frozen=True)
class Lines:
    """Lines a model wrote, and where they leave off."""

    text: str
    notes: int
    end: int  # grid steps after the document's beginning


class Writer:
    """A document in the making: the tokens so far, and the model's view of them in a cache."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, drawing: Drawing) -> None:
        self.model, self.tokenizer, self.drawing = model, tokenizer, drawing
        self.device = next(model.parameters()).device
        self.random = torch.Generator().manual_seed(drawing.seed)
        texts = [tokenizer.id_to_token(token) or "" for token in range(model.config.vocab_size)]
        self.ends_field = torch.tensor([text[:1] in (" ", "\n") for text in texts])  # (V,)
        self.tokens: list[int] = []
        self.head = 0  # of these, how many are start token and header
        self.cache = Cache(model.config, 1, self.device)
        self.logits = torch.empty(0)  # (V,) after the last token

    @torch.inference_mode()
    def read(self, ids: list[int]) -> None:
        """Take tokens as given. When the context is full, the header and the latest tokens are read anew."""
        self.tokens += ids
        if self.cache.length == 0 or self.cache.length + len(ids) > self.model.config.block_size:
            self._fill()
        else:
            for token in ids:
                self._forward([token])

    def _fill(self) -> None:
        block = self.model.config.block_size
        self.cache.length = 0
        room = max(int(block * KEPT), 1)
        head = self.tokens[: min(self.head, room - 1)]
        fits = len(self.tokens) <= block
        self._forward(self.tokens if fits else head + self.tokens[len(head) - room :])

    def _forward(self, ids: list[int]) -> None:
        """Read on, at the positions behind those in the cache: 0, 1, 2, ..., all within the block."""
        start = self.cache.length
        positions = torch.arange(start, start + len(ids), device=self.device)[None]
        logits = self.model(torch.tensor([ids], device=self.device), positions, self.cache)
        self.logits = logits[0, -1].float().cpu()

    def mark(self) -> tuple[int, Tensor]:
        return len(self.tokens), self.logits

    @torch.inference_mode()
    def rewind(self, mark: tuple[int, Tensor]) -> None:
        """Forget what was read since the mark."""
        length, self.logits = mark
        in_cache = self.cache.length - (len(self.tokens) - length)
        self.tokens = self.tokens[:length]
        if in_cache > 0:
            self.cache.length = in_cache
        else:  # the context moved on in between
            self._fill()

    def draw(self, allowed: Tensor) -> int:
        """A token from the distribution after what was read, among those allowed: a mask of shape (V,)."""
        if not self.logits.isfinite().all():
            raise UserError("the model's weights are broken: it gives no numbers; use another checkpoint")
        logits = self.logits.masked_fill(~allowed, -torch.inf)
        if self.drawing.temperature == 0:
            return int(logits.argmax())
        logits /= self.drawing.temperature
        if self.drawing.top_k and self.drawing.top_k < len(logits):
            logits[logits < logits.topk(self.drawing.top_k).values[-1]] = -torch.inf
        return int(torch.multinomial(logits.softmax(0), 1, generator=self.random))

    def draw_field(self, texts: list[str]) -> str:
        """Draw one of several header fields, token by token, and read it.

        Where one is the beginning of another (key=6, key=60), it is taken if the model would go on with what
        can follow a field.
        """
        left = {text: self.tokenizer.encode(text).ids for text in texts}
        for place in count():
            complete = next((text for text, ids in left.items() if len(ids) == place), None)
            following = {ids[place] for ids in left.values() if len(ids) > place}
            if complete and not following:
                return complete
            allowed = self.ends_field.clone() if complete else torch.zeros_like(self.ends_field)
            allowed[list(following)] = True
            token = self.draw(allowed)
            if complete and token not in following:
                return complete
            self.read([token])
            left = {text: ids for text, ids in left.items() if ids[place : place + 1] == [token]}
        raise AssertionError("count() has no end")

    def draw_until_newline(self, may_end: bool) -> str | None:
        """Draw tokens up to a newline and read them; None if the document ends instead."""
        text = ""
        for _ in range(MAX_LINE_TOKENS):
            allowed = torch.ones(len(self.logits), dtype=torch.bool)
            allowed[START_ID] = may_end and not text
            token = self.draw(allowed)
            if token == START_ID:
                return None
            self.read([token])
            text += self.tokenizer.id_to_token(token) or ""
            if text.endswith("\n"):
                break
        return text


def compose(
    model: GPT, tokenizer: Tokenizer, drawing: Drawing, wishes: dict[str, str], notes: int | None = None
) -> Score:
    """A piece from nothing, with the wished fields of the header: one part, as a document holds one.

    Raises UserError where the model can't write a line of the language yet.
    """
    writer = Writer(model, tokenizer, drawing)
    header = write_header(writer, wishes)
    return decode([header + write_lines(writer, read_header(header), notes=notes).text])


def write_header(writer: Writer, wishes: dict[str, str]) -> str:
    """Begin a document: its start, and a header of the wished fields and of values the model draws for the others."""
    writer.read([START_ID, *writer.tokenizer.encode("#").ids])
    text = "#"
    for name, values in FIELDS.items():
        if name == "key" and read_header(text).is_drum:
            continue
        text += writer.draw_field([f" {name}={value}" for value in ([wishes[name]] if name in wishes else values)])
    writer.read(writer.tokenizer.encode("\n").ids)
    writer.head = len(writer.tokens)
    return text + "\n"


def write_lines(
    writer: Writer, header: Header, given: str = "", notes: int | None = None, until: int | None = None
) -> Lines:
    """Go on behind a document's header and `given` lines, which the writer has read.

    Writes `notes` notes (to the end of their line); without, until the model ends the document or MAX_NOTES
    are written; in any case no line that starts at or after grid step `until`. What the model writes is held
    to the normal form: silence as a line of its own only at the beginning, times on the grid.
    """
    reference = DEFAULT_KEY if header.key is None else header.key
    now = 0
    for line in given.splitlines():
        _, time, reference = read_line(line, reference, header.is_drum)
        now += _steps(time)
    text, written = "", 0

    def attempt() -> tuple[str | None, int, int, int] | None:
        line = writer.draw_until_newline(may_end=notes is None and written > 0)
        if line is None:
            return None, 0, 0, reference
        if not line.endswith("\n"):
            return None
        read, time, after = read_line(line[:-1], reference, header.is_drum)
        if not read and (text or given):
            return None
        times = [time, *(length for _, _, length in read if length)]
        if any(_steps(t) > MAX_LINE_BEATS * GRID for t in times):
            return None
        return line, len(read), _steps(time), after

    while written < (notes or MAX_NOTES) and (until is None or now < until):
        drawn, more, steps, reference = _try_again(writer, attempt)
        if drawn is None:
            break
        text, written, now = text + drawn, written + more, now + steps
    return Lines(text, written, now)


def _steps(time: str) -> int:
    """A time in grid steps. Raises LanguageError where it is not on the grid."""
    beats, unit = map(int, time.split("/"))
    if GRID % unit:
        raise LanguageError(f"{time} is not on the grid of {GRID} steps to the beat")
    return beats * (GRID // unit)


def _try_again(writer: Writer, attempt: Callable[[], T | None]) -> T:
    mark = writer.mark()
    tries = 1 if writer.drawing.temperature == 0 else MAX_TRIES  # without chance, every try is the same
    for _ in range(tries):
        try:
            result = attempt()
        except LanguageError:
            result = None
        if result is not None:
            return result
        writer.rewind(mark)
    raise UserError(
        f"the model did not write a line of the language ({tries} tries); train it for longer"
        " and on music of the kind you ask for, or draw at another --temperature or --seed"
    )
