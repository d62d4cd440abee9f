"""The curves of runs as a picture: what is in it, and what is said where there is nothing to draw."""

import json
from pathlib import Path
from typing import Any

import pytest

from midigpt.files import UserError
from scripts.plot import Args, Run, draw, find_runs, main, read_run
from tests.conftest import ok, refusal, run_script


def records(steps: int = 8, evaluated_every: int = 2, loss: float = 5.0, average: bool = True) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        now = loss - 0.1 * step
        lines.append({"step": step, "tokens": 1000 * step, "minutes": 0.5 * step, "train_loss": now})
        if step % evaluated_every == 0:
            lines[-1] |= {"val_bits_per_note": 3 * now, "bits_per_note_by_position": {"0": 4 * now, "16": 2 * now}}
            lines[-1] |= {"average_val_bits_per_note": 3 * now - 1} if average else {}
    return lines


def write_run(root: Path, name: str, lines: list[dict[str, Any]], end: str = "\n") -> Path:
    folder = root / "train" / "runs" / name
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + end)
    return folder


def lines_of(axes: Any) -> list[list[tuple[float, float]]]:
    return [list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines if len(line.get_xdata())]


def words(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def colours(axes: Any) -> list[Any]:
    return [line.get_color() for line in axes.lines if len(line.get_xdata())]


@pytest.mark.parametrize(("x", "first"), [("tokens", 1000), ("steps", 1), ("minutes", 0.5)])
def test_the_panels_show_what_was_measured(x: str, first: float) -> None:
    train, val, position, table = draw([Run("b", records(loss=6.0)), Run("a", records())], x).axes
    assert lines_of(train) == [[(first * n, at - 0.1 * n) for n in range(1, 9)] for at in (5.0, 6.0)]
    raw, averaged = lines_of(val)[:2]
    assert raw == [(first * n, 3 * (5.0 - 0.1 * n)) for n in (2, 4, 6, 8)]
    assert averaged == [(at, bits - 1) for at, bits in raw]
    assert lines_of(position)[0] == [(0, 4 * (5.0 - 0.1 * 8)), (1, 2 * (5.0 - 0.1 * 8))]
    assert [label.get_text() for label in position.get_xticklabels()] == ["0–15", "16 on"]
    assert words(table)[-10:] == ["a", "8", "4.0", "12.600", "11.600", "b", "8", "4.0", "15.600", "14.600"]
    assert colours(train) == colours(val)[::2] == colours(val)[1::2] == colours(position) == colours(table)
    assert len(set(colours(train))) == 2


def test_a_run_without_evaluations_is_drawn_as_far_as_it_is() -> None:
    only_train = Run("a", records(evaluated_every=100))
    train, val, position, table = draw([only_train], "tokens").axes
    assert len(lines_of(train)) == 1
    assert not lines_of(val) and not lines_of(position)
    assert words(val)[-1] == words(position)[-1] == "nothing measured yet"
    assert words(table)[-2:] == ["–", "–"]
    _, val, _, table = draw([only_train, Run("b", records(average=False))], "tokens").axes
    assert len(lines_of(val)) == 1
    assert words(table)[-9:] == ["8", "4.0", "12.600", "–", "a", "8", "4.0", "–", "–"]


def test_a_stretch_without_notes_is_a_gap() -> None:
    bits = {"0": 9.0, "16": None, "64": 7.0}
    run = Run("a", [{"step": 1, "bits_per_note_by_position": bits}, {"step": 2, "train_loss": 3.0}])
    position = draw([run, Run("b", records())], "steps").axes[2]
    assert [(0, 9.0), (2, 7.0)] in lines_of(position)
    assert [label.get_text() for label in position.get_xticklabels()] == ["0–15", "16–63", "64 on"]


def test_many_runs_have_colours_of_their_own_and_the_table_ends() -> None:
    figure = draw([Run(f"run{n}", records(loss=5 + n)) for n in range(30)], "tokens")
    assert len({tuple(colour) for colour in colours(figure.axes[0])}) == 30
    assert words(figure.axes[3])[-1] == "and 13 more"


def test_an_explosion_and_the_beginning_do_not_flatten_the_rest() -> None:
    sane = [record | {"train_loss": 2 + 8 * 0.9**n} for n, record in enumerate(records(200))]
    spike = [record | ({"train_loss": 1e4} if n == 150 else {}) for n, record in enumerate(sane)]
    diverged = [record | ({"train_loss": 1e4} if n > 100 else {}) for n, record in enumerate(sane)]
    lost = [record | ({"train_loss": float("nan")} if n > 100 else {}) for n, record in enumerate(sane)]
    for lines, most in ((sane, 4), (spike, 4), (diverged, 12), (lost, 4)):
        train = draw([Run("a", lines)], "tokens").axes[0]
        assert train.get_ylim()[0] < 2.1 and train.get_ylim()[1] < most
        thick = lines_of(train)[0]
        assert len(thick) == (101 if lines is lost else 200)
        if lines is spike:
            assert max(y for _, y in thick[100:]) < 2.1
            assert "up to 1e+04" in words(train)


def test_the_lowest_point_of_a_run_that_has_just_begun_is_seen() -> None:
    begun = Run("begun", [record | {"train_loss": 8.0 - n} for n, record in enumerate(records(3))])
    long = Run("long", [record | {"train_loss": 2 + 8 * 0.9**n} for n, record in enumerate(records(200))])
    assert draw([long, begun], "tokens").axes[0].get_ylim()[1] > 6.0


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", records(), '\n{"step": 9, "tok')
    assert read_run(folder, "tokens") == Run("a", records())
    assert read_run(write_run(tmp_path, "b", [], '{"st'), "tokens") == Run("b", [])


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    for name, line in {"a": "tra la la", "b": "7", "c": "{}"}.items():
        folder = write_run(tmp_path, name, records(2), f"\n{line}\n" + json.dumps(records(1)[0]))
        with pytest.raises(UserError, match=r"metrics.jsonl, line 3 is no record"):
            read_run(folder, "tokens")


def test_what_the_metrics_do_not_have_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", [{"step": 1, "train_loss": 5.0}])
    with pytest.raises(UserError, match=r"says nothing of minutes; .* --x steps"):
        read_run(folder, "minutes")
    train = draw([read_run(folder, "steps")], "steps").axes[0]
    assert lines_of(train) == [[(1, 5.0)]]


def test_runs_are_all_or_those_named_or_folders_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "runs"
    with pytest.raises(UserError, match=rf'no runs in {folder} yet; train one with: make train ROOT="{tmp_path}"'):
        find_runs(tmp_path, ())
    a, b, c = (write_run(tmp_path, name, records()) for name in "abc")
    elsewhere = write_run(tmp_path / "other", "d", records())
    assert find_runs(tmp_path, ()) == [a, b, c]
    assert find_runs(tmp_path, ("c", "a", "c", str(elsewhere))) == [c, a, elsewhere]
    with pytest.raises(UserError, match=r"there is no run x in .*; there are a, b, c"):
        find_runs(tmp_path, ("a", "x"))


def test_a_run_without_a_line_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "empty", [], "")
    with pytest.raises(UserError, match="empty wrote no metrics yet"):
        main(Args(tmp_path))
    write_run(tmp_path, "a", records())
    main(Args(tmp_path))
    out = capsys.readouterr().out
    assert "empty wrote no metrics yet and is left out" in out
    assert "1 run, best 11.600 bits per note: a" in out


def test_the_command_writes_a_picture(tmp_path: Path) -> None:
    for name, loss in (("a", 5.0), ("$b_{", 4.0)):
        write_run(tmp_path, name, records(loss=loss))
    assert "2 runs, best 8.600 bits per note: $b_{" in ok(run_script("scripts/plot.py", "--root", tmp_path))
    picture = tmp_path / "train" / "runs" / "plot.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    result = run_script("scripts/plot.py", "--root", tmp_path, "--runs", "a", "--out", tmp_path / "new" / "curves.png")
    assert "new/curves.png; 1 run" in ok(result)
    assert "must end in .png" in refusal(run_script("scripts/plot.py", "--root", tmp_path, "--out", "curves.svg"))
