"""Settings: defaults, then a preset's file, then flags; and what is said of a mistake in them."""

import json
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from midigpt import config as module
from midigpt.config import PRESETS, as_table, from_table, load_preset, parse_config
from midigpt.files import UserError, say
from tests.conftest import ok, run_script

NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))


@dataclass(frozen=True)
class Shape:
    type: Literal["qwen3", "gpt2"] = "qwen3"
    n_layer: int = 4
    rope_theta: float = 1e4


@dataclass(frozen=True)
class Settings:
    config: str | None = None
    root: Path = Path()
    run: str = "default"
    model: Shape = field(default_factory=Shape)
    max_steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 1e-3
    compile: bool | None = None
    tidy: bool = False
    logger: tuple[Literal["tensorboard", "wandb"], ...] = ()


@pytest.fixture(autouse=True)
def excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards


def parse(monkeypatch: pytest.MonkeyPatch, *flags: str, default: Settings | None = None) -> Settings:
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    return parse_config(Settings, "Train.", default)


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of presets: small and large."""
    (tmp_path / "small.toml").write_text("max_steps = 300\nlearning_rate = 3e-3\n[model]\nn_layer = 6\n")
    (tmp_path / "large.toml").write_text("[model]\nn_layer = 24\n")
    monkeypatch.setattr(module, "PRESETS", tmp_path)
    return tmp_path


def load(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "mine.toml").write_text(text)
    return load_preset(Settings, str(tmp_path / "mine.toml"))


def complaint(tmp_path: Path, text: str) -> str:
    """What is said of a file, behind its path."""
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    path, _, sentence = str(error.value).partition("mine.toml")
    assert path == f"{tmp_path}/"
    return sentence.removeprefix(": ")


def test_flags_override_the_file_and_the_file_the_defaults(presets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Settings(config="small", model=Shape(n_layer=6), max_steps=500, learning_rate=3e-3)
    assert parse(monkeypatch, "--config", "small", "--max-steps", "500") == expected
    assert parse(monkeypatch, "--max-steps", "500", "--config=small") == expected
    deeper = parse(monkeypatch, "--config", "small", "--model.n-layer", "8", "--model.type", "gpt2")
    assert deeper == Settings(config="small", model=Shape("gpt2", 8), max_steps=300, learning_rate=3e-3)


def test_without_a_preset_there_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(monkeypatch) == Settings()
    assert parse(monkeypatch, "--run", "config") == Settings(run="config")


def test_the_callers_default_counts_where_none_is_named(presets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_preset(Settings, "small")
    assert parse(monkeypatch, default=small) == small and small.config == "small"
    assert parse(monkeypatch, "--config", "large", default=small).model.n_layer == 24


def test_settings_can_be_kept_as_json_and_come_back(presets: Path) -> None:
    settings = load_preset(Settings, "small")
    assert from_table(Settings, json.loads(json.dumps(as_table(settings))), "run.json") == settings


def test_a_path_is_a_preset_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text("run = 'waltzes'")
    monkeypatch.chdir(tmp_path)
    assert parse(monkeypatch, "--config", "mine.toml") == Settings(config="mine.toml", run="waltzes")


def test_every_type_of_a_field(tmp_path: Path) -> None:
    text = """
        root = "music"
        max-steps = 1_000
        minutes = 30
        learning-rate = 2
        compile = true
        tidy = true
        logger = ["wandb", "tensorboard"]
        model.rope-theta = 500
        model.type = "gpt2"
        """
    settings = load(tmp_path, text)
    assert settings == Settings(
        config=str(tmp_path / "mine.toml"),
        root=Path("music"),
        model=Shape("gpt2", 4, 500.0),
        max_steps=1000,
        minutes=30.0,
        learning_rate=2.0,
        compile=True,
        tidy=True,
        logger=("wandb", "tensorboard"),
    )
    numbers = settings.minutes, settings.learning_rate, settings.model.rope_theta
    assert [type(number) for number in numbers] == [float] * 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_step = 3", "max_step is no setting; did you mean max_steps?"),
        ("n-layers = 3", "n-layers is no setting; did you mean model.n_layer?"),
        ("[model]\nnlayer = 3", "model.nlayer is no setting; did you mean model.n_layer?"),
        ("[model]\nmax_steps = 3", "model.max_steps is no setting; did you mean max_steps?"),
        ("[modell]\nn_layer = 3", "modell is no setting; did you mean model?"),
        ("colour = 3", "colour is no setting; see --help"),
        ("max-steps = 3\nmax_steps = 4", "max_steps is set twice"),
        ("config = 'small'", "config can't be set in a file; give --config on the command line"),
    ],
)
def test_a_mistyped_key_is_answered_with_the_nearest(tmp_path: Path, text: str, sentence: str) -> None:
    assert complaint(tmp_path, text) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_steps = 'many'", 'max_steps is "many", but must be a whole number'),
        ("max_steps = 1e3", "max_steps is 1000.0, but must be a whole number"),
        ("max_steps = true", "max_steps is true, but must be a whole number"),
        ("learning_rate = true", "learning_rate is true, but must be a number"),
        ("tidy = 1", "tidy is 1, but must be true or false"),
        ("run = 7", "run is 7, but must be text in quotes"),
        ("root = 7", "root is 7, but must be a path in quotes"),
        ("logger = 'wandb'", 'logger is "wandb", but must be a list in brackets, each "tensorboard" or "wandb"'),
        ("logger = ''", 'logger is "", but must be a list in brackets, each "tensorboard" or "wandb"'),
        ("logger = ['x']", 'logger is ["x"], but must be a list in brackets, each "tensorboard" or "wandb"'),
        ("model = 4", "model is 4, but must be a table: [model]"),
        ("[model]\ntype = 'gpt3'", 'model.type is "gpt3", but must be "qwen3" or "gpt2"'),
        ("[run]\nname = 'x'", 'run is {"name": "x"}, but must be text in quotes'),
    ],
)
def test_a_value_of_the_wrong_type_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    assert complaint(tmp_path, text) == sentence


@pytest.mark.parametrize("text", ["run = 'a'\nmax_steps 3\n", "run = 'a'\nmax_steps = [3"])
def test_of_broken_toml_the_line_is_named(tmp_path: Path, text: str) -> None:
    assert re.search(r"is not valid TOML: .*\(at line 2, ", complaint(tmp_path, text))


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes("run = 'Präludium'".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.toml is not UTF-8 text"):
        load_preset(Settings, str(tmp_path / "latin.toml"))
    with pytest.raises(UserError, match=r"none.toml: there is no such file"):
        load_preset(Settings, str(tmp_path / "none.toml"))


def test_an_unknown_preset_is_answered_with_those_there_are(presets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as error:
        parse(monkeypatch, "--config", "smal")
    assert sys.excepthook is say  # so that it is printed as a sentence
    assert "there are large, small, or" in str(error.value)
    assert str(error.value).endswith("; did you mean small?")
    with pytest.raises(UserError, match=r"a \.toml file$"):
        parse(monkeypatch, "--config", "xyz")


def test_a_mistake_in_a_preset_of_the_project_names_its_file(presets: Path) -> None:
    (presets / "small.toml").write_text("max_step = 3")
    with pytest.raises(UserError, match=r"^configs/small.toml: max_step is no setting; did you mean max_steps\?"):
        load_preset(Settings, "small")


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--max-step", "3"], r"Perhaps you meant:\W*--max-steps"),
        (["--model.n-layers", "3"], r"Perhaps you meant:\W*--model.n-layer "),
        (["--conf", "small"], r"Perhaps you meant:\W*--config"),
        (["--config"], r"Missing value for argument .--config"),
    ],
)
def test_a_mistyped_flag_is_answered_with_the_nearest(
    flags: list[str], answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        parse(monkeypatch, *flags)
    assert ending.value.code == 2
    assert re.search(answer, capsys.readouterr().err)


def help_of(text: str) -> dict[str, str]:
    """What --help says of each flag."""
    flags = re.split(r"^ *(--[\w.-]+)", text.replace("│", ""), flags=re.M)
    return {flag: " ".join(words.split()) for flag, words in zip(flags[1::2], flags[2::2], strict=True)}


def test_help_shows_the_presets_values(
    presets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        parse(monkeypatch, "--config", "small", "--help")
    assert ending.value.code == 0
    shown = help_of(capsys.readouterr().out)
    assert "(default: 300)" in shown["--max-steps"] and "(default: 6)" in shown["--model.n-layer"]


# What lies in configs/.


@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_takes_every_preset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = help_of(ok(run_script("scripts/train.py", "--config", name, "--help")))
    table = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    table |= {f"model.{key}": value for key, value in table.pop("model").items()}
    assert {"batch_size", "model.type", "model.n_layer", "model.n_head", "model.n_embd"} < set(table)
    for key, value in {"config": name, **table}.items():
        text = shown[f"--{key.replace('_', '-')}"]
        assert re.search(rf"\(default: {value}(\.0)?\)", text), f"{key}: {text}"


@pytest.mark.parametrize(("name", "millions"), [("demo", 0.73), ("small", 11), ("base", 86), ("gpt2", 124)])
def test_a_preset_is_as_large_as_it_says(name: str, millions: int) -> None:
    text = (PRESETS / f"{name}.toml").read_text()
    model = tomllib.loads(text)["model"]
    L, C, H = model["n_layer"], model["n_embd"], -(-8 * model["n_embd"] // 3 // 32) * 32
    sizes = {
        "qwen3": 1024 * C + L * (4 * C * C + 3 * C * H),
        "gpt2": (50257 + model["block_size"]) * C + L * (12 * C * C + 13 * C) + 2 * C,
    }
    size = sizes[model["type"]] / 1e6
    (said,) = re.findall(r"([\d.]+) M parameters", text)
    assert size == pytest.approx(float(said), rel=0.03)
    assert size == pytest.approx(millions, rel=0.15)
    assert C // model["n_head"] == (32 if name == "demo" else 64) and C % model["n_head"] == 0
    assert {"demo", "small", "base", "gpt2"} == set(NAMES)
