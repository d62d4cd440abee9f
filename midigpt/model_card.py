"""A checkpoint's README.md: what the model is, what it learned from, how well it does and how to use it."""

from pathlib import PurePath
from typing import Any

import torch

from midigpt.bpe import START
from midigpt.language import LanguageError, read_language
from midigpt.model import GPT, ModelConfig
from midigpt.normal import GRID
from midigpt.positions import POSITIONS_A_STEP

_SHAPES = {"qwen3": "Qwen3", "gpt2": "GPT-2"}


def model_card(run: dict[str, Any], config: ModelConfig) -> str:
    """Markdown with the front matter that model hubs read; of run.json what is there."""
    sections = [
        _FRONT_MATTER,
        _what_it_is(run, config),
        _data(run["data"]) if run.get("data") else "",
        _training(run),
        _results(run),
        _USE,
        _transformers(run, config),
        _LIMITS,
    ]
    return "\n".join(section for section in sections if section)


_FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- midi
- music
---
"""


def _what_it_is(run: dict[str, Any], config: ModelConfig) -> str:
    with torch.device("meta"):
        parameters = GPT(config).parameter_count()
    heads = f"{config.n_head} heads"
    if config.n_kv_head != config.n_head:
        heads += f" ({config.n_kv_head} of keys and values)"
    return f"""\
# A GPT that writes music

This model writes music, or goes on with yours. It reads and writes MIDI files as text: a line for everything that
starts together, and the time until the next.

- language: `{run.get("language", "unknown")}`; midigpt {run.get("midigpt", "of unknown version")}
- shape: {_SHAPES[config.type]}, {config.n_layer} layers, {config.n_embd} wide, {heads}, {parameters:,} parameters
- sees {config.block_size:,} tokens at once, of a vocabulary of {config.vocab_size:,}
"""


def _data(data: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {side['songs']:,} | {side['documents']:,} | {side['notes']:,} | {side['tokens']:,} |"
        for name, side in (("training", data["train"]), ("held out", data["val"]))
    )
    keys = data["train"].get("keys", 1)
    in_keys = ""
    if keys > 1:
        in_keys = f"\nThe tokens are of each training document in {keys} keys; it went through one of them at a time.\n"
    return f"""\
## Data

| | songs | documents | notes | tokens |
|---|---:|---:|---:|---:|
{rows}
{in_keys}
A share of {data["val_fraction"]:g} of the songs was to be held out, drawn by seed {data["seed"]}. This
training has not touched them.
"""


def _training(run: dict[str, Any]) -> str:
    facts = []
    if "step" in run:
        facts.append(f"{run['step']:,}" + (f" of {run['max_steps']:,}" if run.get("max_steps") else "") + " steps")
    if run.get("tokens_seen") is not None:
        facts.append(f"{run['tokens_seen']:,} tokens")
    if run.get("epochs") is not None:
        facts.append(f"{run['epochs']:.2f} times through the music")
    weights = {
        "raw": "The weights are those of the last of these steps.",
        "average": "The weights are averages over the last steps of training.",
    }.get(run.get("weights", ""), "")
    settings = "\n".join(f"{name} = {value}" for name, value in _flat(run.get("config", {})))
    if origin := run.get("config", {}).get("init_from"):
        name = "/".join(PurePath(origin).parts[-2:])
        weights += f" It went on from another model ({name}), which had learned from other music."
    parts = [
        "## Training",
        ", ".join(facts) + "." if facts else "",
        weights,
        f"```\n{settings}\n```" if settings else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as names and values, nested ones as outer.inner. Of a path only the last name, as a card is public."""
    flat = []
    for name, value in settings.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}.")
        elif name != "root" and value is not None:
            flat.append((prefix + name, PurePath(value).name if isinstance(value, str) else str(value)))
    return flat


def _results(run: dict[str, Any]) -> str:
    evaluation = run.get("evaluation") or {}
    name = "average_val_bits_per_note" if run.get("weights") == "average" else "val_bits_per_note"
    bits, unigram = evaluation.get(name), run.get("unigram_bits_per_note")
    if not run.get("data", {}).get("val", {}).get("songs", 1):
        result = "No song was held out, so nothing tells how well it does."
    elif bits is None:
        result = "These weights have not been evaluated."
    else:
        result = f"A note of the held-out songs costs it **{bits:.3f} bits**, each document read from its start."
        if unigram:
            ratio = f"{unigram:.3f} (ratio {bits / unigram:.3f})"
            result += f"\nA model that knows only how frequent each token is needs {ratio}."
    return f"## How well it does\n\n{result}\n"


_USE = """\
## How to use it

In midigpt's folder (FOLDER is the one with this file); every take is a `.mid`:

```sh
python sample.py --model FOLDER --takes 5
python sample.py --model FOLDER --prompt song.mid
```

In transformers, as text, which midigpt's `scripts/decode.py` turns into a MIDI file where every line is of the
language (`sample.py` sees to that, `generate` does not):
"""


def _transformers(run: dict[str, Any], config: ModelConfig) -> str:
    if config.positions == "index":
        return _BY_INDEX
    try:
        encoding = read_language(run.get("language", "")).encoding
    except LanguageError:
        encoding = ""
    return _BY_TIME + (_POSITIONS if encoding in ("interval", "anchored", "absolute") else _POSITIONS_ELSEWHERE)


_BY_INDEX = f"""\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
start = tokenizer("{START}#", return_tensors="pt")
print(tokenizer.decode(model.generate(**start)[0], skip_special_tokens=True))
```
"""

_TIMES = "" if POSITIONS_A_STEP == 1 else f"{POSITIONS_A_STEP} times "

_BY_TIME = f"""\
Its positions count musical time: that of a token is {_TIMES}the time from the document's beginning to the token's line,
in steps of which a beat has {GRID}, and the token's place in the line, from 0. They have to be given as `position_ids`,
with an attention mask; by itself transformers would count tokens.
"""

_POSITIONS_ELSEWHERE = """\
midigpt has them: `document_tokens` in `midigpt/tokenizer.py` and `token_positions` in `midigpt/positions.py`.
"""

_POSITIONS = f"""\

```python
import re
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")

def positions(ids):
    found, line, place, now = [], "", 0, 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        found.append(now + place)
        line, place = line + token, place + 1
        if token == "{START}" or token.endswith("\\n"):
            time = re.search(r"^[^#]*?([0-9]+)/([1-9][0-9]*)\\n$", line)  # the last field of a line; 1/2 is half a beat
            now += int(time[1]) * {POSITIONS_A_STEP * GRID} // int(time[2]) if time else 0
            line, place = "", 0
    return found

document = tokenizer("{START}# tempo=90\\n", return_tensors="pt")
where = torch.tensor([positions(document.input_ids[0])])
logits = model(**document, position_ids=where).logits

# generate() asks for what each of its steps reads: of all tokens so far those that are new.
prepare = model.prepare_inputs_for_generation

def with_positions(ids, **kwargs):
    inputs = prepare(ids, **kwargs)
    where = torch.tensor([positions(row) for row in ids], device=ids.device)
    inputs["position_ids"] = where[:, -inputs["input_ids"].shape[1] :]
    return inputs

model.prepare_inputs_for_generation = with_positions
print(tokenizer.decode(model.generate(**document)[0], skip_special_tokens=True))
```
"""

_LIMITS = """\
## What it must not be taken for

- It imitates the music it was trained on: it has no ear, no taste and no words.
- It can repeat passages of that music note for note, also in another key. Nothing prevents it; midigpt says of each
  take that it writes how long a passage of it stands in the training songs.
- Its context is short: what came long before it does not know.
- Bits per note compare models on the same held-out songs. They do not say whether a take is good.
- This card claims no licence. What the training music's licences allow, of this model and of its takes, is for those
  who trained it, publish it or use it to find out.
"""
