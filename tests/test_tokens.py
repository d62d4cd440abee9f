"""Tokenizer, train.bin and batches."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from midigpt import documents as documents_module
from midigpt import tokenizer as tokenizer_module
from midigpt import train_data
from midigpt.bpe import START, START_ID
from midigpt.dataset import Options, make_dataset
from midigpt.documents import Split, read_songs
from midigpt.files import UserError
from midigpt.index import Song, index_files, open_index, songs, totals
from midigpt.language import TRACKS
from midigpt.midi import write_midi
from midigpt.score import Score
from midigpt.sides import load_side, read_data
from midigpt.tokenizer import LineEncoder, learn_tokenizer, sample_documents
from midigpt.train_data import make_train_bin
from tests.conftest import OF_TRACKS, SPLIT, documents, make_songs, melody, ok, refusal, run_script

# --- songs and their documents -----------------------------------------------------------------------------


def test_songs_come_in_name_order_and_leave_the_index_open_to_others(work: Path) -> None:
    names = ["above", *(f"song{number:05d}{end}" for number in range(3000, 1500, -1) for end in ("", " "))]
    with open_index(work) as connection:
        row = "INSERT INTO files (path, name, folded, size, stamp, state, music, recipe) SELECT"
        row += " ?1, ?1, ?1, 1, 1, 'converted', '', recipe FROM files LIMIT 1"
        connection.executemany(row, [(name,) for name in names])
    assert totals(work, 10) == (3031, 300)  # the new ones have no notes
    assert totals(work, 1000) == (3031, 30 * 40)
    before = [f"song{number:02d}" for number in range(30)]
    some = songs(work)
    with ThreadPoolExecutor() as other_thread:
        seen = [other_thread.submit(next, some).result().name for _ in range(10)]
    with sqlite3.connect(work / "cache" / "index.sqlite", timeout=0) as connection:
        connection.execute("DELETE FROM files WHERE name = 'song03000 '")
    assert seen + [song.name for song in some] == sorted({*before, *names} - {"song03000 "})


def test_documents_are_read_when_their_song_is_asked_for(work: Path) -> None:
    (work / "data" / "song01_1.txt").unlink()
    some = read_songs(work, songs(work))
    song, texts = next(some)
    assert (song.name, texts) == ("song00", [documents(work)["song00_1.txt"]])
    with pytest.raises(UserError, match=r"song01_1\.txt is missing"):
        next(some)


def test_the_last_line_of_a_document_ends_too(work: Path) -> None:
    for song in songs(work):
        path = work / "data" / f"{song.name}_1.txt"
        path.write_text(path.read_text().removesuffix("\n"))
    before = {path.name: path.read_bytes() for path in (work / "train").iterdir()}
    make_train_bin(work, SPLIT)
    assert {path.name: path.read_bytes() for path in (work / "train").iterdir()} == before


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


def drawn(root: Path) -> list[str]:
    return list(sample_documents(root, SPLIT))


def test_a_large_corpus_is_sampled_by_its_music(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = [documents(prepared)[f"{song.name}_1.txt"] for song in songs(prepared) if not SPLIT.is_val(song)]
    assert drawn(prepared) == training  # a small one is read whole
    monkeypatch.setattr("midigpt.tokenizer.SAMPLE_NOTES", 600)  # of 1200
    sample = drawn(prepared)
    assert 0.3 * len(training) < len(sample) < 0.7 * len(training)
    assert drawn(prepared) == sample
    assert set(sample_documents(prepared, Split(SPLIT.val_fraction, 1))) != set(sample)

    for number in range(30):  # the same songs in another order
        write_midi(melody(number), tmp_path / "raw_data" / f"{number * 7 % 30:02d}.mid")
    index_files(tmp_path)
    make_dataset(tmp_path, OF_TRACKS)
    assert drawn(tmp_path) != sample and sorted(drawn(tmp_path)) == sorted(sample)


def test_one_giant_song_does_not_fill_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_songs(tmp_path / "raw_data", 30)
    write_midi(melody(99, notes=5000), tmp_path / "raw_data" / "giant.mid")
    index_files(tmp_path)
    make_dataset(tmp_path, OF_TRACKS)
    monkeypatch.setattr("midigpt.tokenizer.SONG_NOTES", 100)
    sample = list(sample_documents(tmp_path, Split(0.0)))
    assert len(sample) == 31
    giant = max(sample, key=len)
    header, *lines = documents(tmp_path)["giant_1.txt"].splitlines()
    assert giant.splitlines() == [header, *lines[::50]]
    monkeypatch.setattr("midigpt.tokenizer.SAMPLE_NOTES", 700)  # of 1300: the giant crowds nobody out
    assert 8 < len(list(sample_documents(tmp_path, Split(0.0)))) < 24


# --- lines to tokens -------------------------------------------------------------------------------------


class Counting:
    """A tokenizer that remembers what it was asked to encode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.lines = tokenizer, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self.lines += "".join(texts).replace(START, "").splitlines(keepends=True)
        return self.tokenizer.encode_batch_fast(texts)


@pytest.mark.parametrize("remembered", [0, 20, 100, 1 << 20])
@pytest.mark.parametrize("at_once", [1, 7, 1 << 16])
def test_lines_have_the_tokens_of_their_document_however_little_is_remembered(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, remembered: int, at_once: int
) -> None:
    monkeypatch.setattr("midigpt.tokenizer.LINES_AT_ONCE", at_once)
    tokenizer = Counting(Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json")))
    encoder = LineEncoder(tokenizer, TRACKS, remembered)
    seen = set()
    for text in documents(prepared).values():
        lines = [START, *text.splitlines(keepends=True)]
        tokens, lengths, steps = encoder(lines)
        assert tokens.tolist() == [START_ID, *tokenizer.encode(text).ids]
        for line, part in zip(lines, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True):
            assert tokenizer.decode(part.tolist(), skip_special_tokens=False) == line
        assert steps.tolist() == [0, 0, *(12 * int("|1/2" in line) + 24 * int("|1/1" in line) for line in lines[2:])]
        seen.update(lines[1:])
        assert len(encoder._tokens) == encoder._ends[-1] <= remembered
        assert len(encoder._number) == len(encoder._uses) == len(encoder._steps) == len(encoder._ends) - 1
    if remembered == 1 << 20:
        assert sorted(tokenizer.lines) == sorted(seen)  # each once


def test_what_is_used_most_is_remembered(prepared: Path) -> None:
    tokenizer = Counting(Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json")))
    encoder = LineEncoder(tokenizer, TRACKS, 60)
    for number in range(1, 100):
        encoder(["0+10|1/1\n"] * 3 + [f"{number % 10}+{number}|1/{number}\n"])
    assert tokenizer.lines.count("0+10|1/1\n") == 1
    assert len(encoder._number) < 20


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


@pytest.mark.parametrize("processes", [1, 2])
def test_train_bin_is_the_same_whatever_is_done_at_once(
    work: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    before = {path.name: path.read_bytes() for path in (work / "train").iterdir()}
    monkeypatch.setattr(train_data, "SONGS_AT_ONCE", 3)
    monkeypatch.setattr(tokenizer_module, "LINES_AT_ONCE", 50)
    make_train_bin(work, SPLIT, processes)
    assert {path.name: path.read_bytes() for path in (work / "train").iterdir()} == before
    with (work / "again.npy").open("wb") as file:
        np.save(file, np.load(work / "train" / "train.docs.npy"))
    assert (work / "again.npy").read_bytes() == before["train.docs.npy"]


def test_headers_are_thinned_in_training_and_without_key_in_validation(prepared: Path) -> None:
    tokenizer = Tokenizer.from_file(str(prepared / "cache" / "tokenizer.json"))

    def headers(name: str) -> list[str]:
        side, _ = load_side(prepared, name)
        return [tokenizer.decode(side.tokens[start + 1 : lines].tolist()) for start, lines in side.docs]

    assert set(headers("val")) == {"# program=0 tempo=100 meter=4/4\n"}
    kept = sum(header.count("=") for header in headers("train")) / (4 * len(headers("train")))
    assert 0.6 < kept < 0.9


def test_a_document_without_a_header_loses_no_line(work: Path) -> None:
    song = next(songs(work))
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
    make_dataset(tmp_path, Options(dedupe="off", layout="track", encoding="interval"))
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
    learn_tokenizer(work, 80, Split(0.4, 5))
    ok(run_script("scripts/train_bin.py", "--root", work))
    meta = json.loads((work / "train" / "meta.json").read_text())
    assert (meta["val_fraction"], meta["seed"]) == (0.4, 5)  # the tokenizer's, where nothing is said


def test_read_data_is_checked_and_maps_memory(prepared: Path) -> None:
    path = prepared / "train" / "train.bin"
    tokens = np.fromfile(path, "<u2")
    assert isinstance(read_data(0, 5, path), np.memmap)
    assert np.array_equal(read_data(3, 11, path), tokens[3:11])
    assert len(read_data(len(tokens), len(tokens), path)) == 0
    for start, end in ((-1, 5), (5, 3), (0, len(tokens) + 1)):
        with pytest.raises(IndexError, match="not within"):
            read_data(start, end, path)


# --- shards ----------------------------------------------------------------------------------------------


def test_a_shard_is_read_once_and_gives_what_files_give(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in (work / "train").iterdir()}
    make_dataset(work, Options(shards=True, shard_files=20))
    opened = []
    monkeypatch.setattr(documents_module, "_bytes", lambda content, path: opened.append(path) or content)
    monkeypatch.setattr(train_data, "SONGS_AT_ONCE", 3)
    make_train_bin(work, SPLIT)
    assert opened == [f"{work}/data/shard-000001.txt", f"{work}/data/shard-000002.txt"]
    assert {path.name: path.read_bytes() for path in (work / "train").iterdir()} == before


@pytest.mark.parametrize("what", ["changed", "removed"])
def test_a_shard_older_than_the_index_gives_no_songs_away_for_others(tmp_path: Path, what: str) -> None:
    make_songs(tmp_path / "raw_data", 6)
    index_files(tmp_path)
    make_dataset(tmp_path, Options(shards=True))
    whole = {song.name: texts for song, texts in read_songs(tmp_path, songs(tmp_path))}
    path = tmp_path / "raw_data" / "song01.mid"
    path.unlink() if what == "removed" else write_midi(melody(77), path)
    index_files(tmp_path)
    with pytest.raises(UserError, match="older than the index"):
        list(read_songs(tmp_path, songs(tmp_path)))
    make_dataset(tmp_path)
    again = {song.name: texts for song, texts in read_songs(tmp_path, songs(tmp_path))}
    others = whole.keys() - {"song01"}
    assert {name: again[name] for name in others} == {name: whole[name] for name in others}
