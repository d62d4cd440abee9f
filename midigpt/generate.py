"""The model writes music: documents, or more lines of given ones, drawn token by token, a batch at a time.

The grammar leaves out every token that would break the language, so every take can be decoded. Each take has its
own random numbers, one a token, so that its draws depend on its seed alone.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.automaton import DRUM_KEYS, PIANO
from midigpt.decoder import Decoder, Prepared, Weights
from midigpt.encodings.interval import steps_of
from midigpt.files import UserError
from midigpt.grammar import Grammar, Place
from midigpt.header import DEFAULT_KEY, Header, keep_fields, read_header, split_header
from midigpt.model import GPT
from midigpt.normal import GRID
from midigpt.tokenizer import START_ID

MAX_NOTES = 1000  # of a take that the model does not end
AT_ONCE, AT_ONCE_ON_GPU = 64, 256  # takes; more are written in turns
KEPT = 0.75  # of a full context, when room is made in it
FIRST_LOOK, TOKENS_A_LOOK = 4, 32  # tokens drawn before the host looks at them: at first few, then twice as many
SPAN = 256  # a captured step reads the cache in multiples of this many tokens


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn from the model's distribution, after what the grammar leaves of it."""

    temperature: float = 1.0  # below 1: more of the likely; 0: always the likeliest
    top_k: int | None = None  # draw from the k likeliest only
    top_p: float | None = None  # from the likeliest that together have this probability (arXiv 1904.09751)
    min_p: float | None = None  # from those with this share of the likeliest one's probability (arXiv 2407.01082)
    seed: int = 0  # take i is drawn with seed + i

    def __post_init__(self) -> None:
        """Raises UserError for numbers that nothing can be drawn with."""
        if self.temperature != 0 and not 0.01 <= self.temperature <= 100:
            raise UserError(f"--temperature {self.temperature} is neither 0 nor in 0.01..100; 1 is the model as it is")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top-k {self.top_k} must be at least 1")
        for flag, share in (("--top-p", self.top_p), ("--min-p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise UserError(f"{flag} {share} is not a share above 0 and up to 1")
        if not 0 <= self.seed < 2**62:
            raise UserError(f"--seed {self.seed} is not in 0..2^62")


@dataclass(frozen=True)
class Length:
    """Where takes end: at the first of these limits; without any, where the model ends them (or at MAX_NOTES)."""

    notes: int | None = None  # and the rest of the last one's line
    bars: float | None = None
    seconds: float | None = None
    steps: int | None = None  # of the grid

    @property
    def is_given(self) -> bool:
        return self != Length()

    def in_steps(self, header: Header) -> int | None:
        """The limit in grid steps, in a piece with this header's meter and tempo, but for the one in notes."""
        numerator, denominator = header.meter or (4, 4)
        limits = [] if self.steps is None else [self.steps]
        if self.bars is not None:
            limits.append(round(self.bars * numerator * 4 / denominator * GRID))
        if self.seconds is not None:
            limits.append(round(self.seconds * (header.tempo_bpm or 120) / 60 * GRID))
        return max(min(limits), 1) if limits else None


@dataclass(frozen=True)
class Lines:
    """Lines that a model wrote, with the header if it wrote that as well."""

    text: str
    notes: int
    end: int  # grid steps from the first line's beginning to the last one's end


def compose(
    model: GPT,
    tokenizer: Tokenizer,
    drawing: Drawing,
    wishes: dict[str, str] | None = None,
    length: Length = Length(),
    takes: int = 1,
    keys: range = PIANO,
    weights: Weights | None = None,
) -> list[str]:
    """Documents from nothing, with the wished fields of the header; the others are drawn.

    Notes that are not drums stay within `keys`.
    """
    grammar = Grammar(tokenizer, wishes, not length.is_given, keys, device=drawing_device(model))
    written = _write(Prepared(model, weights), tokenizer, grammar, drawing, [START_ID], DEFAULT_KEY, [length] * takes)
    return [lines.text for lines in written]


def go_on(
    prepared: Prepared,
    tokenizer: Tokenizer,
    drawing: Drawing,
    document: str,
    reference: int,
    lengths: Sequence[Length],
    keys: range = range(128),
    drums: Set[int] = DRUM_KEYS,
) -> list[Lines]:
    """More lines of a document, at least one, for each length; the first begins where the document's last line ends.

    What comes counts from the pitch `reference`, that of the last line's first note, and stays within `keys`; drums
    within `drums`. The header's `key`, of which the lines say nothing, is not read: so a document moved to other keys
    is continued in the same way. Either all lengths are given, or none is.
    """
    header, body = split_header(document)
    read = read_header(header)
    may_end, device = not lengths[0].is_given, drawing_device(prepared.model)
    grammar = Grammar(tokenizer, None, may_end, keys, drums, read.is_drum, device)
    ids = [START_ID, *tokenizer.encode(without_key(header) + body).ids]
    return _write(prepared, tokenizer, grammar, drawing, ids, reference, lengths, read)


def _write(
    prepared: Prepared,
    tokenizer: Tokenizer,
    grammar: Grammar,
    drawing: Drawing,
    given: list[int],
    pitch: int,
    lengths: Sequence[Length],
    header: Header | None = None,
) -> list[Lines]:
    """Go on behind the same tokens for each length, as many takes at once as suit the device."""
    most = AT_ONCE_ON_GPU if prepared.device.type == "cuda" else AT_ONCE
    written = []
    for first in range(0, len(lengths), most):
        some = lengths[first : first + most]
        writer = Writer(Decoder(prepared, len(some)), tokenizer, grammar, drawing, first)
        written += writer.write(given, grammar.start(len(some), pitch), some, header)
    return written


def drawing_device(model: GPT) -> torch.device:
    """Where tokens are drawn: on the GPU with the model, else on the CPU (MPS has no float64)."""
    device = next(model.parameters()).device
    return device if device.type == "cuda" else torch.device("cpu")


def without_key(header: str) -> str:
    return keep_fields(header, lambda name: name != "key")


# --- token by token --------------------------------------------------------------------------------------


class Writer:
    """Writes a batch of documents. Row i draws its tokens with the drawing's seed + first + i."""

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, grammar: Grammar, drawing: Drawing, first: int = 0
    ) -> None:
        if decoder.model.config.block_size < 2:
            raise UserError("a model that reads one token at a time can't write music; train one with longer blocks")
        self.decoder, self.tokenizer, self.grammar, self.drawing = decoder, tokenizer, grammar, drawing
        rows, device = range(decoder.batch_size), drawing_device(decoder.model)
        self._random = [torch.Generator().manual_seed(drawing.seed + first + row) for row in rows]
        # What a step reads and writes, always in the same places, as a captured graph needs it.
        self._logits = torch.zeros(len(rows), len(grammar.texts), device=device)
        self._place = grammar.start(len(rows))
        self._uniform = torch.zeros(len(rows), TOKENS_A_LOOK, device=device)
        self._drawn = torch.zeros(len(rows), TOKENS_A_LOOK, dtype=torch.long, device=device)
        self._at = torch.zeros(1, dtype=torch.long, device=device)
        self._look = FIRST_LOOK
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}  # of steps, by the span of the cache that they read

    @torch.inference_mode()
    def write(
        self, given: list[int], place: Place, lengths: Sequence[Length], header: Header | None = None
    ) -> list[Lines]:
        """Go on behind the given tokens, a start token first; `header` is theirs, if they have one.

        Raises UserError where the model's weights are broken.
        """
        rows = [_Row(length, header) for length in lengths]
        tokens = [list(given) for _ in rows]
        for mine, its in zip(self._place, place, strict=True):
            mine.copy_(its)
        self.read([self._fitting(given)])
        if not self._logits.isfinite().all():
            raise UserError("the model's weights are broken: it gives no numbers; use another checkpoint")
        while not all(row.is_done for row in rows):
            if self.decoder.room == 0:
                self.read([head + latest for head, latest in map(self._latest, tokens)])
            for row, ids, drawn in zip(rows, tokens, self.draw_some(), strict=True):
                ids += drawn
                for token in drawn:
                    row.add(self.grammar.texts[token])
        return [Lines(row.text, row.notes, row.now) for row in rows]

    def read(self, ids: list[list[int]]) -> None:
        """Let the model read documents from their beginnings: one for each row, or one for all."""
        self._logits.copy_(self.decoder.read(torch.tensor(ids, device=self.decoder.device)))

    def _fitting(self, ids: list[int]) -> list[int]:
        """All tokens of a document, or its header and as many of its latest lines as leave room."""
        if len(ids) < self.decoder.room:
            return ids
        head, latest = self._latest(ids)
        ends = (n for n, token in enumerate(latest[:-1], start=1) if self.grammar.texts[token].endswith("\n"))
        return head + latest[next(ends, 0) :]

    def _latest(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Start token and header, and the latest tokens; together as many as of any other document of the batch.

        The header goes without its key: that is the pitch of a note no longer read.
        """
        room = max(int(self.decoder.model.config.block_size * KEPT), 1)
        end = next((n for n, token in enumerate(ids, start=1) if self.grammar.texts[token].endswith("\n")), 1)
        header = "".join(self.grammar.texts[token] for token in ids[:end])
        head = [START_ID, *self.tokenizer.encode(without_key(header)).ids] if header.startswith("#") else [START_ID]
        head = head[: room // 2]
        return head, ids[len(head) - room :]

    def draw_some(self) -> list[list[int]]:
        """As many more tokens of each row as are drawn between two looks."""
        count = min(self._look, self.decoder.room)
        self._look = min(2 * self._look, TOKENS_A_LOOK)
        uniform = torch.stack([torch.rand(count, generator=random) for random in self._random])
        self._uniform[:, :count] = uniform
        self._at.zero_()
        for _ in range(count):
            if self._logits.is_cuda:
                self._replay()
            else:
                self._step()
        return self._drawn[:, :count].tolist()

    def _step(self) -> None:
        """Draw a token of each row and let the model read it: nothing here waits for the device."""
        u = self._uniform.index_select(1, self._at)[:, 0]
        token = draw(self._logits, self.grammar.allowed(self._place), self.drawing, u)
        self._drawn.index_copy_(1, self._at, token[:, None])
        for mine, its in zip(self._place, self.grammar.advance(self._place, token), strict=True):
            mine.copy_(its)
        self._logits.copy_(self.decoder.step(token.to(self.decoder.device)))
        self._at += 1

    def _replay(self) -> None:
        """The step as a CUDA graph, captured where none reads as much of the cache as is needed now."""
        cache = self.decoder.cache
        self.decoder.span = min(-(-(cache.length + 1) // SPAN) * SPAN, self.decoder.model.config.block_size)
        if self.decoder.span not in self._graphs:
            self._graphs[self.decoder.span] = self._capture()
        self._graphs[self.decoder.span].replay()
        cache.length += 1

    def _capture(self) -> torch.cuda.CUDAGraph:
        """What a step does, to be done again and again. State is left as it was: trial steps are undone."""
        torch.cuda.set_device(self.decoder.device)  # of several; streams and graphs are the current one's
        state = (self._logits, *self._place, self._at, self.decoder.position)
        length, before = self.decoder.cache.length, [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are loaded, and chosen, before anything is captured
            for _ in range(2):
                self._step()
                for tensor, its in zip(state, before, strict=True):
                    tensor.copy_(its)
                self.decoder.cache.length = length
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a trainer's other threads may use the device
            self._step()
        self.decoder.cache.length = length
        return graph


def draw(logits: Tensor, allowed: Tensor, drawing: Drawing, uniform: Tensor) -> Tensor:
    """A token (B,) from each row of logits (B, V), of those allowed (B, V), by a random number in 0..1 each, (B,).

    The draw looks the number up in the cumulated probabilities. In float64, as the last of them must not be reached.
    """
    logits = logits.masked_fill(~allowed, -torch.inf)
    if drawing.temperature == 0:
        return logits.argmax(-1)
    logits = logits / drawing.temperature
    if drawing.top_k and drawing.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(drawing.top_k).values[:, -1:], -torch.inf)
    if drawing.top_p is not None and drawing.top_p < 1:
        ordered = logits.sort(dim=-1, descending=True).values
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[:, 0] = -1  # the likeliest always stays
        least = ordered.masked_fill(before >= drawing.top_p, torch.inf).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -torch.inf)
    probability = logits.softmax(-1)
    if drawing.min_p:
        probability = probability * (probability >= drawing.min_p * probability.amax(-1, keepdim=True))
    cumulated = probability.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulated, uniform.double()[:, None] * cumulated[:, -1:], right=True)[:, 0]


class _Row:
    """A document in the making, as far as its lines are complete."""

    def __init__(self, length: Length, header: Header | None) -> None:
        self.text, self.notes, self.now, self.is_done = "", 0, 0, False
        self._line, self._length = "", length
        self._most_notes = length.notes or (MAX_NOTES if not length.is_given else None)
        self._until = length.in_steps(header) if header else None

    def add(self, text: str) -> None:
        """Take one more token's text: "" for the end."""
        if self.is_done:
            return
        self._line += text
        if not text:
            self.is_done = True
        elif text.endswith("\n"):
            line, self._line = self._line, ""
            if line.startswith("#"):
                self.text += line
                self._until = self._length.in_steps(read_header(line))
                return
            *notes, time = line.removesuffix("\n").split("|")
            self.text += line
            self.notes += len(notes)
            self.now += steps_of(time)
            enough = self._most_notes is not None and self.notes >= self._most_notes
            self.is_done = enough or (self._until is not None and self.now >= self._until)
