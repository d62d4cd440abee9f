"""How the trainer does beside nanoGPT: speed on the CPU and on a GPU, what is learned of the same tokens; and what
each preset takes. nanoGPT is run here too, from a checkout on this machine.

Example: python bench/train.py --nanogpt /path/to/nanoGPT --root FOLDER --only speed learning --json figures.json

FOLDER is a working folder with packed data; runs that were finished are kept in FOLDER/bench (or --work) and not
made again. See the files beside this one: train_speed.py, train_learning.py, train_presets.py, nanogpt.py.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from midigpt.files import parse_arguments, write_json


@dataclass(frozen=True)
class Args:
    nanogpt: Path
    """A checkout of nanoGPT."""
    root: Path = Path()
    """A working folder with packed data."""
    only: tuple[Literal["speed", "learning", "gpu", "presets"], ...] = ("speed", "learning", "gpu", "presets")
    """Which parts."""
    json: Path | None = None
    """Also write all figures to this file."""
    work: Path | None = None
    """Where learning keeps its runs; by itself FOLDER/bench."""
    rounds: int = 10
    """speed: how often each has its turn."""
    preset: str = "demo"
    """learning: the size of both."""
    steps: int = 600
    """learning: steps of nanoGPT; ours makes half as many."""
    learning_rates: tuple[float, ...] = (1.5e-3, 3e-3, 6e-3)
    """learning: nanoGPT's."""
    seeds: int = 3
    """learning: runs of each."""
    equal_tokens: bool = False
    """learning: ours with all of the tokens as well."""
    device: str = "cpu"
    """learning, presets: where to train."""
    presets: tuple[str, ...] = ()
    """presets: which; by itself all."""


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # of others, while it started
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def table(heads: str, rows: list[list[object]]) -> None:
    """A Markdown table; the first column is text."""
    columns = heads.split(" | ")
    print("| " + " | ".join(columns) + " |\n|---|" + "---:|" * (len(columns) - 1))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)


def speed(args: Args) -> dict[str, Any]:
    from train_speed import compare_on_cpu

    result = compare_on_cpu(args.nanogpt, args.root, args.rounds)
    shape = result["shape"]
    print(
        f"Train steps on the CPU, {shape['n_layer']} layers, {shape['n_embd']} wide, block {shape['block_size']}, batch"
        f" {shape['batch_size']}, vocabulary {shape['vocab_size']}; nanoGPT in float32 as its train.py has it there,"
        f" ours in {'bfloat16' if result['bf16'] else 'float32'}; median of {args.rounds} rounds in turn\n"
    )
    rows = result["rows"].items()
    table(
        "| M parameters | tokens/s | slowest and fastest round | times nanoGPT",
        [
            [
                name if name == "nanoGPT" else f"midigpt, {name}",
                f"{row['parameters'] / 1e6:.2f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{min(row['rounds']):,.0f} to {max(row['rounds']):,.0f}",
                f"{row['ratio']:.2f}",
            ]
            for name, row in rows
        ],
    )
    return result


def learning(args: Args) -> dict[str, Any]:
    from train_learning import Plan, compare

    work = args.work or args.root / "bench"
    plan = Plan(args.nanogpt, args.root, work, args.preset, args.device, args.steps, args.learning_rates, args.seeds)

    def report(row: dict[str, Any]) -> None:
        bits = f"{row['bits_per_note']:.3f} bits per note"
        result = f"{row['nats_per_token']:.4f} nats per token, {bits}"
        print(f"  {row['run']}: {result}, {row['minutes']:.1f} min", flush=True)

    result = compare(plan, args.equal_tokens, report)
    counts, tokens, ours = result["parameters"], result["tokens"], result["midigpt"]
    print(
        f"\n{args.preset}: nanoGPT {counts['nanoGPT']} parameters, {tokens['nanoGPT']} tokens; midigpt"
        f" {counts['midigpt']} parameters, {tokens['midigpt']} tokens; mean of {args.seeds} seeds\n"
    )

    def line(name: str, row: dict[str, float]) -> list[object]:
        return [name, f"{row['nats_per_token']:.4f}", f"{row['spread']:.4f}", f"{row['bits_per_note']:.3f}"]

    table(
        "| nats per token | standard deviation | bits per note",
        [line(f"nanoGPT, learning rate {rate}", row) for rate, row in result["nanoGPT"].items()]
        + [line(f"midigpt, {steps} steps", row) for steps, row in ours.items()],
    )
    found = result["verdict"]
    print(
        f"nanoGPT's best learning rate is {found['best_learning_rate']:g},"
        f" {'inside' if found['is_inside'] else 'AT THE EDGE OF'} those tried; midigpt with half the tokens ends"
        f" {found['difference']:+.4f} nats per token from it: {'at or below' if found['holds'] else 'ABOVE'}\n"
    )
    return result


def gpu(args: Args) -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        print("No CUDA device here: the speed on a GPU was not measured.\n")
        return None
    from train_learning import preset_shape
    from train_speed import compare_on_gpu

    from midigpt.devices import peak_flops
    from midigpt.sides import load_side

    peak, source = peak_flops("cuda")
    vocab_size = load_side(args.root, "train")[1]["vocab_size"]
    result = compare_on_gpu(args.nanogpt, preset_shape("small", vocab_size))
    print(
        f"{torch.cuda.get_device_name()}, bfloat16, compiled. MFU is (6 N + 12 L C T) FLOP a token, N without"
        f" position embeddings (PaLM, arXiv 2204.02311, appendix B), of {peak / 1e12:.0f} TFLOP/s, {source}\n"
    )
    flops_per_token = next(row["flops_per_second"] / row["tokens_per_second"] for row in result["gpt2"])
    rows: list[list[object]] = []
    for row in result["nanogpt"]:
        mfu = row["tokens_per_second"] * flops_per_token / peak
        rows.append(["nanoGPT's bench.py", row["batch_size"], f"{row['tokens_per_second']:,.0f}", f"{mfu:.1%}", "", ""])
    for name in ("gpt2", "small"):
        for row in result[name]:
            rows.append([f"midigpt, {name}", row["batch_size"], *gpu_cells(row, peak)])
    table("| batch | tokens/s | MFU | compiling s | GiB", rows)
    print(f"GPT-2 124 M at its best batch: {result['ratio']:.2f} times nanoGPT's bench.py at its batch\n")
    return {"peak_flops": peak, **result}


def gpu_cells(row: dict[str, Any], peak: float) -> list[str]:
    if "out_of_memory" in row:
        return ["out of memory", "", "", ""]
    memory = "" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
    mfu = f"{row['flops_per_second'] / peak:.1%}"
    return [f"{row['tokens_per_second']:,.0f}", mfu, f"{row['compile_seconds']:.1f}", memory]


def presets(args: Args) -> dict[str, Any]:
    import train_presets

    names = args.presets or train_presets.presets()
    of_torch = train_presets.import_seconds()
    results = train_presets.start_presets(args.root, names, args.device)
    print(f"Three steps and an evaluation, on {args.device}; importing torch alone takes {of_torch:.1f} s\n")

    def cells(row: dict[str, Any]) -> list[object]:
        first, memory = row["first_step_seconds"], f"{row['memory_mib']:,.0f}"
        begin: list[object] = [row["preset"], row["batch_size"]]
        if row["exit_code"] or first is None:
            return [*begin, f"failed: {row['error'].strip().splitlines()[-1:]}", "", "", ""]
        return [*begin, memory, f"{first:.1f}", f"{first - of_torch:.1f}", f"{row['seconds']:.1f}"]

    table(
        "| batch | peak MiB | s to the first step | without torch's import | s in all", [cells(row) for row in results]
    )
    return {"import_torch_seconds": of_torch, "presets": results}


PARTS = {"speed": speed, "learning": learning, "gpu": gpu, "presets": presets}


def main(args: Args) -> None:
    import nanogpt

    nanogpt.check(args.nanogpt)
    figures: dict[str, Any] = {"machine": machine()}
    print(", ".join(f"{name} {value}" for name, value in figures["machine"].items()) + "\n", flush=True)
    for name in args.only:
        figures[name] = PARTS[name](args)
        if args.json:
            write_json(args.json, figures)


if __name__ == "__main__":
    main(parse_arguments(Args, __doc__))
