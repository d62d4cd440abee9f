"""The model: the same logits as transformers' Qwen3, with and without a cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from midigpt.files import UserError
from midigpt.generate import Drawing, Writer, write_header, write_lines
from midigpt.language import ALPHABET, Header, decode, read_header
from midigpt.model import GPT, Cache, ModelConfig
from midigpt.tokenizer import START, START_ID, new_tokenizer

CONFIG = ModelConfig(vocab_size=len(ALPHABET) + 1, block_size=32, n_layer=2, n_head=2, n_embd=32, n_hidden=64)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokenizer, trainer = new_tokenizer(CONFIG.vocab_size)
    tokenizer.train_from_iterator(["0+10|1/1\n"], trainer)
    return tokenizer


@pytest.fixture
def checkpoint(model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save_checkpoint(tmp_path / "best", model, tmp_path / "tokenizer.json", {"step": 1})
    return tmp_path / "best"


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def test_transformers_opens_a_checkpoint_and_gives_the_same_logits(model: GPT, checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = random_tokens(3, 32)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=1e-4, rtol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.bos_token == START and tokenizer.bos_token_id == START_ID
    assert tokenizer.decode(tokenizer.encode("0+10|1/1\n")) == "0+10|1/1\n"


def test_a_checkpoint_gives_back_the_model(model: GPT, checkpoint: Path) -> None:
    again, _, run = load_checkpoint(checkpoint)
    assert again.config == CONFIG and run["step"] == 1
    assert torch.equal(again(random_tokens(1, 8)), model(random_tokens(1, 8)))


def test_a_kill_between_the_renamings_of_saving_loses_nothing(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name(".best.old"))
    found = find_checkpoint(checkpoint)
    assert found and load_checkpoint(found)


@torch.no_grad()
def test_the_cache_gives_the_logits_of_the_full_forward(model: GPT) -> None:
    tokens = random_tokens(2, 20)
    cache = Cache(CONFIG, 2, torch.device("cpu"))
    parts = [model(tokens[:, :7], cache=cache)] + [model(tokens[:, t : t + 1], cache=cache) for t in range(7, 20)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_no_token_sees_a_later_one(model: GPT) -> None:
    tokens = random_tokens(1, 20)
    changed = tokens.clone()
    changed[0, 12:] = 5
    assert torch.equal(model(tokens)[0, :12], model(changed)[0, :12])


@torch.no_grad()
def test_positions_are_an_argument_and_count_only_by_their_distance(model: GPT) -> None:
    tokens = random_tokens(1, 10)
    moved = model(tokens, positions=torch.arange(100, 110)[None])
    torch.testing.assert_close(moved, model(tokens), atol=1e-4, rtol=1e-4)
    stretched = model(tokens, positions=3 * torch.arange(10)[None])
    assert not torch.allclose(stretched, model(tokens), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("given", "more"), [(10, 5), (30, 40)])
def test_rewinding_forgets_also_where_the_context_moved_on(
    model: GPT, tokenizer: Tokenizer, given: int, more: int
) -> None:
    writer = Writer(model, tokenizer, Drawing())
    writer.read(random_tokens(given).tolist())
    mark, before = writer.mark(), writer.logits
    for token in random_tokens(more).tolist():
        writer.read([token])
    writer.rewind(mark)
    assert writer.tokens == random_tokens(given).tolist()
    assert torch.equal(writer.logits, before)
    writer.read([3])
    expected = model(torch.tensor([[*random_tokens(given).tolist(), 3]]))[0, -1]
    torch.testing.assert_close(writer.logits, expected, atol=1e-5, rtol=1e-4)


class Scripted(GPT):
    """A model that would go on with a text, over and over; the surer, the less often with anything else."""

    def __init__(self, tokenizer: Tokenizer, text: str, sureness: float) -> None:
        super().__init__(replace(CONFIG, block_size=2000))
        self.script = tokenizer.encode(text).ids if sureness < 20 else [*tokenizer.encode(text).ids, START_ID]
        self.sureness = sureness
        self.calls = 0

    def forward(self, tokens: Tensor, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        assert cache is not None
        self.calls += 1
        cache.length += tokens.shape[1]
        logits = torch.zeros(*tokens.shape, CONFIG.vocab_size)
        logits[0, -1, self.script[(cache.length - 1) % len(self.script)]] = self.sureness
        return logits


def test_a_document_is_written_until_its_end(tokenizer: Tokenizer) -> None:
    text = "# program=3 tempo=90 meter=3/4 key=62\n0+10|2+10|1/1\n2-9|1/2\n"
    writer = Writer(Scripted(tokenizer, text, sureness=100), tokenizer, Drawing(seed=1))
    header = write_header(writer, {})
    lines = write_lines(writer, read_header(header))
    assert header + lines.text == text
    assert (lines.notes, lines.end) == (3, 36)


def test_what_breaks_the_language_is_drawn_again(tokenizer: Tokenizer) -> None:
    model = Scripted(tokenizer, "9+9|1/1\n", sureness=5)  # right four times in five a token
    writer = Writer(model, tokenizer, Drawing(seed=2))
    writer.read([START_ID])
    lines = write_lines(writer, Header(key=20), notes=10)
    score = decode(["# key=20\n" + lines.text])
    assert score.notes == lines.notes >= 10
    assert model.calls > 1.2 * len(tokenizer.encode(lines.text))


def test_at_temperature_0_and_at_top_1_the_likeliest_is_written(tokenizer: Tokenizer) -> None:
    for drawing in (Drawing(temperature=0), Drawing(temperature=5, top_k=1)):
        writer = Writer(Scripted(tokenizer, "0+9|1/1\n", sureness=0.1), tokenizer, drawing)
        writer.read([START_ID])
        assert write_lines(writer, Header(), notes=3).text == "0+9|1/1\n" * 3


@pytest.mark.parametrize("line", ["1/1\n", "0+10|1/7\n", "0+10|999/1\n", "0+10:999/1|1/1\n"])
def test_endless_rests_and_times_off_the_grid_are_not_written(tokenizer: Tokenizer, line: str) -> None:
    model = Scripted(tokenizer, line, sureness=19)
    writer = Writer(model, tokenizer, Drawing())
    writer.read([START_ID])
    with pytest.raises(UserError, match="train it for longer"):
        write_lines(writer, Header(), given="0+10|1/1\n")
    assert model.calls == 1 + 100 * len(tokenizer.encode(line))  # none of 100 tries was taken


def test_a_kept_header_stays_in_view(model: GPT, tokenizer: Tokenizer) -> None:
    writer = Writer(model, tokenizer, Drawing())
    writer.head = 3
    writer.read([1, 2, 3, *[5] * 60])
    seen = model(torch.tensor([[1, 2, 3, *[5] * (int(0.75 * 32) - 3)]]))[0, -1]
    torch.testing.assert_close(writer.logits, seen, atol=1e-5, rtol=1e-4)


def test_a_model_that_never_writes_the_language_is_told(tokenizer: Tokenizer) -> None:
    writer = Writer(Scripted(tokenizer, "|", sureness=19), tokenizer, Drawing())
    writer.read([START_ID])
    with pytest.raises(UserError, match="train it for longer"):
        write_lines(writer, Header(), notes=1)
