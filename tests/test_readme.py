"""The README's commands, run as they stand there."""

import re
import shlex
from pathlib import Path

import pytest

from midigpt.midi import write_midi
from tests.conftest import PROJECT, make_songs, melody, ok, run_script

README = (PROJECT / "README.md").read_text()
SMALL = {"scripts/train.py": "--max-steps 60 --eval-interval 60 --learning-rate 2e-2 --batch-size 4"
         " --model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 32",
         "sample.py": "--notes 3", "scripts/evaluate.py": "--notes 16"}  # fmt: skip


def test_the_python_commands_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_songs(Path("raw_data"), 320)
    write_midi(melody(3), Path("song.mid"))
    commands = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
    assert len(commands) == 10
    for command in commands:
        line, _, target = command.partition(" > ")
        _, script, *flags = shlex.split(line)
        out = ok(run_script(script, *flags, *SMALL.get(script, "").split()))
        if target:
            Path(target).write_text(out)
    assert len(list(Path("out").glob("*.mid"))) == 5
    assert Path("again.mid").exists()


def test_the_map_names_every_module() -> None:
    tree = README.rpartition("The tree")[2]
    modules = {f"midigpt/{path.name}" for path in (PROJECT / "midigpt").glob("*.py")} - {"midigpt/__init__.py"}
    assert set(re.findall(r"midigpt/\w+\.py", tree)) == modules


def test_the_flags_of_the_table_exist() -> None:
    for script, row in {"sample.py": "make sample", "scripts/tokenizer.py": "make tokenizer"}.items():
        (flags,) = re.findall(rf"^\| `{row}` .*\| `(--.*)` \|$", README, re.M)
        known = ok(run_script(script, "--help"))
        assert all(flag in known for flag in flags.split())


def test_the_example_of_the_idea_is_the_specifications() -> None:
    specification = (PROJECT / "docs" / "language.md").read_text()
    (example,) = re.findall(r"intervals:\n\n```\n(.*?)```", README, re.S)
    assert example in specification
