"""What goes on behind a prompt, part by part; and the recipe by which a take can be made again."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from midigpt.bpe import train_tokenizer
from midigpt.files import UserError
from midigpt.generate import Drawing, Length
from midigpt.language import TRACKS, Language, encode
from midigpt.midi import read_midi, write_midi
from midigpt.model import GPT, ModelConfig, build_model
from midigpt.prompt import Prompt, before, load_prompt
from midigpt.score import Score, Track, track_from_notes
from midigpt.splice import continue_midi
from midigpt.takes import continuations, differences, find_model, read_prompt, read_recipe, versions, write_recipe
from tests.conftest import melody, midi_files

SONGS = Language("interval", "song")
ANCHORED = Language("anchored", "song")
LANGUAGES = pytest.mark.parametrize("language", [TRACKS, SONGS, ANCHORED], ids=["tracks", "songs", "anchored"])


@cache
def untrained(language: Language) -> tuple[GPT, Tokenizer]:
    """A model that knows nothing, with a token for each character."""
    size = len(language.alphabet) + 1
    tokenizer = train_tokenizer(["\n"], size, language)
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=size, block_size=256, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, n_hidden=32)
    return build_model(shape).eval(), tokenizer


def song(moved: int = 0) -> Score:
    """A tune, a second part that rests in the end, and drums; a bar is 4 beats of 480 ticks."""
    tune, second, drums = melody(1, 30).tracks[0], melody(2, 12, program=7).tracks[0], melody(3, 25, is_drum=True)
    return Score(480, (*(replace(t, pitch=t.pitch + moved) for t in (tune, second)), *drums.tracks), 100.0)


def prompt_of(score: Score, folder: Path) -> Prompt:
    write_midi(score, folder / "prompt.mid")
    return load_prompt(folder / "prompt.mid")


# --- what the model reads --------------------------------------------------------------------------------


def test_documents_run_to_the_cut_the_busiest_first(tmp_path: Path) -> None:
    prompt = prompt_of(song(), tmp_path)
    cut = prompt.cut()
    readings = read_prompt(prompt, cut)
    assert [(list(reading.parts), reading.notes) for reading in readings] == [([""], 30), ([""], 25), ([""], 12)]
    assert [reading.parts[""].track for reading in readings] == [0, 2, 1]
    (whole,) = read_prompt(prompt, cut, SONGS)
    assert whole.notes == 67 and {mark: part.track for mark, part in whole.parts.items()} == {"0": 0, "7": 1, "d": 2}
    for reading in (whole, *readings):
        beats = [line.rpartition("|")[2].split("/") for line in reading.text.splitlines()[1:]]
        assert sum(int(count) / int(unit) for count, unit in beats) == cut / 480
    tune, part = prompt.score.tracks[0].pitch, readings[0].parts[""]
    assert part.last == part.reference == tune[-1] and part.keys == range(tune.min() - 12, tune.max() + 13)
    assert whole.parts["0"] == part


@LANGUAGES
def test_a_window_of_bars_is_read_by_itself(tmp_path: Path, language: Language) -> None:
    prompt = prompt_of(song(), tmp_path)
    cut, start = prompt.bar_start(5), prompt.bar_start(3)
    readings = read_prompt(prompt, cut, language, 2)
    window = encode(before(prompt, cut, start), prompt.steps(cut - start), language)
    assert {reading.text for reading in readings} == {document.text for document in window}
    assert {reading.start for reading in readings} == {start}
    assert {part.track for reading in readings for part in reading.parts.values()} == {0, 1, 2}
    longer = read_prompt(prompt, prompt.cut(), language, 1)
    assert {part.track for reading in longer for part in reading.parts.values()} == {0}  # the others rest


@LANGUAGES
def test_a_part_that_rests_where_the_model_reads_is_read_back_to_its_last_bar(
    tmp_path: Path, language: Language
) -> None:
    prompt = prompt_of(song(), tmp_path)
    (reading,) = read_prompt(prompt, prompt.cut(), language, 1, only=1)
    (part,) = reading.parts.values()
    last = int(prompt.score.tracks[1].onset[-1])
    assert part.track == 1 and part.last == prompt.score.tracks[1].pitch[-1]
    assert reading.start == prompt.bar_start(prompt.bar_at(last))
    with pytest.raises(UserError, match=r"--track 4: no such part of .*mid plays before the cut(.|\n)*2: clavinet"):
        read_prompt(prompt, prompt.cut(), language, 1, only=3)


@LANGUAGES
def test_more_bars_than_there_are_is_all_of_them(tmp_path: Path, language: Language) -> None:
    prompt = prompt_of(song(), tmp_path)
    cut = prompt.bar_start(3)
    assert read_prompt(prompt, cut, language, 99) == read_prompt(prompt, cut, language)


@LANGUAGES
def test_a_part_that_has_not_begun_does_not_go_on(tmp_path: Path, language: Language) -> None:
    late = replace(song().tracks[1], onset=song().tracks[1].onset + 8 * 480)
    prompt = prompt_of(Score(480, (song().tracks[0], late), 100.0), tmp_path)
    (reading,) = read_prompt(prompt, prompt.bar_start(3), language)
    assert [part.track for part in reading.parts.values()] == [0]
    with pytest.raises(UserError, match="--track 2: no such part"):
        read_prompt(prompt, prompt.bar_start(3), language, only=1)


def test_parts_of_one_program_are_told_apart_by_number_in_the_order_of_the_file(tmp_path: Path) -> None:
    tracks = [melody(n, 9, program=program).tracks[0] for n, program in enumerate((40, 3, 40, 40))]
    drums = melody(9, 9, is_drum=True).tracks[0]
    prompt = prompt_of(Score(480, (drums, *tracks, drums)), tmp_path)
    (reading,) = read_prompt(prompt, prompt.cut(), SONGS)
    found = {mark: part.track for mark, part in reading.parts.items()}
    assert found == {"3": 2, "40": 1, "40.2": 3, "40.3": 4, "d": 0, "d.2": 5}


# --- going on --------------------------------------------------------------------------------------------


def go_on(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Prompt,
    length: Length,
    takes: int = 1,
    at: int | None = None,
    language: Language = TRACKS,
    only: int | None = None,
    keys: range | None = None,
) -> list[dict[int, Track]]:
    cut = prompt.cut(at)
    readings = read_prompt(prompt, cut, language, keys=keys, only=only)
    return continuations(model, tokenizer, language, Drawing(seed=3), prompt, cut, readings, length, takes)


@pytest.mark.parametrize("moved", [5, -7])
@LANGUAGES
def test_a_prompt_in_another_key_goes_on_in_that_key(tmp_path: Path, language: Language, moved: int) -> None:
    here, there = (
        go_on(*untrained(language), prompt_of(song(by), tmp_path), Length(notes=60), 2, language=language)
        for by in (0, moved)
    )
    for tracks, others in zip(here, there, strict=True):
        for number in (0, 1):
            assert len(tracks[number]) and np.array_equal(tracks[number].pitch + moved, others[number].pitch)
            assert np.array_equal(tracks[number].onset, others[number].onset)
        assert tracks[2] == others[2]  # drums stay
    assert here[0][0] != here[1][0]


def test_a_song_goes_on_in_its_parts(tmp_path: Path) -> None:
    prompt = prompt_of(song(), tmp_path)
    cut = prompt.bar_start(4)
    takes = go_on(*untrained(SONGS), prompt, Length(bars=12), 4, at=4, language=SONGS)
    assert set().union(*takes) == {0, 1, 2} and max(map(len, takes)) > 1
    for tracks in takes:
        assert min(track.onset[0] for track in tracks.values()) == cut
        assert cut + 40 * 480 < max(track.end for track in tracks.values()) <= cut + 48 * 480
    onsets = [{tuple(track.onset.tolist()) for track in tracks.values()} for tracks in takes]
    assert max(map(len, onsets)) > 1  # not all parts play in all lines


def test_one_part_of_a_song_goes_on_while_all_are_read(tmp_path: Path) -> None:
    prompt = prompt_of(song(), tmp_path)
    (reading,) = read_prompt(prompt, prompt.cut(), SONGS, only=1)
    assert list(reading.parts) == ["7"] and reading.notes == 67
    for number in range(3):
        (tracks,) = go_on(*untrained(SONGS), prompt, Length(bars=4), language=SONGS, only=number)
        assert list(tracks) == [number] and tracks[number].onset[0] == prompt.cut()


def test_any_number_of_parts_goes_on(tmp_path: Path) -> None:
    parts = [melody(n, 8, program=n % 5).tracks[0] for n in range(20)] + [melody(n, 8, True).tracks[0] for n in (1, 2)]
    prompt = prompt_of(Score(480, tuple(parts), 100.0), tmp_path)
    cut = prompt.cut()
    (tracks,) = go_on(*untrained(SONGS), prompt, Length(notes=300), language=SONGS)
    assert len(tracks) > 15
    path = tmp_path / "take.mid"
    path.write_bytes(continue_midi(prompt, cut, tracks))
    take = read_midi(path)
    for number, (was, now) in enumerate(zip(prompt.score.tracks, take.tracks, strict=True)):
        kept = now.onset < cut
        assert np.array_equal(now.pitch[kept], was.pitch) and now.program == was.program
        assert np.array_equal(now.pitch[~kept], tracks[number].pitch if number in tracks else [])


def test_all_parts_begin_at_the_cut_and_end_together(tmp_path: Path) -> None:
    prompt = prompt_of(song(), tmp_path)
    cut = prompt.bar_start(4)
    for length, end in ((Length(bars=2), 8 * 480), (Length(seconds=3), 5 * 480)):
        (tracks,) = go_on(*untrained(TRACKS), prompt, length, at=4)
        assert {track.onset[0] for track in tracks.values()} == {cut}
        assert max(track.end for track in tracks.values()) == cut + end
    (tracks,) = go_on(*untrained(TRACKS), prompt, Length(notes=20), at=4)
    assert len(tracks[0]) >= 20
    for number in (1, 2):  # the first part's last line may be 8 beats long
        assert -8 * 480 < tracks[number].onset[-1] - tracks[0].onset[-1] < 8 * 480


def test_seconds_are_of_the_prompts_own_tempo(tmp_path: Path) -> None:
    for tempo in (10.0, 113.0, 400.0):  # a header has none of them
        prompt = prompt_of(replace(song(), tempo_bpm=tempo), tmp_path)
        (tracks,) = go_on(*untrained(TRACKS), prompt, Length(seconds=6))
        assert max(track.end for track in tracks.values()) - prompt.cut() == pytest.approx(tempo / 10 * 480, abs=20)


def test_every_part_has_chance_of_its_own(tmp_path: Path) -> None:
    (tune,) = melody(1, 30).tracks
    prompt = prompt_of(Score(480, (tune, tune), 100.0), tmp_path)
    (tracks,) = go_on(*untrained(TRACKS), prompt, Length(bars=4))
    assert not np.array_equal(tracks[0].pitch[:8], tracks[1].pitch[:8])


def test_behind_a_chord_the_next_note_counts_from_its_lowest(tmp_path: Path) -> None:
    rows = [(0, 480, 60, 80), (480, 480, 55, 80), (480, 480, 67, 80), (480, 480, 71, 80)]
    prompt = prompt_of(Score(480, (track_from_notes(rows),)), tmp_path)
    (reading,) = read_prompt(prompt, 960)
    assert reading.text.endswith("5-10|12+10|4+10|1/1\n") and reading.parts[""].reference == 55


@LANGUAGES
def test_parts_stay_near_their_range(tmp_path: Path, language: Language) -> None:
    prompt = prompt_of(song(), tmp_path)
    length = Length(notes=300 if language.is_song else 100)
    (tracks,) = go_on(*untrained(language), prompt, length, language=language)
    for number in (0, 1):
        played, pitch = prompt.score.tracks[number].pitch, tracks[number].pitch
        assert played.min() - 12 <= pitch.min() and pitch.max() <= played.max() + 12
        assert np.ptp(pitch) > 12
    for keys in (range(96, 120), range(10, 30)):  # far above and below
        (tracks,) = go_on(*untrained(language), prompt, Length(notes=30), language=language, keys=keys)
        assert {0, 1} & tracks.keys() and tracks[2].pitch.min() >= 35 and len(set(tracks[2].pitch.tolist())) > 3
        assert all(set(track.pitch.tolist()) <= set(keys) for number, track in tracks.items() if number != 2)


@LANGUAGES
def test_drums_stay_in_general_midis_kit_and_the_prompts(tmp_path: Path, language: Language) -> None:
    rows = [(480 * n, 240, (20, 38)[n % 2], 80) for n in range(16)]
    prompt = prompt_of(Score(480, (track_from_notes(rows, is_drum=True),)), tmp_path)
    (tracks,) = go_on(*untrained(language), prompt, Length(notes=300), language=language)
    drums = set(tracks[0].pitch.tolist())
    assert 20 in drums and drums <= {20, *range(35, 82)} and len(drums) > 20


@LANGUAGES
def test_every_real_file_goes_on(corpus: Callable[[str], Path], language: Language) -> None:
    """Every sixteenth here; the files' own events are tests/test_splice.py's."""
    for path in midi_files(corpus("mini"))[5::16]:
        prompt = load_prompt(path)
        cut = prompt.cut()
        (tracks,) = go_on(*untrained(language), prompt, Length(bars=1), language=language)
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
