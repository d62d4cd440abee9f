"""How fast takes are written, beside nanoGPT's `generate` on a model of GPT-2's shape with the same weights.

Example: python bench/sample.py --nanogpt /path/to/nanoGPT

nanoGPT makes one take at a time, and reads the whole context anew for each token. Ours includes the grammar. The
weights are random: speed does not depend on them. Every kind of ours has its turn in each round; the best counts,
and nanoGPT's best likewise.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import nanogpt

from midigpt.files import parse_arguments, write_json
from train import machine

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from midigpt.decoder import Weights
    from midigpt.model import GPT

PROMPT = 512  # tokens
BASE = {"type": "qwen3", "block_size": 1024, "n_layer": 12, "n_head": 12, "n_kv_head": 4, "n_embd": 768}
BASE_TAKES = 256


@dataclass(frozen=True)
class Args:
    nanogpt: Path
    """A checkout of nanoGPT."""
    tokenizer: Path
    """Any tokenizer.json of 4,096 tokens: make tokenizer ARGS="--vocab-size 4096"."""
    tokens: int = 1024
    """A take's tokens, the start token included."""
    rounds: int = 3
    """How often each of ours has its turn."""
    json: Path | None = None
    """Also write all figures to this file."""


def main(args: Args) -> None:
    import torch
    from tokenizers import Tokenizer

    from midigpt.model import ModelConfig, build_model

    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    shape: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "block_size": args.tokens}
    config = ModelConfig(type="gpt2", **shape, n_layer=6, n_head=6, n_kv_head=6, n_embd=384, n_hidden=1536)
    ours = build_model(config).eval()
    parameters = ours.parameter_count()
    here = machine()
    print(f"{here}\n{parameters / 1e6:.1f} M parameters, {args.tokens} tokens a take")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    speed = {"nanoGPT generate": nanogpt_speed(args, ours, device)}
    default = build_model(replace(config, type="qwen3", n_kv_head=2, n_hidden=1024)).eval()
    kinds: list[Weights] = ["float32", "bfloat16", "int8"] if device == "cpu" else ["float32", "bfloat16"]
    runs = {f"gpt2, {kind}, takes: {takes}": (ours, kind, takes) for kind in kinds for takes in (1, 8)}
    runs |= {f"qwen3, {kinds[-1]}, takes: {takes}": (default, kinds[-1], takes) for takes in (1, 8)}
    for _ in range(args.rounds):
        for name, (model, kind, takes) in runs.items():
            figure = our_speed(model.to(device), tokenizer, kind, takes, args.tokens)
            speed[name] = max(speed.get(name, 0.0), figure)
    peer = speed["nanoGPT generate"]
    for name, figure in speed.items():
        print(f"{name:28} {figure:10,.0f} tokens/s {figure / peer:8.1f} x")
    waits = latency(ours, tokenizer, args.rounds)
    for name, seconds in waits.items():
        print(f"{name:44} {seconds * 1000:8.0f} ms")
    figures = {"machine": here, "parameters": parameters, "tokens_per_second": speed, "seconds": waits}
    if device == "cuda":
        figures["base"] = bandwidth(tokenizer)
    if args.json:
        write_json(args.json, figures)


def nanogpt_speed(args: Args, ours: "GPT", device: str) -> float:
    """Tokens per second of one take by nanoGPT with our weights, which is checked to give the same logits."""
    import torch

    peer = nanogpt.with_weights(args.nanogpt, ours).to(device)
    tokens = torch.randint(0, ours.config.vocab_size, (1, 50))
    with torch.inference_mode():
        theirs = peer(tokens.to(device))[0][:, -1].cpu()
        torch.testing.assert_close(theirs, ours(tokens, torch.arange(50)[None])[:, -1], atol=1e-3, rtol=1e-3)
        begun = torch.zeros(1, 1, dtype=torch.long, device=device)
        peer.generate(begun, 8)
        return (args.tokens - 1) / timed(lambda: peer.generate(begun, args.tokens - 1))


def our_speed(model: "GPT", tokenizer: "Tokenizer", weights: "Weights", takes: int, tokens: int) -> float:
    """Tokens per second of all takes together, without an end."""
    from midigpt.decoder import Decoder, Prepared
    from midigpt.generate import Drawing, Writer, drawing_device
    from midigpt.grammar import Grammar

    grammar = Grammar(tokenizer, may_end=False, device=drawing_device(model))
    writer = Writer(Decoder(Prepared(model, weights), takes), tokenizer, grammar, Drawing())
    drawn = 0

    def write() -> None:
        nonlocal drawn
        writer.read([[(0, 0)]])
        while drawn < tokens - 1:
            drawn += len(writer.draw_some()[0])

    seconds = timed(write)
    return takes * drawn / seconds


def latency(model: "GPT", tokenizer: "Tokenizer", rounds: int) -> dict[str, float]:
    """Seconds until a loaded model has written the first notes behind a prompt, and until it is loaded."""
    from midigpt import automaton, grammar
    from midigpt.checkpoint import load_checkpoint, save_checkpoint
    from midigpt.decoder import Prepared
    from midigpt.generate import Drawing, Length, go_on
    from midigpt.language import TRACKS

    line = "0+10|4+10|3+10|1/1\n2-9:1/2|1/1\n"
    header = "# program=0 tempo=120 meter=4/4\n"
    lines = (PROMPT - 20) // len(tokenizer.encode(line).ids)
    document = header + line * lines

    with TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(tokenizer.to_str())
        run = {"language": str(TRACKS)}
        save_checkpoint(Path(folder) / "model", model.cpu(), Path(folder) / "tokenizer.json", run)
        loading = [timed(lambda: load_checkpoint(Path(folder) / "model")) for _ in range(rounds)]

    def first_note() -> None:
        for kept in (automaton.write_out, automaton._units, automaton._may_be_time, grammar._trie):
            kept.cache_clear()  # as in a new process
        go_on(Prepared(model), tokenizer, TRACKS, Drawing(), document, {"": 60}, [Length(notes=1)])

    first = [timed(first_note) for _ in range(rounds)]
    tokens = len(tokenizer.encode(document).ids)
    return {
        f"first note behind a prompt of {tokens} tokens": statistics.median(first),
        "loading the model (CPU)": statistics.median(loading),
    }


def bandwidth(tokenizer: "Tokenizer") -> dict[str, float]:
    """Many takes of `base` on a GPU beside what its memory allows.

    A step reads each weight once and, for each take, the keys and values of the tokens before: on average of half
    a context. The memory's bandwidth is that of a copy.
    """
    import torch

    from midigpt.model import ModelConfig, build_model

    config = ModelConfig(**BASE, vocab_size=tokenizer.get_vocab_size(), n_hidden=2048)
    model = build_model(config).eval().cuda()
    figure = our_speed(model, tokenizer, "bfloat16", BASE_TAKES, config.block_size)
    weights = 2 * model.parameter_count()
    kept = 2 * 2 * config.n_layer * config.n_kv_head * config.head_dim * config.block_size / 2 * BASE_TAKES
    block = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    copy = 2 * (1 << 30) / min(timed(lambda: block.clone()) for _ in range(5))
    limit = copy / (weights + kept) * BASE_TAKES
    print(
        f"base, {BASE_TAKES} takes: {figure:,.0f} tokens/s, {figure / limit:.0%} of what memory allows, bandwidth /"
        f" (weights + keys and values) x takes = {copy / 1e9:,.0f} GB/s / ({weights / 1e9:.2f} + {kept / 1e9:.2f} GB)"
        f" x {BASE_TAKES} = {limit:,.0f}"
    )
    return {"tokens_per_second": figure, "limit": limit}


def timed(work: Callable[[], object]) -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
