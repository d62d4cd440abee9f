"""Checkpoints: what transformers makes of them, what a kill or a full disk leaves, and what their cards say."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from midigpt.bpe import START, START_ID, token_texts
from midigpt.checkpoint import find_checkpoint, load_checkpoint, load_state, save_checkpoint
from midigpt.files import UserError
from midigpt.grammar import NOTES
from midigpt.language import ENCODINGS, TRACKS, Language
from midigpt.model import GPT, build_model
from midigpt.model_card import model_card
from midigpt.positions import POSITIONS_A_STEP, token_positions
from midigpt.tokenizer import document_tokens
from tests.test_model import CONFIG, SHAPES, places, random_model, random_tokens

SIDE = {"songs": 30, "documents": 60, "tokens": 12345, "notes": 6789}
LANGUAGE = {"language": str(TRACKS)}
RUN = LANGUAGE | {
    "midigpt": "0.1.0",
    "step": 1500,
    "max_steps": 2000,
    "tokens_seen": 6_144_000,
    "epochs": 3.25,
    "weights": "raw",
    "evaluation": {"step": 1500, "val_bits_per_note": 4.25, "average_val_bits_per_note": 4.125},
    "unigram_bits_per_note": 5.75,
    "data": {"val_fraction": 0.1, "seed": 7, "train": SIDE, "val": SIDE | {"songs": 3}},
    "config": {"root": "/home/me/music", "init_from": "/home/me/old", "learning_rate": 0.002, "model": {"n_layer": 2}},
}


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(SHAPES[request.param])


@pytest.fixture
def tokenizer_json(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def checkpoint(model: GPT, tokenizer_json: Path, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "best", model, tokenizer_json, RUN)
    return tmp_path / "best"


# --- in transformers -------------------------------------------------------------------------------------


def test_transformers_opens_a_checkpoint_and_gives_the_same_logits(model: GPT, checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokens = random_tokens(3, 32)
    theirs, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        logits = theirs.eval()(tokens).logits
        torch.testing.assert_close(logits, model(tokens, places(32)), atol=1e-4, rtol=1e-4)
        if model.config.type == "gpt2":
            assert theirs.config.layer_norm_epsilon == type(theirs.config)().layer_norm_epsilon == 1e-5
            return
        assert theirs.config.rms_norm_eps == type(theirs.config)().rms_norm_eps == 1e-6
        stretched = 3 * places(32)
        logits = theirs(tokens, position_ids=stretched.expand(3, 32)).logits
        torch.testing.assert_close(logits, model(tokens, stretched), atol=1e-4, rtol=1e-4)


def test_transformers_opens_the_tokenizer_and_writes_to_the_end(checkpoint: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for kind in ("bos", "eos", "pad"):
        assert getattr(tokenizer, f"{kind}_token") == START and getattr(tokenizer, f"{kind}_token_id") == START_ID
    text = "# tempo=90\n0+10|1/1\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(START + text)[0] == START_ID
    assert set(tokenizer(text)) == {"input_ids", "attention_mask"}
    generation = GenerationConfig.from_pretrained(checkpoint)
    assert (generation.eos_token_id, generation.pad_token_id, generation.bos_token_id) == (START_ID,) * 3
    assert generation.do_sample and not generation.top_k and generation.max_length == CONFIG.block_size


def test_the_cards_snippet_runs(checkpoint: Path) -> None:
    snippet = re.search(r"```python\n(.*?)```", (checkpoint / "README.md").read_text(), re.DOTALL)
    assert snippet and snippet[1].count('"FOLDER"') == 2 and all(len(line) <= 120 for line in snippet[1].splitlines())
    code = snippet[1].replace("FOLDER", str(checkpoint)).replace("print", "import torch; torch.manual_seed(0)\nprint")
    result = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("#") and START not in result.stdout


@pytest.mark.parametrize("model", ["qwen3"], indirect=True)
def test_the_cards_positions_are_midigpts_also_while_it_generates(
    model: GPT, checkpoint: Path, tokenizer: Tokenizer
) -> None:
    snippet = re.search(r"```python\n(.*?)```", (checkpoint / "README.md").read_text(), re.DOTALL)
    assert snippet
    card: dict[str, Any] = {}
    exec(snippet[1].replace("FOLDER", str(checkpoint)).replace("print", "str"), card)
    assert card["logits"].shape == (1, 12, CONFIG.vocab_size)
    text, texts = "# meter=3/4\n1/2\n0+9:1/4|1/8\n", token_texts(tokenizer)
    ids, times = document_tokens(tokenizer, TRACKS, text)
    expected = [0, *token_positions(times, [texts[token] for token in ids])]
    assert card["positions"]([START_ID, *ids]) == expected and expected[-1] == 12 * POSITIONS_A_STEP + 11
    given, allowed = torch.tensor([[START_ID, *ids]]), "12/\n"  # so that it writes lines, some of them with a time
    torch.manual_seed(0)
    written = card["model"].generate(
        given,
        attention_mask=torch.ones_like(given),
        max_length=100,
        temperature=9.0,
        suppress_tokens=[number for number, token in enumerate(texts) if token not in allowed or not token],
        return_dict_in_generate=True,
        output_logits=True,
    )
    document = written.sequences[0].tolist()
    positions = card["positions"](document)
    assert positions[-1] > 60 * POSITIONS_A_STEP
    with torch.no_grad():
        logits = model(torch.tensor([document]), torch.tensor([positions]))[0, len(ids) : -1]
    torch.testing.assert_close(torch.cat(written.logits), logits, atol=1e-4, rtol=1e-4)


# --- there and back --------------------------------------------------------------------------------------


def test_a_checkpoint_gives_back_model_run_and_state(model: GPT, tokenizer_json: Path, tmp_path: Path) -> None:
    state = {"momentum.a": torch.randn(3, 4).t(), "rng": torch.arange(5, dtype=torch.uint8), "n": torch.tensor(3.0)}
    save_checkpoint(tmp_path / "latest", model, tokenizer_json, RUN | {"language": "x"}, state)
    with pytest.raises(UserError, match="speaks another language"):
        load_checkpoint(tmp_path / "latest")
    save_checkpoint(tmp_path / "latest", model, tokenizer_json, LANGUAGE | {"step": 1}, state)
    again, tokenizer, run = load_checkpoint(tmp_path / "latest")
    assert again.config == model.config and run["step"] == 1 and not again.training
    assert tokenizer.to_str() == Tokenizer.from_file(str(tokenizer_json)).to_str()
    tokens = random_tokens(1, 8)
    assert torch.equal(again(tokens, places(8)), model(tokens, places(8)))
    assert all(weight.requires_grad for weight in again.parameters())
    loaded = load_state(tmp_path / "latest")
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype


def test_a_checkpoint_that_does_not_say_counts_tokens(tokenizer_json: Path, tmp_path: Path) -> None:
    for positions in ("time", "index"):
        save_checkpoint(tmp_path / "best", build_model(replace(CONFIG, positions=positions)), tokenizer_json, RUN)
        assert load_checkpoint(tmp_path / "best")[0].config.positions == positions
    path = tmp_path / "best" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "midigpt_positions"}))
    assert load_checkpoint(tmp_path / "best")[0].config.positions == "index"


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_state_is_told(tokenizer_json: Path, tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path / "latest", random_model(CONFIG), tokenizer_json, RUN, {"a": torch.ones(9)})
    path = tmp_path / "latest" / "state.safetensors"
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="begin a new one"):
        load_state(tmp_path / "latest")


def test_a_checkpoint_of_another_kind_is_told(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(UserError, match="midigpt has qwen3 and gpt2"):
        load_checkpoint(checkpoint)


# --- kills and full disks --------------------------------------------------------------------------------


class Killed(BaseException):
    """As a kill is: nothing that the code under test cleans up after."""


@pytest.mark.parametrize("deed", range(40))
def test_a_kill_at_any_moment_of_saving_loses_nothing(
    tokenizer_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: int
) -> None:
    """Killed before its first, second, ... deed that changes names or files, saving leaves the old or the new."""
    folder, model = tmp_path / "latest", build_model(CONFIG)
    for step in (1, 2):
        save_checkpoint(folder, model, tokenizer_json, LANGUAGE | {"step": step}, {"step": torch.tensor(step)})
    left, renamed = deed, False

    def dying(function: Any) -> Any:
        def act(*args: Any, **more: Any) -> Any:
            nonlocal left, renamed
            left -= 1
            if left < 0:
                raise Killed
            renamed |= function is rename and str(args[1]) == str(folder)
            return function(*args, **more)

        return act

    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying(rename))
        for name in ("unlink", "rmdir", "mkdir", "fsync"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(Path, "write_text", dying(Path.write_text))
        patch.setattr(shutil, "copyfile", dying(shutil.copyfile))
        patch.setattr("midigpt.checkpoint.save_file", dying(sys.modules["midigpt.checkpoint"].save_file))
        try:
            save_checkpoint(folder, model, tokenizer_json, LANGUAGE | {"step": 3}, {"step": torch.tensor(3)})
        except Killed:
            pass
        else:
            assert deed >= 25  # so many deeds there are at least
    for step in (3 if renamed else 2, 4):
        found = find_checkpoint(folder)
        assert found and load_checkpoint(found)[2]["step"] == load_state(found)["step"] == step
        save_checkpoint(folder, model, tokenizer_json, LANGUAGE | {"step": 4}, {"step": torch.tensor(4)})
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "tokenizer.json"}


def test_what_is_saved_is_on_the_disk_before_it_gets_its_name(
    tokenizer_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(file: int) -> None:
        done.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    def noted_rename(path: Path, target: Path) -> None:
        done.append(f"{path.name} -> {target.name}")
        rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    save_checkpoint(tmp_path / "latest", build_model(CONFIG), tokenizer_json, RUN, {"a": torch.ones(1)})
    files = {path.name for path in (tmp_path / "latest").iterdir()}
    assert files > {"model.safetensors", "state.safetensors", "run.json", "README.md"}
    assert len({path.stat().st_mode for path in (tmp_path / "latest").iterdir()}) == 1  # who reads one can read all
    assert set(done[:-3]) == files and done[-3:] == [".latest.tmp", ".latest.tmp -> latest", tmp_path.name]


@pytest.mark.parametrize("place", ["weights", "shutil.copyfile", "pathlib.Path.write_text", "os.fsync"])
@pytest.mark.parametrize("has_old", [False, True])
def test_a_full_disk_is_told_and_leaves_the_old_checkpoint(
    tokenizer_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, has_old: bool
) -> None:
    folder = tmp_path / "latest"
    if has_old:
        save_checkpoint(folder, build_model(CONFIG), tokenizer_json, RUN, {"a": torch.ones(1)})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if place == "weights":  # safetensors writes them, in a language of its own
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    else:
        monkeypatch.setattr(place, full)
    kept = ", the one before is kept" if has_old else ""
    try:
        with pytest.raises(UserError, match=rf"latest can't be saved \(.*(No space|too large).*\){kept}; mend that"):
            save_checkpoint(folder, build_model(replace(CONFIG, n_embd=64)), tokenizer_json, RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json"} | ({"latest"} if has_old else set())
    if has_old:
        assert load_checkpoint(folder)[0].config == CONFIG and load_state(folder)["a"] == 1


# --- the card --------------------------------------------------------------------------------------------


def test_a_card_tells_what_the_run_knows(checkpoint: Path) -> None:
    card = (checkpoint / "README.md").read_text()
    head = card.split("---\n")[1]
    assert head == "library_name: transformers\npipeline_tag: text-generation\ntags:\n- midi\n- music\n"
    for fact in (
        f"`{TRACKS}`; midigpt 0.1.0",
        "| training | 30 | 60 | 6,789 | 12,345 |",
        "| held out | 3 | 60 | 6,789 | 12,345 |",
        "share of 0.1",
        "seed 7",
        "1,500 of 2,000 steps, 6,144,000 tokens, 3.25 times",
        "learning_rate = 0.002\nmodel.n_layer = 2\n",
        "**4.250 bits**",
        "5.750 (ratio 0.739)",
        "python sample.py --model FOLDER",
    ):
        assert fact in card, fact
    assert "/home/me" not in card and "init_from = old" in card
    assert "None" not in card and "\n\n\n" not in card


def test_a_card_names_shape_and_weights() -> None:
    average = RUN | {"weights": "average"}
    card = model_card(average, SHAPES["grouped"])
    assert "Qwen3, 2 layers, 32 wide, 4 heads (2 of keys and values), " in card
    assert "**4.125 bits**" in card and "averages over the last steps" in card
    assert "GPT-2, 2 layers, 32 wide, 4 heads, " in model_card(RUN, SHAPES["gpt2"])
    parameters = random_model(SHAPES["gpt2"]).parameter_count()
    assert f"{parameters:,} parameters" in model_card(RUN, SHAPES["gpt2"])


def test_a_card_has_the_code_for_positions_where_times_are_in_beats() -> None:
    for encoding in ENCODINGS:
        card = model_card(RUN | {"language": str(Language(encoding))}, CONFIG)
        assert ("def positions" in card) == (encoding in NOTES), encoding


def test_a_card_copes_with_what_is_missing() -> None:
    unevaluated = model_card(RUN | {"evaluation": None, "unigram_bits_per_note": None}, CONFIG)
    assert "have not been evaluated" in unevaluated and " bits**" not in unevaluated
    nothing = {"songs": 0, "documents": 0, "tokens": 0, "notes": 0}
    alone = model_card(RUN | {"evaluation": None, "data": {**RUN["data"], "val": nothing}}, CONFIG)
    assert "No song was held out" in alone and "| held out | 0 |" in alone
    assert "How to use it" in model_card({}, CONFIG)
