"""make evaluate: what it writes and says, that the seed decides, and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from midigpt.dataset import Options, make_dataset
from midigpt.documents import Split
from midigpt.files import UserError
from midigpt.index import index_files
from midigpt.judge import (
    HELD_OUT,
    REAL,
    SHUFFLED,
    TAKES,
    Document,
    beginning,
    find_copies,
    first_notes,
    judge,
    read_side,
    shuffle,
    usual_notes,
)
from midigpt.language import TRACKS, Language, decode, encode
from midigpt.metrics import FEATURES
from midigpt.midi import read_midi, write_midi
from midigpt.normal import normalise
from midigpt.page import VARIABLES, svg
from midigpt.score import Score, Track
from midigpt.tokenizer import learn_tokenizer
from midigpt.train_data import make_train_bin
from tests.conftest import SPLIT, TINY, contents, make_songs, melody, ok, refusal, run_script

SONGS = Language()
FLAGS = ("--takes", "12", "--notes", "20")


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model in a folder that has more songs by now, and so enough that are held out."""
    root = Path(shutil.copytree(trained, tmp_path_factory.mktemp("evaluate") / "work"))
    make_songs(root / "raw_data", 80)
    index_files(root)
    make_dataset(root)
    make_train_bin(root, SPLIT, init_from=root / "train" / "runs" / "default" / "best")
    return root


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    """What a first evaluation printed."""
    return ok(run_script("scripts/evaluate.py", "--root", folder, *FLAGS))


@pytest.fixture(scope="module")
def evaluation(folder: Path, output: str) -> Path:
    return folder / "train" / "runs" / "default" / "evaluation"


def documents(count: int, is_drum: bool = False, notes: int = 40) -> list[Document]:
    """Different songs."""
    made = [encode(melody(n, notes, is_drum))[0] for n in range(count)]
    return [Document(f"song{n}_1", f"song{n}", document.text, document.notes) for n, document in enumerate(made)]


# --- what it writes --------------------------------------------------------------------------------------


def test_an_evaluation_gives_figures_for_takes_ceiling_and_floor(output: str, evaluation: Path) -> None:
    found = json.loads((evaluation / "evaluation.json").read_text())
    assert (found["takes"], found["notes"]) == (12, 20) and found["valid"] >= 10
    assert 0 < found["bits_per_note"] < found["unigram_bits_per_note"]
    group = found["groups"]["pitched parts"]
    assert group["pieces"][TAKES] == group["pieces"][REAL] == group["pieces"][SHUFFLED] == found["valid"]
    assert set(group["features"]) <= {feature.name for feature in FEATURES} and len(group["features"]) > 8
    for feature in group["features"].values():
        for of in (TAKES, REAL, SHUFFLED):
            assert 0 <= feature[of]["overlap"] <= 1 and -1e-9 <= feature[of]["divergence"] < 50
        assert feature["source"] and HELD_OUT in feature
    overlap = group["mean_overlap"]
    assert overlap[REAL] > overlap[SHUFFLED] + 0.1
    assert f"{found['bits_per_note']:.3f}" in output and f"{overlap[TAKES]:.2f}" in output
    assert all(name in output for name in group["features"])
    assert "the model was trained on other files" in output


def test_every_take_is_there_to_listen_to_and_those_of_before_are_gone(folder: Path, evaluation: Path) -> None:
    valid = json.loads((evaluation / "evaluation.json").read_text())["valid"]
    takes = sorted((evaluation / "takes").iterdir())
    assert [take.name for take in takes] == [f"take-{n:04d}.mid" for n in range(1, valid + 1)]
    assert all(read_midi(take).notes >= 20 for take in takes)
    out = folder / "again"
    (out / "takes").mkdir(parents=True)
    for name in ("take-0099.mid", "mine.mid"):
        (out / "takes" / name).touch()
    ok(run_script("scripts/evaluate.py", "--root", folder, *FLAGS, "--out", out))
    there = {path.name for path in (out / "takes").iterdir()}
    assert "take-0099.mid" not in there and "mine.mid" in there
    (out / "takes" / "mine.mid").unlink()
    assert contents(out) == contents(evaluation)  # as the seed is the same


def test_the_page_is_whole_and_needs_no_network(evaluation: Path) -> None:
    page = (evaluation / "evaluation.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n")
    assert not re.search(r"https?://|<script|<link|<img|@import|url\((?!#)", page)
    assert not any(stand_in in page for stand_in in VARIABLES)
    assert page.count("<svg") == page.count("</svg>") > 15
    assert all(f"Piano roll of {name}" in page for name in ("take-0001", "take-0005"))
    assert "prefers-color-scheme: dark" in page


def test_copies_of_takes_stand_beside_those_of_held_out_pieces(output: str, evaluation: Path) -> None:
    copies = json.loads((evaluation / "evaluation.json").read_text())["copies"]
    assert len(copies[TAKES]) >= 10 <= len(copies[HELD_OUT])
    assert all(0 <= copy["notes"] <= 24 for side in copies.values() for copy in side)
    longest = max(copies[TAKES], key=lambda copy: copy["notes"])
    assert longest["song"].startswith("song") and longest["bar"] >= 1
    assert f"{longest['notes']} at most" in output


def test_without_an_index_of_copies_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make train-bin"):
        find_copies(tmp_path, [])


# --- what it refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [("--takes", "9"), ("--notes", "3"), ("--temperature", "0"), ("--top-k", "0"), ("--top-p", "2"), ("--seed", "-1")],
    ids=lambda flags: flags[0],
)
def test_numbers_that_can_not_be_are_told(folder: Path, flags: tuple[str, str]) -> None:
    assert flags[0] in refusal(run_script("scripts/evaluate.py", "--root", folder, *flags))


def test_a_run_that_is_not_there_is_told(folder: Path) -> None:
    assert "make train" in refusal(run_script("scripts/evaluate.py", "--root", folder, "--run", "typo"))


def test_tokens_of_another_tokenizer_are_told(folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder / "train/runs/default/best", tmp_path / "best"))
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + "\n")
    told = refusal(run_script("scripts/evaluate.py", "--root", folder, "--model", model))
    assert "another tokenizer" in told and f"--init-from {model}" in told


def test_nothing_held_out_or_little_is_told(folder: Path) -> None:
    with pytest.raises(UserError, match="0 documents held out, too few to compare: 10 are needed; hold out another"):
        read_side(folder, TRACKS, Split(0.0, 0), True, 0)
    with pytest.raises(UserError, match=r"[1-9] documents? left to train on, too few"):
        read_side(folder, TRACKS, Split(0.95, 0), False, 0)


def test_too_few_are_told_with_their_numbers(tmp_path: Path) -> None:
    takes = [document.text for document in documents(30)]
    with pytest.raises(UserError, match="pitched parts: 4 held-out documents with 20 notes are too few"):
        judge(tmp_path, takes, documents(4), documents(30), 20, 0)
    with pytest.raises(UserError, match=r"--notes 16"):
        usual_notes(documents(9, notes=12))


# --- like with like --------------------------------------------------------------------------------------


def test_drums_are_judged_apart_and_not_by_pitch(tmp_path: Path) -> None:
    everything = [*documents(15), *documents(15, is_drum=True)]
    takes = [document.text for document in everything]
    groups, remarks = judge(tmp_path, takes, everything, everything, 20, 0)
    pitched, drums = groups
    assert not remarks and drums.name == "drums"
    assert {row.feature.name for row in pitched.rows} - {row.feature.name for row in drums.rows} >= {"pitch range"}
    assert all(track.is_drum for of in drums.pieces for p in drums.pieces[of] for track in p.score.tracks)
    assert all(row.likeness[TAKES].overlap > 0.9 for row in drums.rows)  # they are the held-out ones
    _, remarks = judge(tmp_path, takes[:20], everything, everything, 20, 0)
    assert remarks == ["drums: 5 takes with 20 notes are too few to compare; 10 are needed"]


def song_parts(count: int) -> list[tuple[Track, ...]]:
    """Of songs of two parts and drums."""
    return [
        melody(3 * n).tracks + melody(3 * n + 1, 30, program=33).tracks + melody(3 * n + 2, 20, is_drum=True).tracks
        for n in range(count)
    ]


def song_documents(count: int) -> list[Document]:
    made = [encode(Score(480, parts), language=SONGS)[0] for parts in song_parts(count)]
    return [Document(f"song{n}", f"song{n}", document.text, document.notes) for n, document in enumerate(made)]


def test_songs_are_judged_whole(tmp_path: Path) -> None:
    songs = song_documents(15)
    assert usual_notes(songs, "song") == 90 and usual_notes(song_documents(1) + documents(9, notes=999), "song") == 512
    takes = [song.text for song in songs[:10]] + [song.text for song in song_documents(1)]
    ((group,), remarks) = judge(tmp_path, takes, songs, songs, 60, 0, SONGS)
    assert not remarks and group.name == "songs"
    assert {row.feature.name for row in group.rows} == {feature.name for feature in FEATURES}
    for of, pieces in group.pieces.items():
        assert {piece.score.notes for piece in pieces if of != SHUFFLED} <= {60}
        assert all({track.is_drum for track in piece.score.tracks} == {True, False} for piece in pieces)
    assert all(row.likeness[TAKES].overlap > 0.8 for row in group.rows)  # most are the held-out ones
    drums = {of: [drum_notes(piece.score) for piece in group.pieces[of]] for of in (HELD_OUT, SHUFFLED)}
    assert 0.8 < np.mean(drums[SHUFFLED]) / np.mean(drums[HELD_OUT]) <= 1.1
    cymbals = {pitch for piece in group.pieces[HELD_OUT] for t in piece.score.tracks if t.is_drum for pitch in t.pitch}
    assert all(set(t.pitch) <= cymbals for piece in group.pieces[SHUFFLED] for t in piece.score.tracks if t.is_drum)


def test_a_folder_of_songs_is_trained_on_judged_and_refused_in_another_layout(tmp_path: Path) -> None:
    for n, parts in enumerate(song_parts(40)):
        (tmp_path / "raw_data").mkdir(exist_ok=True)
        write_midi(Score(480, parts, 100.0), tmp_path / "raw_data" / f"song{n:02}.mid")
    index_files(tmp_path)
    make_dataset(tmp_path, Options(layout="song", encoding="interval"))
    learn_tokenizer(tmp_path, 80, Split(0.4, 0))
    make_train_bin(tmp_path, Split(0.4, 0))
    ok(run_script("scripts/train.py", "--root", tmp_path, *TINY, "--max-steps", "20"))
    run = tmp_path / "train" / "runs" / "default"
    take = max((run / "takes").iterdir())
    assert len(read_midi(take).tracks) > 1 and read_midi(take).notes >= 128
    output = ok(run_script("scripts/evaluate.py", "--root", tmp_path, "--takes", "12", "--notes", "40"))
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert "  songs" in output and found["valid"] == 12
    assert 10 <= found["groups"]["songs"]["pieces"][TAKES] <= 12  # one may have drums alone
    assert re.search(r"take-00\d\d: song\d\d, bar", output)
    assert any(len(read_midi(take).tracks) > 1 for take in (run / "evaluation" / "takes").iterdir())
    make_dataset(tmp_path, Options(layout="track"))
    told = refusal(run_script("scripts/evaluate.py", "--root", tmp_path, "--takes", "12"))
    assert "in another language" in told and "--layout song --encoding interval" in told


def drum_notes(score: Score) -> int:
    return sum(len(track) for track in score.tracks if track.is_drum)


def test_pieces_are_cut_to_the_same_notes_and_begin_in_their_first_bar() -> None:
    text = encode(melody(0))[0].text
    piece = beginning("a", "a", text, 20)
    assert piece and piece.score.notes == 20 and piece.score == normalise(decode([first_notes(text, 20)]))
    header, body = text.split("\n", 1)
    late = beginning("a", "a", f"{header}\n9/1\n{body}", 20)
    assert late and late.score.tracks[0].onset[0] == 24  # nine beats are two bars and a beat
    assert beginning("a", "a", text, 41) is None


def test_shuffled_pieces_have_the_notes_of_the_real_ones_and_nothing_of_their_order() -> None:
    real = [beginning(d.name, d.song, d.text, 40) for d in documents(20)]
    made = shuffle([piece for piece in real if piece], 40, 25, 0)
    assert len(made) == 25 and all(30 <= piece.score.notes <= 40 for piece in made)

    def all_of(column: str, pieces: list) -> np.ndarray:
        return np.concatenate([getattr(piece.score.tracks[0], column) for piece in pieces])

    assert set(all_of("pitch", made)) <= set(all_of("pitch", real))
    steps = [np.abs(np.diff(all_of("pitch", pieces))).mean() for pieces in (real, made)]
    assert steps[1] > 2 * steps[0]


def test_any_name_may_stand_under_a_picture() -> None:
    picture = svg(lambda figure: figure.text(0, 0, "x"), "AC\\DC, \\1 live", 1, 1)
    assert 'aria-label="AC\\DC, \\1 live" viewBox="0 0 ' in picture and picture.endswith("</svg>\n")


def test_a_document_is_cut_behind_the_line_of_a_note() -> None:
    text = "#\n1/1\n0+9|1/1\n0+9|4+9|1/1\n0+9|1/1\n"
    assert first_notes(text, 2) == first_notes(text, 3) == "#\n1/1\n0+9|1/1\n0+9|4+9|1/1\n"
    assert first_notes(text, 0) == text and not first_notes(text, 5)
