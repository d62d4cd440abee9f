"""The model writes music: documents, or more lines of given ones, drawn token by token, a batch at a time.

The grammar leaves out every token that would break the language, so every take can be decoded. Each take has its
own random numbers, one a token, so that its draws depend on its seed alone.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

import torch
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.automaton import DRUM_KEYS, MARKS, PIANO
from midigpt.bpe import START_ID
from midigpt.decoder import Decoder, Prepared, Weights
from midigpt.files import UserError
from midigpt.grammar import Grammar, Place
from midigpt.header import Header, LanguageError, keep_fields, read_header, split_header
from midigpt.language import Language, decode
from midigpt.model import GPT
from midigpt.normal import GRID, MAX_TICKS
from midigpt.positions import token_positions
from midigpt.tokenizer import document_tokens, line_steps

MAX_NOTES = 1000  # of a take that the model does not end
AT_ONCE, AT_ONCE_ON_GPU = 64, 256  # takes; more are written in turns
TOKENS_A_NOTE = 50  # that are waited for, and no more: lines without rules may have no notes
LONGEST = 1 << 22  # grid steps of a take without rules, a day at 120 beats a minute: MIDI files can't hold any silence
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


Placed = tuple[int, int]  # a token and its position (midigpt/positions.py)


def compose(
    model: GPT,
    tokenizer: Tokenizer,
    language: Language,
    drawing: Drawing,
    wishes: dict[str, str] | None = None,
    length: Length = Length(),
    takes: int = 1,
    keys: range = PIANO,
    weights: Weights | None = None,
    marks: Sequence[str] = MARKS,
) -> list[str]:
    """Documents from nothing, with the wished fields of the header; the others are drawn.

    Notes that are not drums stay within `keys`. In the song layout parts are those with the given marks. Takes in an
    encoding that has no grammar here can come out as no document; these are left out.
    """
    device = drawing_device(model)
    grammar = Grammar(tokenizer, language, wishes, not length.is_given, keys, marks=marks, device=device)
    prepared, start = Prepared(model, weights), placed(tokenizer, grammar, "")
    written = _write(prepared, tokenizer, grammar, drawing, start, grammar.start, [length] * takes)
    return [its.text for its in written if not grammar.is_free or _readable(its.text, language)]


def go_on(
    prepared: Prepared,
    tokenizer: Tokenizer,
    language: Language,
    drawing: Drawing,
    document: str,
    references: Mapping[str, int],
    lengths: Sequence[Length],
    keys: range | Mapping[str, range] = range(128),
    drums: Set[int] = DRUM_KEYS,
) -> list[Lines]:
    """More lines of a document, at least one, for each length; the first begins where the document's last line ends.

    What comes counts from `references`: by the mark of each part that may go on, "" in the track layout, the pitch of
    its first note in its last line, or the anchor. It stays within `keys`, which can be given by mark as well, drums
    within `drums`. The header's `key`, of which the lines say nothing, is not read: so a document moved to other keys
    is continued in the same way. Either all lengths are given, or none is. Of an encoding that has no grammar here what
    comes is cut before the first line that can't be read.
    """
    header, body = split_header(document)
    read = read_header(header)
    behind = "d" if read.is_drum else ""
    if language.is_song:
        last = re.search(r"[d.\d]+$", body.rpartition("@")[0])
        behind = last[0] if last and last[0] in references else ""
    may_end, device = not lengths[0].is_given, drawing_device(prepared.model)
    grammar = Grammar(tokenizer, language, None, may_end, keys, drums, [*references], behind, device)
    given = placed(tokenizer, grammar, without_key(header) + body)
    end = sum(time_of(line, language) for line in body.splitlines())
    place = partial(grammar.start, references=references, time=end)
    written = _write(prepared, tokenizer, grammar, drawing, given, place, lengths, read)
    return [_cut(lines, document, language) for lines in written] if grammar.is_free else written


def placed(tokenizer: Tokenizer, grammar: Grammar, document: str) -> list[Placed]:
    """The tokens of a document in the grammar's language with their positions, a start token first."""
    ids, times = document_tokens(tokenizer, grammar.language, document)
    positions = token_positions([0, *times], ["", *(grammar.texts[token] for token in ids)])
    return list(zip([START_ID, *ids], positions, strict=True))


def _write(
    prepared: Prepared,
    tokenizer: Tokenizer,
    grammar: Grammar,
    drawing: Drawing,
    given: list[Placed],
    place: Callable[[int], Place],
    lengths: Sequence[Length],
    header: Header | None = None,
) -> list[Lines]:
    """Go on behind the same tokens for each length, as many takes at once as suit the device."""
    most = AT_ONCE_ON_GPU if prepared.device.type == "cuda" else AT_ONCE
    written = []
    for first in range(0, len(lengths), most):
        some = lengths[first : first + most]
        writer = Writer(Decoder(prepared, len(some)), tokenizer, grammar, drawing, first)
        written += writer.write(given, place(len(some)), some, header)
    return written


def _readable(document: str, language: Language) -> bool:
    """Whether a MIDI file can be made of a document in an encoding without rules."""
    try:
        return decode([document], language).end <= LONGEST
    except LanguageError:
        return False


def _cut(written: Lines, document: str, language: Language) -> Lines:
    """Lines up to the first that can't be read behind a document."""
    lines = written.text.splitlines(keepends=True)
    kept = bisect_left(
        range(1, len(lines) + 1), True, key=lambda n: not _readable(document + "".join(lines[:n]), language)
    )
    steps = sum(time_of(line, language) for line in lines[:kept])
    text = "".join(lines[:kept])
    return Lines(text, language.module.count_notes(text), steps)


def time_of(line: str, language: Language) -> int:
    """The time until the next line, in grid steps; 0 for the header, and for what is no line."""
    try:
        return min(max(line_steps(line, language), 0), MAX_TICKS)
    except UserError:
        return 0


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
        self._positions = torch.zeros_like(self._drawn)  # of those drawn
        self._at = torch.zeros(1, dtype=torch.long, device=device)
        self._look = FIRST_LOOK
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}  # of steps, by the span of the cache that they read
        self._lines = [""] * len(rows)  # that have begun, where the grammar does not know the time

    @torch.inference_mode()
    def write(
        self, given: list[Placed], place: Place, lengths: Sequence[Length], header: Header | None = None
    ) -> list[Lines]:
        """Go on behind the given tokens, a start token first; `header` is theirs, if they have one.

        Raises UserError where the model's weights are broken.
        """
        rows = [_Row(length, header, self.grammar.language) for length in lengths]
        tokens = [list(given) for _ in rows]
        for mine, its in zip(self._place, place, strict=True):
            mine.copy_(its)
        self._lines = [""] * len(rows)
        self.read([self._fitting(given)])
        if not self._logits.isfinite().all():
            raise UserError("the model's weights are broken: it gives no numbers; use another checkpoint")
        while not all(row.is_done for row in rows):
            if self.decoder.room == 0:
                self.read([_joined(*self._latest(row)) for row in tokens])
            for row, ids, drawn in zip(rows, tokens, self.draw_some(), strict=True):
                ids += drawn
                for token, _ in drawn:
                    row.add(self.grammar.texts[token])
        return [Lines(row.text, row.notes, row.now) for row in rows]

    def read(self, documents: list[list[Placed]]) -> None:
        """Let the model read documents from their beginnings: one for each row, or one for all."""
        tokens, positions = torch.tensor(documents, device=self.decoder.device).unbind(-1)
        self._logits.copy_(self.decoder.read(tokens, positions))

    def _fitting(self, tokens: list[Placed]) -> list[Placed]:
        """All tokens of a document, or its header and as many of its latest lines as leave room."""
        if len(tokens) < self.decoder.room:
            return tokens
        head, latest = self._latest(tokens)
        ends = (n for n, (token, _) in enumerate(latest[:-1], start=1) if self.grammar.texts[token].endswith("\n"))
        return _joined(head, latest[next(ends, 0) :])

    def _latest(self, tokens: list[Placed]) -> tuple[list[Placed], list[Placed]]:
        """Start token and header, and the latest tokens; together as many as of any other document of the batch.

        The header goes without its key, of which the lines say nothing.
        """
        room = max(int(self.decoder.model.config.block_size * KEPT), 1)
        texts = (self.grammar.texts[token] for token, _ in tokens)
        end = next((n for n, text in enumerate(texts, start=1) if text.endswith("\n")), 1)
        header = "".join(self.grammar.texts[token] for token, _ in tokens[:end])
        header = without_key(header) if header.startswith("#") else ""
        head = placed(self.tokenizer, self.grammar, header)[: room // 2]
        return head, tokens[len(head) - room :]

    def draw_some(self) -> list[list[Placed]]:
        """As many more tokens of each row as are drawn between two looks."""
        count = min(self._look, self.decoder.room)
        self._look = min(2 * self._look, TOKENS_A_LOOK)
        uniform = torch.stack([torch.rand(count, generator=random) for random in self._random])
        self._uniform[:, :count] = uniform
        self._at.zero_()
        for number in range(count):
            if self._logits.is_cuda:
                self._replay()
            else:
                self._step()
            if self.grammar.is_free:
                self._keep_time(self._drawn[:, number].tolist())
        both = torch.stack([self._drawn, self._positions], dim=-1)[:, :count]
        return [[(token, position) for token, position in row] for row in both.tolist()]

    def _keep_time(self, tokens: list[int]) -> None:
        """Tell the place the time behind one more token of each row, where the grammar does not know it."""
        for row, token in enumerate(tokens):
            self._lines[row] += self.grammar.texts[token]
            if self._lines[row].endswith("\n"):
                self._place.time[row] += time_of(mended(self._lines[row]), self.grammar.language)
                self._lines[row] = ""

    def _step(self) -> None:
        """Draw a token of each row and let the model read it: nothing here waits for the device."""
        u = self._uniform.index_select(1, self._at)[:, 0]
        token = draw(self._logits, self.grammar.allowed(self._place), self.drawing, u)
        position = self._place.position()
        self._drawn.index_copy_(1, self._at, token[:, None])
        self._positions.index_copy_(1, self._at, position[:, None])
        for mine, its in zip(self._place, self.grammar.advance(self._place, token), strict=True):
            mine.copy_(its)
        self._logits.copy_(self.decoder.step(token.to(self.decoder.device), position.to(self.decoder.device)))
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
        state = (self._logits, *self._place, self._at, self.decoder.index)
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


def _joined(head: list[Placed], latest: list[Placed]) -> list[Placed]:
    """A document without what stood between its header and its latest tokens.

    These keep their positions. The header comes to where they begin, as near as a model has seen it in training.
    """
    begin = latest[0][1] if latest else 0
    return [(token, begin + position) for token, position in head] + latest


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

    def __init__(self, length: Length, header: Header | None, language: Language) -> None:
        self.text, self.notes, self.now, self.is_done = "", 0, 0, False
        self._line, self._length, self._language, self._has_header = "", length, language, header is not None
        self._most_notes = length.notes or (MAX_NOTES if not length.is_given else None)
        self._until = length.in_steps(header) if header else None
        self._tokens_left = TOKENS_A_NOTE * max(MAX_NOTES, length.notes or 0)

    def add(self, text: str) -> None:
        """Take one more token's text: "" for the end."""
        if self.is_done:
            return
        self._line += text
        self._tokens_left -= 1
        if not text or not self._tokens_left:
            self.is_done = True
        elif text.endswith("\n"):
            line, self._line = mended(self._line), ""
            self.text += line
            if not self._has_header:
                self._has_header = True
                self._until = self._length.in_steps(read_header(line))
                return
            self.notes += self._language.module.count_notes(line)
            self.now += time_of(line, self._language)
            enough = self._most_notes is not None and self.notes >= self._most_notes
            self.is_done = enough or (self._until is not None and self.now >= self._until)


def mended(text: str) -> str:
    """A text of tokens, of which some may be bytes of a character, as the error handler "surrogateescape" has them."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
