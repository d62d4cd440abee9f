"""Checkpoints: a folder that transformers opens, and beside the weights what a run needs to go on.

model.safetensors, config.json    the weights and the shape, as transformers' Qwen3ForCausalLM has them
tokenizer.json, tokenizer_config.json
run.json, optimizer.safetensors   step, best loss, language; the optimizer's state (in latest/ only)
"""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from midigpt.files import UserError, read_json, write_json
from midigpt.language import LANGUAGE
from midigpt.model import GPT, LAYER_NORM_EPS, RMS_NORM_EPS, ModelConfig
from midigpt.tokenizer import START, START_ID


def save_checkpoint(
    folder: Path, model: GPT, tokenizer_json: Path, run: dict[str, Any], state: dict[str, Tensor] | None = None
) -> None:
    """Write a checkpoint into a temporary folder, then give it its name; what had the name before goes last."""
    temporary, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # Contiguous copies, as the file format wants them.
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
    write_json(temporary / "config.json", _hugging_face_config(model.config))
    shutil.copyfile(tokenizer_json, temporary / "tokenizer.json")
    write_json(
        temporary / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": START,
            "eos_token": START,
            "model_max_length": model.config.block_size,
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(temporary / "run.json", {"language": LANGUAGE, **run})
    if state is not None:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in state.items()}, temporary / "optimizer.safetensors"
        )
    if folder.exists():  # if it does not, a kill left it under the old name alone
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path) -> Path | None:
    """The folder, or what had its name if a kill came between the two renamings of saving."""
    old = folder.with_name(f".{folder.name}.old")
    return next((path for path in (folder, old) if (path / "model.safetensors").exists()), None)


def load_checkpoint(folder: Path, device: str = "cpu") -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """Model (in evaluation mode), tokenizer and run.json. Raises UserError where the folder is no checkpoint."""
    needed = ("model.safetensors", "config.json", "tokenizer.json", "run.json")
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder} is not a checkpoint of midigpt: {', '.join(missing)} missing")
    try:
        run = read_json(folder / "run.json")
        config = _model_config(folder, read_json(folder / "config.json"))
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text())
    except UserError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"{folder} is a damaged checkpoint ({error})") from None
    if run.get("language") != LANGUAGE:
        raise UserError(f"{folder} speaks another language ({run.get('language')}) than this version ({LANGUAGE})")
    if tokenizer.get_vocab_size() != config.vocab_size:
        raise UserError(
            f"{folder}: the model has {config.vocab_size} tokens, the tokenizer {tokenizer.get_vocab_size()};"
            " they don't belong together"
        )
    model = GPT(config)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder / 'model.safetensors'} doesn't fit config.json: {str(error).splitlines()[-1]}"
        ) from None
    return model.to(device).eval(), tokenizer, run


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
        fields = {ours: config[theirs] for ours, theirs in _NAMES[kind].items()}
        return ModelConfig(type=kind, **{"n_kv_head": fields["n_head"], **fields})
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'} lacks {error}; it is not a config of midigpt") from None


def load_state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "optimizer.safetensors")
