"""The model writes music: a document, or more lines of one, drawn token by token.

A line that breaks the language, or leaves the keyboard, is drawn again, so every take can be decoded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.files import UserError
from midigpt.language import DEFAULT_KEY, Header, LanguageError, read_header, read_line
from midigpt.model import GPT, Cache
from midigpt.tokenizer import START_ID

T = TypeVar("T")

MAX_TRIES = 100  # of a line or header until the model is called untrained
MAX_LINE_TOKENS = 200
MAX_NOTES = 1000  # of a take that the model does not end
FIELDS = ("program", "tempo", "meter", "key")  # of a header, in their order


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
    end: float  # beats after the document's beginning


class Writer:
    """A document in the making: the tokens so far, and the model's view of them in a cache."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, drawing: Drawing) -> None:
        self.model, self.tokenizer, self.drawing = model, tokenizer, drawing
        self.device = next(model.parameters()).device
        self.random = torch.Generator().manual_seed(drawing.seed)
        self.tokens: list[int] = []
        self.cache = Cache(model.config, 1, self.device)
        self.logits = torch.empty(0)  # (V,) after the last token

    @torch.inference_mode()
    def read(self, ids: list[int]) -> None:
        """Take tokens as given. When the context is full, its later half is read anew."""
        self.tokens += ids
        if self.cache.length == 0 or self.cache.length + len(ids) > self.model.config.block_size:
            self._fill()
        else:
            for token in ids:
                self._forward([token])

    def _fill(self) -> None:
        block = self.model.config.block_size
        self.cache.length = 0
        self._forward(self.tokens if len(self.tokens) <= block else self.tokens[-(block // 2) :])

    def _forward(self, ids: list[int]) -> None:
        logits = self.model(torch.tensor([ids], device=self.device), cache=self.cache)
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

    def draw(self, may_end: bool) -> int:
        """A token from the distribution after what was read; START_ID only if the document may end here."""
        logits = self.logits.clone()
        if not may_end:
            logits[START_ID] = -torch.inf
        if self.drawing.temperature == 0:
            return int(logits.argmax())
        logits /= self.drawing.temperature
        if self.drawing.top_k and self.drawing.top_k < len(logits):
            logits[logits < logits.topk(self.drawing.top_k).values[-1]] = -torch.inf
        return int(torch.multinomial(logits.softmax(0), 1, generator=self.random))

    def draw_until_newline(self, may_end: bool) -> str | None:
        """Draw tokens up to a newline and read them; None if the document ends instead."""
        text = ""
        for _ in range(MAX_LINE_TOKENS):
            token = self.draw(may_end and not text)
            if token == START_ID:
                return None
            self.read([token])
            text += self.tokenizer.id_to_token(token) or ""
            if text.endswith("\n"):
                break
        return text


def write_header(writer: Writer, wishes: dict[str, str]) -> str:
    """Begin a document: the wished fields, and behind them those the model adds."""
    wished = [name for name in FIELDS if name in wishes]
    begin = " ".join(["#", *(f"{name}={wishes[name]}" for name in wished)])
    to_come = FIELDS[FIELDS.index(wished[-1]) + 1 :] if wished else FIELDS
    writer.read([START_ID, *writer.tokenizer.encode(begin).ids])

    def attempt() -> str | None:
        text = begin + (writer.draw_until_newline(may_end=False) or "")
        header = read_header(text)
        has = {
            "program": header.program is not None or header.is_drum,
            "tempo": header.tempo_bpm is not None,
            "meter": header.meter is not None,
            "key": header.key is not None or header.is_drum or wishes.get("program") == "d",
        }
        as_wished = text.endswith("\n") and text[len(begin)] in " \n"
        return text if as_wished and all(has[name] for name in to_come) else None

    return _try_again(writer, attempt, "a header")


def write_lines(
    writer: Writer, header: Header, given: str = "", notes: int | None = None, until: float | None = None
) -> Lines:
    """Go on behind a document's header and `given` lines, which the writer has read.

    Writes `notes` notes (to the end of their line); without, until the model ends the document or MAX_NOTES
    are written; in any case no line that starts at or after beat `until`.
    """
    reference = DEFAULT_KEY if header.key is None else header.key
    now = 0.0  # beats
    for line in given.splitlines():
        _, time, reference = read_line(line, reference, header.is_drum)
        now += _beats(time)
    text, written = "", 0

    def attempt() -> tuple[str | None, int, float, int] | None:
        line = writer.draw_until_newline(may_end=notes is None and written > 0)
        if line is None:
            return None, 0, 0.0, reference
        if not line.endswith("\n"):
            return None
        read, time, after = read_line(line[:-1], reference, header.is_drum)
        return line, len(read), _beats(time), after

    while written < (notes or MAX_NOTES) and (until is None or now < until):
        drawn, count, beats, reference = _try_again(writer, attempt, "a line")
        if drawn is None:
            break
        text, written, now = text + drawn, written + count, now + beats
    return Lines(text, written, now)


def _beats(time: str) -> float:
    count, unit = time.split("/")
    return int(count) / int(unit)


def _try_again(writer: Writer, attempt: Callable[[], T | None], what: str) -> T:
    mark = writer.mark()
    for _ in range(MAX_TRIES):
        try:
            result = attempt()
        except LanguageError:
            result = None
        if result is not None:
            return result
        writer.rewind(mark)
        if writer.drawing.temperature == 0:
            break
    raise UserError(f"in {MAX_TRIES} tries the model did not write {what} of the language; train it for longer")
