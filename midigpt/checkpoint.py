"""Checkpoints: a folder that transformers opens, and beside the weights what a run needs to go on.

model.safetensors, config.json, generation_config.json    as transformers' Qwen3ForCausalLM or GPT2LMHeadModel has them
tokenizer.json, tokenizer_config.json
README.md                      the model card
run.json, state.safetensors    the run so far; the optimizer's state and whatever else the trainer keeps in tensors
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.automaton import MARKS
from midigpt.bpe import START, START_ID
from midigpt.files import UserError, make, read_json
from midigpt.header import LanguageError
from midigpt.language import Language, read_language
from midigpt.model import GPT, LAYER_NORM_EPS, RMS_NORM_EPS, ModelConfig
from midigpt.model_card import model_card


def save_checkpoint(
    folder: Path, model: GPT, tokenizer_json: Path, run: dict[str, Any], state: Mapping[str, Tensor] | None = None
) -> None:
    """Write a checkpoint into a temporary folder, then give it its name; what had the name before goes last.

    Of `run`, "language" is needed: that of the tokenizer and of what the model writes.

    Killed at any moment, or cut from power, it leaves the checkpoint of before or this one, for find_checkpoint.
    Raises UserError where there is no room for it; the one before stays.
    """
    temporary, old = folder.with_name(f".{folder.name}.tmp"), _old(folder)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(temporary, model, tokenizer_json, run, state)
        for file in temporary.iterdir():
            _to_disk(file)
        with suppress(OSError):  # not every network's file system can do this for a folder
            _to_disk(temporary)
        if folder.exists():  # if it does not, a kill left it under the old name alone
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
        with suppress(OSError):
            _to_disk(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        kept = ", the one before is kept" if find_checkpoint(folder) else ""
        advice = "mend that, and run the same command again"
        raise UserError(f"{folder} can't be saved ({reason}){kept}; {advice}") from None
    shutil.rmtree(old, ignore_errors=True)


def _write(
    folder: Path, model: GPT, tokenizer_json: Path, run: dict[str, Any], state: Mapping[str, Tensor] | None
) -> None:
    save_file(_plain(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    if state is not None:
        save_file(_plain(state), folder / "state.safetensors")
    shutil.copyfile(tokenizer_json, folder / "tokenizer.json")
    values = {
        "config.json": _hugging_face_config(model.config),
        "generation_config.json": {
            "bos_token_id": START_ID,
            "eos_token_id": START_ID,
            "pad_token_id": START_ID,
            "do_sample": True,
            "top_k": 0,  # none is left out
            "max_length": model.config.block_size,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": START,
            "eos_token": START,
            "pad_token": START,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": model.config.block_size,
            "clean_up_tokenization_spaces": False,
        },
        "run.json": run,
    }
    for name, value in values.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(run, model.config), encoding="utf-8")
    for path in folder.glob("*.safetensors"):  # which only their owner could read
        path.chmod((folder / "run.json").stat().st_mode)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous and on the CPU, as the file format wants them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _to_disk(path: Path) -> None:
    """Wait until a file, or which names are in a folder, would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def find_checkpoint(folder: Path) -> Path | None:
    """The folder, or what had its name if a kill came between the two renamings of saving."""
    return next((path for path in (folder, _old(folder)) if (path / "model.safetensors").exists()), None)


def best_checkpoint(root: Path, run: str) -> Path:
    """A run's best checkpoint, or its latest where no song is held out. Raises UserError where it has none."""
    folder = root / "train" / "runs" / run
    found = find_checkpoint(folder / "best") or find_checkpoint(folder / "latest")
    if found is None:
        flags = "" if run == "default" else f' ARGS="--run {run}"'
        raise UserError(f"{folder} holds no checkpoint yet; make one with: {make(root, 'train')}{flags}")
    return found


def load_checkpoint(folder: Path, device: str = "cpu") -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """Model (in evaluation mode), tokenizer and run.json. Raises UserError where the folder is no checkpoint."""
    needed = ("model.safetensors", "config.json", "tokenizer.json", "run.json")
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder} is not a checkpoint of midigpt: {', '.join(missing)} missing")
    try:
        run = read_json(folder / "run.json")
        config = _model_config(folder, read_json(folder / "config.json"))
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except UserError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"{folder} is a damaged checkpoint ({error})") from None
    try:
        language_of(run)
    except LanguageError as error:
        raise UserError(f"{folder} speaks another language: {error}") from None
    if tokenizer.get_vocab_size() != config.vocab_size:
        raise UserError(
            f"{folder}: the model has {config.vocab_size} tokens, the tokenizer {tokenizer.get_vocab_size()};"
            " they don't belong together"
        )
    with torch.device("meta"):  # no time is spent on weights that are replaced
        model = GPT(config)
    model.to_empty(device="cpu")
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder / 'model.safetensors'} doesn't fit config.json: {str(error).splitlines()[-1]}"
        ) from None
    return model.to(device).eval(), tokenizer, run


def language_of(run: dict[str, Any]) -> Language:
    """The language that a checkpoint's model writes, by its run.json. LanguageError where there is no such language."""
    return read_language(str(run.get("language")))


def heard_programs(run: dict[str, Any]) -> dict[str, int] | None:
    """In how many training songs each program plays, "d" for drums, by a checkpoint's run.json.

    None where that does not tell: of older checkpoints, and of models that went on from another's weights.
    """
    return _heard(run, "programs")


def training_band(run: dict[str, Any], seed: int) -> list[str]:
    """The marks of a training song's parts (docs/language.md), one song or another by the seed; MARKS if not told."""
    bands = _heard(run, "bands")
    return (bands and bands[seed % len(bands)]) or MARKS


def _heard(run: dict[str, Any], what: str) -> Any:
    """What train/meta.json said of the training songs, if those are all that the model has read."""
    return None if run.get("config", {}).get("init_from") else run.get("data", {}).get(what) or None


def load_state(folder: Path) -> dict[str, Tensor]:
    """The tensors that save_checkpoint was given as state, on the CPU; nothing is unpickled. Raises UserError."""
    path = folder / "state.safetensors"
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} can't be read ({error}); without it a run can't go on, so begin a new one") from None


# What a field of ModelConfig is called in config.json.
_NAMES = {
    "qwen3": {
        "vocab_size": "vocab_size",
        "block_size": "max_position_embeddings",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_kv_head": "num_key_value_heads",
        "n_embd": "hidden_size",
        "n_hidden": "intermediate_size",
        "rope_theta": "rope_theta",
        "positions": "midigpt_positions",  # transformers, given no position_ids, counts tokens
    },
    "gpt2": {
        "vocab_size": "vocab_size",
        "block_size": "n_positions",
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_embd": "n_embd",
        "n_hidden": "n_inner",
    },
}
# What else makes the shape that of model.py.
_CONSTANTS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_act": "silu",
        "rms_norm_eps": RMS_NORM_EPS,
        "attention_bias": False,
        "use_sliding_window": False,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": LAYER_NORM_EPS,
    },
}


def _hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": config.type,
        **{theirs: getattr(config, ours) for ours, theirs in _NAMES[config.type].items()},
        **({"head_dim": config.head_dim} if config.type == "qwen3" else {}),
        **_CONSTANTS[config.type],
        "tie_word_embeddings": True,
        "bos_token_id": START_ID,
        "eos_token_id": START_ID,
        "torch_dtype": "float32",
    }


def _model_config(folder: Path, config: dict[str, Any]) -> ModelConfig:
    try:
        kind = config["model_type"]
        if kind not in _NAMES:
            raise UserError(f"{folder / 'config.json'} is of a {kind} model; midigpt has {' and '.join(_NAMES)}")
        config = {"midigpt_positions": "index", **config}
        fields = {ours: config[theirs] for ours, theirs in _NAMES[kind].items()}
        return ModelConfig(type=kind, **{"n_kv_head": fields["n_head"], **fields})
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'} lacks {error}; it is not a config of midigpt") from None
