"""Tokenizer, train.bin and batches."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from midigpt.dataset import make_dataset
from midigpt.documents import Split
from midigpt.index import Song, index_files, songs
from midigpt.midi import write_midi
from midigpt.score import Score
from midigpt.tokenizer import START_ID, learn_tokenizer
from midigpt.train_data import Batches, evaluation_windows, line_tokens, load_side, make_train_bin, read_data
from tests.conftest import SPLIT, documents, make_songs, melody, ok, refusal, run_script

# --- tokenizer -------------------------------------------------------------------------------------------


def test_the_vocabulary_has_the_size_asked_for(prepared: Path) -> None:
    assert Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json")).get_vocab_size() == 80


def test_a_size_the_data_does_not_allow_is_told(work: Path) -> None:
    flags = ("--root", work, "--vocab-size", "60000", "--val-fraction", "0.2")
    out = ok(run_script("scripts/tokenizer.py", *flags))
    size = Tokenizer.from_file(str(work / "cache" / "tokenizer.json")).get_vocab_size()
    assert f"{size} is the largest vocabulary these documents allow" in out
    assert "is not in" in refusal(run_script("scripts/tokenizer.py", "--root", work, "--vocab-size", "5"))


def test_decoding_gives_back_the_exact_text_and_no_token_crosses_an_event(prepared: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json"))
    for text in documents(prepared).values():
        encoding = tokenizer.encode(text)
        assert tokenizer.decode(encoding.ids) == text
        assert not any("\n" in token[:-1] or " " in token[1:] for token in encoding.tokens)
    strange = "# program=d tempo=33 meter=15/16\n127=16:95/24|9876543/1\n"
    assert tokenizer.decode(tokenizer.encode(strange).ids) == strange


def test_transformers_opens_the_tokenizer(prepared: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    path = str(prepared / "cache" / "tokenizer.json")
    theirs, ours = PreTrainedTokenizerFast(tokenizer_file=path), Tokenizer.from_file(path)
    for text in documents(prepared).values():
        assert theirs.encode(text) == ours.encode(text).ids
        assert theirs.decode(theirs.encode(text)) == text


def test_the_tokenizer_learns_from_training_songs_only(work: Path) -> None:
    learned = (work / "cache" / "tokenizer.json").read_bytes()
    held_out = [song for song in songs(work) if SPLIT.is_val(song)]
    assert held_out
    for song in held_out:
        (work / "data" / f"{song.name}_1.txt").write_text("# program=99\n99+16|77/24\n" * 50)
    learn_tokenizer(work, 80, SPLIT)
    assert (work / "cache" / "tokenizer.json").read_bytes() == learned


# --- train.bin -------------------------------------------------------------------------------------------


def test_train_bin_is_plain_uint16_with_every_document(prepared: Path) -> None:
    tokens = np.fromfile(prepared / "train" / "train.bin", "<u2")
    tokenizer = Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json"))
    starts = np.flatnonzero(tokens == START_ID)
    meta = json.loads((prepared / "train" / "meta.json").read_text())
    assert len(starts) == meta["train"]["documents"] and len(tokens) == meta["train"]["tokens"]
    assert tokens.max() < meta["vocab_size"]
    packed = {tokenizer.decode(part[1:].tolist()).partition("\n")[2] for part in np.split(tokens, starts[1:])}
    training = [song for song in songs(prepared) if not SPLIT.is_val(song)]
    assert packed == {documents(prepared)[f"{song.name}_1.txt"].partition("\n")[2] for song in training}
    assert meta["train"]["songs"] + meta["val"]["songs"] == 30 and meta["val"]["songs"] > 0


def test_headers_are_thinned_in_training_and_without_key_in_validation(prepared: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json"))

    def headers(name: str) -> list[str]:
        side, _ = load_side(prepared, name)
        return [tokenizer.decode(side.tokens[start + 1 : lines].tolist()) for start, lines in side.docs]

    assert set(headers("val")) == {"# program=0 tempo=100 meter=4/4\n"}
    kept = sum(header.count("=") for header in headers("train")) / (4 * len(headers("train")))
    assert 0.6 < kept < 0.9


def test_a_document_without_a_header_loses_no_line(work: Path) -> None:
    song = songs(work)[0]
    (work / "data" / f"{song.name}_1.txt").write_text("0+10|1/1\n2+10|1/1\n")
    make_train_bin(work, SPLIT)
    side, _ = load_side(work, "val" if SPLIT.is_val(song) else "train")
    start, lines = side.docs[0]
    tokenizer = Tokenizer.from_file(str(work / "cache" / "tokenizer.json"))
    assert tokenizer.decode(side.tokens[start + 1 : lines].tolist()) == "#\n"
    assert tokenizer.decode(side.tokens[lines : side.docs[1, 0]].tolist()) == "0+10|1/1\n2+10|1/1\n"


def test_running_twice_changes_nothing(work: Path) -> None:
    def everything() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for folder in ("cache", "train") for path in (work / folder).iterdir()}

    before = everything()
    learn_tokenizer(work, 80, SPLIT)
    make_train_bin(work, SPLIT)
    assert everything() == before


def test_adding_files_moves_no_song(work: Path) -> None:
    before = {song.name: SPLIT.is_val(song) for song in songs(work)}
    write_midi(melody(1000), work / "raw_data" / "aaa.mid")
    index_files(work)
    make_dataset(work)
    after = {song.name: SPLIT.is_val(song) for song in songs(work)}
    assert before.items() < after.items()


def test_trap_one_song_under_two_names_stays_on_one_side(tmp_path: Path) -> None:
    raw = tmp_path / "raw_data"
    make_songs(raw, 20)
    for number in range(20):
        (track,) = melody(number).tracks
        moved = type(track)(5, False, track.onset, track.duration, track.pitch + 3, track.velocity)
        write_midi(Score(480, (moved,), 77.0), raw / f"cover{number:02d}.mid")
    index_files(tmp_path)
    make_dataset(tmp_path)
    split = Split(0.5, 0)
    sides = {song.name: split.is_val(song) for song in songs(tmp_path)}
    assert set(sides.values()) == {True, False}
    assert all(sides[f"song{number:02d}"] == sides[f"cover{number:02d}"] for number in range(20))


def test_about_the_asked_fraction_is_held_out() -> None:
    songs = [Song(str(number), f"{number:016x}", 1) for number in range(2000)]
    for fraction in (0.0, 0.05, 0.5):
        held_out = sum(Split(fraction, seed=1).is_val(song) for song in songs)
        assert held_out == pytest.approx(2000 * fraction, abs=70)
    assert [Split(0.5, 1).is_val(song) for song in songs] != [Split(0.5, 2).is_val(song) for song in songs]


def test_another_split_than_the_tokenizers_is_refused(work: Path) -> None:
    error = refusal(run_script("scripts/train_bin.py", "--root", work, "--val-fraction", "0.2", "--seed", "5"))
    assert 'make tokenizer ARGS="--val-fraction 0.2 --seed 5"' in error


def test_read_data_is_checked_and_maps_memory(prepared: Path) -> None:
    path = prepared / "train" / "train.bin"
    tokens = np.fromfile(path, "<u2")
    assert isinstance(read_data(0, 5, path), np.memmap)
    assert np.array_equal(read_data(3, 11, path), tokens[3:11])
    assert len(read_data(len(tokens), len(tokens), path)) == 0
    for start, end in ((-1, 5), (5, 3), (0, len(tokens) + 1)):
        with pytest.raises(IndexError, match="not within"):
            read_data(start, end, path)


def test_every_token_is_a_target_once_an_epoch(prepared: Path) -> None:
    side, _ = load_side(prepared, "train")
    batches = Batches(side, 3, 17, seed=1)
    length = len(side.tokens)
    stream = np.concatenate([batches(step)[1].ravel() for step in range(3 * length // 51 + 1)])
    assert np.array_equal(batches(2)[1], Batches(side, 3, 17, seed=1)(2)[1])  # a function of the step alone
    first, second = np.append(batches(0)[0][0, 0], stream[: length - 1]), stream[length - 1 : 2 * length - 1]
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        assert np.array_equal(np.sort(epoch), np.sort(side.tokens))
        assert np.array_equal(np.flatnonzero(epoch == START_ID)[:1], [0])


def test_the_measure_counts_every_line_token_once(prepared: Path) -> None:
    side, _ = load_side(prepared, "val")
    for block_size in (1, 8, 33, 10_000):
        counted = np.zeros(len(side.tokens), int)
        for start, end, first in evaluation_windows(side, block_size):
            assert end - start <= block_size + 1
            counted[max(first, start + 1) : end] += 1
        assert counted.max() == 1
        assert np.array_equal(side.tokens[counted == 1], line_tokens(side))
