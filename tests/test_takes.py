"""What goes on behind a prompt, part by part; and the recipe by which a take can be made again."""

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from midigpt.files import UserError
from midigpt.generate import Drawing, Length
from midigpt.language import TRACKS
from midigpt.midi import read_midi, write_midi
from midigpt.model import GPT, ModelConfig, build_model
from midigpt.prompt import Prompt, load_prompt
from midigpt.score import Score, Track, track_from_notes
from midigpt.splice import continue_midi
from midigpt.takes import continuations, differences, find_model, read_parts, read_recipe, versions, write_recipe
from tests.conftest import melody, midi_files

SHAPE = ModelConfig(
    vocab_size=len(TRACKS.alphabet) + 1, block_size=256, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, n_hidden=32
)


@pytest.fixture(scope="module")
def untrained() -> GPT:
    torch.manual_seed(0)
    return build_model(SHAPE).eval()


def song(moved: int = 0) -> Score:
    """A tune, a second part that rests in the end, and drums; a bar is 4 beats of 480 ticks."""
    tune, second, drums = melody(1, 30).tracks[0], melody(2, 12, program=7).tracks[0], melody(3, 25, is_drum=True)
    return Score(480, (*(replace(t, pitch=t.pitch + moved) for t in (tune, second)), *drums.tracks), 100.0)


def prompt_of(score: Score, folder: Path) -> Prompt:
    write_midi(score, folder / "prompt.mid")
    return load_prompt(folder / "prompt.mid")


# --- parts -----------------------------------------------------------------------------------------------


def test_parts_are_documents_up_to_the_cut_the_busiest_first(tmp_path: Path) -> None:
    prompt = prompt_of(song(), tmp_path)
    cut = prompt.cut()
    parts = read_parts(prompt, cut)
    assert [(part.track, part.notes) for part in parts] == [(0, 30), (2, 25), (1, 12)]
    for part in parts:
        beats = [line.rpartition("|")[2].split("/") for line in part.document.splitlines()[1:]]
        assert sum(int(count) / int(unit) for count, unit in beats) == cut / 480
    tune = prompt.score.tracks[0].pitch
    assert parts[0].reference == tune[-1] and parts[0].keys == range(tune.min() - 12, tune.max() + 13)


def test_a_window_of_bars_begins_with_its_silence(tmp_path: Path) -> None:
    prompt = prompt_of(song(), tmp_path)
    cut = prompt.bar_start(5)
    whole, window = ({part.track: part for part in read_parts(prompt, cut, bars)} for bars in (None, 2))
    for track, part in window.items():
        onset = prompt.score.tracks[track].onset
        first = onset[(onset >= prompt.bar_start(3)) & (onset < cut)].min(initial=cut)
        header, line, *rest = part.document.splitlines()
        body = whole[track].document.split("\n", 1)[1]
        silence = Fraction(int(first - prompt.bar_start(3)), 480)
        if silence:
            assert line == f"{silence.numerator}/{silence.denominator}"
        else:
            rest.insert(0, line)
        assert body.endswith("".join(f"{line}\n" for line in rest)) and header == whole[track].document.split("\n")[0]
        assert part.reference == whole[track].reference
    assert window[1].notes < whole[1].notes == 12


def test_more_bars_than_there_are_is_all_of_them(tmp_path: Path) -> None:
    prompt = prompt_of(song(), tmp_path)
    cut = prompt.bar_start(3)
    assert read_parts(prompt, cut, 99) == read_parts(prompt, cut)


def test_a_part_that_has_not_begun_does_not_go_on(tmp_path: Path) -> None:
    late = replace(song().tracks[1], onset=song().tracks[1].onset + 8 * 480)
    prompt = prompt_of(Score(480, (song().tracks[0], late), 100.0), tmp_path)
    assert [part.track for part in read_parts(prompt, prompt.bar_start(3))] == [0]


# --- going on --------------------------------------------------------------------------------------------


def go_on(
    model: GPT, tokenizer: Tokenizer, prompt: Prompt, length: Length, takes: int = 1, at: int | None = None
) -> list[dict[int, Track]]:
    cut = prompt.cut(at)
    return continuations(model, tokenizer, Drawing(seed=3), prompt, cut, read_parts(prompt, cut), length, takes)


@pytest.mark.parametrize("moved", [5, -7])
def test_a_prompt_in_another_key_goes_on_in_that_key(
    untrained: GPT, tokenizer: Tokenizer, tmp_path: Path, moved: int
) -> None:
    here, there = (
        go_on(untrained, tokenizer, prompt_of(song(by), tmp_path), Length(bars=4), 2) for by in (0, moved)
    )
    for tracks, others in zip(here, there, strict=True):
        for number in (0, 1):
            assert len(tracks[number]) and np.array_equal(tracks[number].pitch + moved, others[number].pitch)
            assert np.array_equal(tracks[number].onset, others[number].onset)
        assert tracks[2] == others[2]  # drums stay
    assert here[0][0] != here[1][0]


def test_all_parts_begin_at_the_cut_and_end_together(untrained: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    prompt = prompt_of(song(), tmp_path)
    cut = prompt.bar_start(4)
    for length, end in ((Length(bars=2), 8 * 480), (Length(seconds=3), 5 * 480)):
        (tracks,) = go_on(untrained, tokenizer, prompt, length, at=4)
        assert {track.onset[0] for track in tracks.values()} == {cut}
        assert max(track.end for track in tracks.values()) == cut + end
    (tracks,) = go_on(untrained, tokenizer, prompt, Length(notes=20), at=4)
    assert len(tracks[0]) >= 20
    for number in (1, 2):  # the first part's last line may be 8 beats long
        assert -8 * 480 < tracks[number].onset[-1] - tracks[0].onset[-1] < 8 * 480


def test_seconds_are_of_the_prompts_own_tempo(untrained: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for tempo in (10.0, 113.0, 400.0):  # a header has none of them
        prompt = prompt_of(replace(song(), tempo_bpm=tempo), tmp_path)
        (tracks,) = go_on(untrained, tokenizer, prompt, Length(seconds=6))
        assert max(track.end for track in tracks.values()) - prompt.cut() == pytest.approx(tempo / 10 * 480, abs=20)


def test_every_part_has_chance_of_its_own(untrained: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tune,) = melody(1, 30).tracks
    prompt = prompt_of(Score(480, (tune, tune), 100.0), tmp_path)
    (tracks,) = go_on(untrained, tokenizer, prompt, Length(bars=4))
    assert not np.array_equal(tracks[0].pitch[:8], tracks[1].pitch[:8])


def test_behind_a_chord_the_next_note_counts_from_its_lowest(
    untrained: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = [(0, 480, 60, 80), (480, 480, 55, 80), (480, 480, 67, 80), (480, 480, 71, 80)]
    (part,) = read_parts(prompt := prompt_of(Score(480, (track_from_notes(rows),)), tmp_path), 960)
    assert part.document.endswith("5-10|12+10|4+10|1/1\n") and part.reference == 55
    assert len(prompt.score.tracks[0]) == 4


def test_parts_stay_near_their_range(untrained: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    prompt = prompt_of(song(), tmp_path)
    (tracks,) = go_on(untrained, tokenizer, prompt, Length(notes=150))
    for number in (0, 1):
        before = prompt.score.tracks[number].pitch
        pitch = tracks[number].pitch
        assert before.min() - 12 <= pitch.min() and pitch.max() <= before.max() + 12
        assert np.ptp(pitch) > 12
    cut, keys = prompt.cut(), range(96, 120)  # far above
    parts = read_parts(prompt, cut, keys=keys)
    (tracks,) = continuations(untrained, tokenizer, Drawing(), prompt, cut, parts, Length(notes=50), 1)
    assert all(set(tracks[number].pitch.tolist()) <= set(keys) for number in (0, 1))


def test_drums_stay_in_general_midis_kit_and_the_prompts(
    untrained: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = [(480 * n, 240, (20, 38)[n % 2], 80) for n in range(16)]
    prompt = prompt_of(Score(480, (track_from_notes(rows, is_drum=True),)), tmp_path)
    (tracks,) = go_on(untrained, tokenizer, prompt, Length(notes=300))
    drums = set(tracks[0].pitch.tolist())
    assert 20 in drums and drums <= {20, *range(35, 82)} and len(drums) > 20


def test_every_real_file_goes_on(corpus: Callable[[str], Path], untrained: GPT, tokenizer: Tokenizer) -> None:
    """Every sixteenth here; the files' own events are tests/test_splice.py's."""
    for path in midi_files(corpus("mini"))[5::16]:
        prompt = load_prompt(path)
        cut = prompt.cut()
        (tracks,) = go_on(untrained, tokenizer, prompt, Length(bars=1))
        score = read_midi(continue_midi(prompt, cut, tracks))
        assert sum(int((track.onset >= cut).sum()) for track in score.tracks) >= len(tracks), path
        assert score.notes > prompt.score.notes


# --- recipes ---------------------------------------------------------------------------------------------


def test_a_recipe_is_read_from_among_other_texts() -> None:
    recipe = {"model": "0", "by": "Stück", "flags": {}, "versions": {}, "take": 3}
    texts = ["by hand", write_recipe(recipe | {"take": 1}), write_recipe(recipe), "by another hand"]
    assert read_recipe(texts, Path("take.mid")) == recipe  # the prompt may have been a take
    assert all(text.isascii() for text in texts[1:3])
    for others in ([], ["by hand"], [write_recipe(recipe)[:-1]], [write_recipe({"take": 3})]):
        with pytest.raises(UserError, match=r"take\.mid holds no recipe"):
            read_recipe(others, Path("take.mid"))


def test_what_differs_on_another_machine_is_named() -> None:
    here = versions("cpu")
    assert differences(here, "cpu") == [] and json.loads(json.dumps(here)) == here
    assert differences(here | {"torch": "1.0", "threads": 99}, "cpu") == [
        f"torch was 1.0 and is {torch.__version__} here",
        f"threads was 99 and is {torch.get_num_threads()} here",
    ]


def test_the_model_of_a_take_is_found_wherever_it_is(trained: Path, tmp_path: Path) -> None:
    from midigpt.takes import fingerprint

    best = trained / "train" / "runs" / "default" / "best"
    recipe = {"model": fingerprint(best), "by": "gone/away"}
    take = Path("take.mid")
    assert fingerprint(find_model(recipe, trained, None, take)) == recipe["model"]
    assert find_model(recipe, tmp_path, best, take) == best
    with pytest.raises(UserError, match=f"by the model {recipe['model']}, then in gone/away: no run in"):
        find_model(recipe, tmp_path, None, take)
    with pytest.raises(UserError, match="is another one"):
        find_model(recipe | {"model": "0"}, trained, best, take)
