"""A working folder in the song layout, or in another encoding: dataset, tokenizer, train.bin."""

import json
import math
import re
import shutil
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from midigpt import train_data
from midigpt.batches import Batches
from midigpt.bpe import START_ID, token_texts
from midigpt.checkpoint import language_of
from midigpt.dataset import Options, Summary, make_dataset
from midigpt.documents import read_songs
from midigpt.executors import Executor
from midigpt.files import UserError, read_json
from midigpt.header import LanguageError, read_header, split_header
from midigpt.index import index_files, language, open_index, songs, totals
from midigpt.language import TRACKS, Language, decode, encode, in_key
from midigpt.midi import load_midi, write_midi
from midigpt.normal import Layout
from midigpt.score import Score
from midigpt.sides import Side, load_side
from midigpt.tokenizer import learn_tokenizer, load_tokenizer
from midigpt.train_data import make_train_bin
from tests.conftest import PROJECT, SPLIT, documents, melody, ok, refusal, run_script, tables

SONG = Language("interval", "song")
HELD_OUT = ("--val-fraction", str(SPLIT.val_fraction), "--seed", str(SPLIT.seed))


def band(seed: int) -> Score:
    """Two melodies for one program, a bass, and drums."""
    parts = [melody(seed), melody(seed + 100), melody(seed + 200, program=33), melody(seed + 300, is_drum=True)]
    return Score(480, tuple(part.tracks[0] for part in parts), 100.0)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("indexed")
    (root / "raw_data").mkdir()
    for number in range(12):
        write_midi(band(number), root / "raw_data" / f"band{number:02d}.mid")
    index_files(root)
    return root


@pytest.fixture
def folder(indexed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(indexed, tmp_path / "work"))


@pytest.fixture(scope="module")
def packed(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the song layout, up to train.bin."""
    root = Path(shutil.copytree(indexed, tmp_path_factory.mktemp("packed") / "work"))
    convert(root, layout="song", encoding="interval")
    learn_tokenizer(root, 300, SPLIT)
    make_train_bin(root, SPLIT)
    return root


def convert(root: Path, **options: Any) -> Summary:
    return make_dataset(root, Options(executor=Executor("serial"), **options))


def texts(root: Path) -> dict[str, list[str]]:
    return {song.name: texts for song, texts in read_songs(root, songs(root))}


# --- in twelve keys --------------------------------------------------------------------------------------


@pytest.fixture
def anchored(folder: Path) -> Path:
    """A folder in the usual language, up to the tokenizer."""
    convert(folder)
    learn_tokenizer(folder, 300, SPLIT)
    return folder


def packed_texts(root: Path, name: str) -> tuple[Side, list[tuple[str, str]]]:
    """A side, and of each document in it its header and lines."""
    side, _ = load_side(root, name)
    tokenizer = Tokenizer.from_file(str(root / "cache" / "tokenizer.json"))
    places = zip(*side.docs.T.tolist(), side.ends.tolist(), strict=True)
    decode = tokenizer.decode
    return side, [
        (decode(side.tokens[start + 1 : first].tolist()), decode(side.tokens[first:end].tolist()))
        for start, first, end in places
    ]


def test_training_documents_are_in_twelve_keys_and_held_out_ones_in_their_own(anchored: Path) -> None:
    train, val = make_train_bin(anchored, SPLIT)
    assert (train.keys, val.keys) == (12, 1)
    written = texts(anchored)
    training = [split_header(written[song.name][0])[1] for song in songs(anchored) if not SPLIT.is_val(song)]
    assert train.documents == len(training) and train.notes == sum(text.count("|") for text in training)
    side, found = packed_texts(anchored, "train")
    assert len(found) == 12 * len(training) and side.keys == 12
    assert side.epoch_tokens == len(side.tokens) // 12
    for number, text in enumerate(training):
        its = found[12 * number : 12 * number + 12]
        assert its[0][1] == text  # its own key comes first
        assert {body for _, body in its} == {in_key(text, by, Language()).removeprefix("#\n") for by in range(-6, 6)}
    named = [read_header(header).key for header, _ in found]
    assert 0.6 < sum(key is not None for key in named) / len(named) < 0.9
    for number, key in enumerate(named):  # the anchor is that of the lines, which are lower from a higher one
        if key is not None and named[number - number % 12] is not None:
            assert abs(key - named[number - number % 12]) <= 6
    assert [body for _, body in packed_texts(anchored, "val")[1]] == [
        split_header(written[song.name][0])[1] for song in songs(anchored) if SPLIT.is_val(song)
    ]


def test_fewer_keys_are_among_the_twelve(anchored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_train_bin(anchored, SPLIT)
    twelve = packed_texts(anchored, "train")[1]
    assert make_train_bin(anchored, SPLIT, keys=3)[0].keys == 3
    three = packed_texts(anchored, "train")[1]
    kept = [twelve[n : n + 3] for n in range(0, len(twelve), 12)]
    assert three == [document for some in kept for document in some]
    others = {body for some in kept for _, body in some[1:]}
    assert len(others) == 2 * len(kept)
    monkeypatch.setattr(train_data, "MOST_NOTES", 2 * totals(anchored, 10**9)[1])
    assert make_train_bin(anchored, SPLIT)[0].keys == 2
    monkeypatch.setattr(train_data, "MOST_NOTES", 1)
    assert make_train_bin(anchored, SPLIT)[0].keys == 1
    monkeypatch.setattr(train_data, "SONGS_AT_ONCE", 3)
    assert make_train_bin(anchored, SPLIT, keys=3)[0].keys == 3
    assert packed_texts(anchored, "train")[1] == three


def test_keys_that_can_not_be(anchored: Path, packed: Path) -> None:
    for keys in ("0", "13"):
        said = refusal(run_script("scripts/train_bin.py", "--root", anchored, *HELD_OUT, "--keys", keys))
        assert f"--keys {keys} is not in 1..12" in said
    with pytest.raises(UserError, match="the encoding interval can't write"):
        make_train_bin(packed, SPLIT, keys=2)
    assert load_side(packed, "train")[0].keys == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_keys_are_the_same_whatever_is_done_at_once(anchored: Path, processes: int) -> None:
    make_train_bin(anchored, SPLIT, keys=3)
    before = {path.name: path.read_bytes() for path in (anchored / "train").iterdir()}
    convert(anchored, shards=True)
    make_train_bin(anchored, SPLIT, processes, keys=3)
    after = {path.name: path.read_bytes() for path in (anchored / "train").iterdir()}
    assert after == before


def test_absolute_pitch_is_packed_in_other_keys(folder: Path) -> None:
    convert(folder, encoding="absolute")
    learn_tokenizer(folder, 300, SPLIT)
    train, _ = make_train_bin(folder, SPLIT, keys=2)
    found = packed_texts(folder, "train")[1]
    assert len(found) == 2 * train.documents
    for (_, own), (_, other) in zip(found[::2], found[1::2], strict=True):
        score, moved = (decode([body], Language("absolute")) for body in (own, other))
        (by,) = {
            int(by)
            for before, after in zip(score.tracks, moved.tracks, strict=True)
            if not before.is_drum
            for by in after.pitch - before.pitch
        }
        assert by and score.tracks[-1] == moved.tracks[-1] and score.tracks[-1].is_drum


def test_an_epoch_is_all_songs_once(anchored: Path) -> None:
    out = ok(run_script("scripts/train_bin.py", "--root", anchored, *HELD_OUT, "--keys", "4"))
    assert "songs, each in 4 keys, to " in out
    side, _ = load_side(anchored, "train")
    tiny = ("--model.n-layer", "1", "--model.n-embd", "16", "--model.block-size", "32", "--batch-size", "4")
    out = ok(run_script("scripts/train.py", "--root", anchored, *tiny, "--epochs", "10", "--device", "cpu"))
    steps = math.ceil(10 * side.epoch_tokens / 128)
    assert f"{len(side.tokens) // 4:,} tokens in each of 4 keys; {steps} steps" in out
    run_folder = anchored / "train" / "runs" / "default"
    run = read_json(run_folder / "latest" / "run.json")
    assert run["epochs"] == pytest.approx(10, rel=0.05) and run["config"]["dropout"] == 0  # each text 2.5 times
    assert "in 4 keys" in (run_folder / "latest" / "README.md").read_text()

    batches = Batches(side, 4, 32, 0)
    document = np.repeat(np.arange(len(side.docs)), side.ends - side.docs[:, 0])
    usual = (side.ends - side.docs[:, 0]).reshape(-1, 4).mean(axis=1)  # tokens of each song, in one of its keys
    a_round, missed = len(side.tokens) // 128, 0
    for epoch in range(4):
        steps_of_epoch = range(epoch * a_round // 4, (epoch + 1) * a_round // 4)
        places = np.concatenate([batches._places(step)[:, :-1].ravel().numpy() for step in steps_of_epoch])
        missed += int((np.bincount(document[places] // 4, minlength=len(usual)) < 0.4 * usual).sum())
    assert missed <= 4  # at the seams, as keys differ in tokens; of 44, of which chance would miss a third


def test_other_keys_are_another_run_and_no_other_songs(anchored: Path) -> None:
    make_train_bin(anchored, SPLIT, keys=2)
    tiny = ("--model.n-layer", "1", "--model.n-embd", "16", "--model.block-size", "32", "--device", "cpu")
    train = ("scripts/train.py", "--root", anchored, *tiny)
    ok(run_script(*train, "--max-steps", "2"))
    make_train_bin(anchored, SPLIT, keys=1)
    assert "begun with other keys of the songs" in refusal(run_script(*train, "--max-steps", "3"))
    meta = anchored / "train" / "meta.json"  # as it was before there were keys
    old = read_json(meta)
    for side in ("train", "val"):
        del old[side]["keys"]
    meta.write_text(json.dumps(old))
    ok(run_script(*train, "--max-steps", "2", "--run", "old"))
    make_train_bin(anchored, SPLIT, keys=1)
    assert "finished" in ok(run_script(*train, "--max-steps", "3", "--run", "old"))


# --- dataset ---------------------------------------------------------------------------------------------


def test_a_song_is_one_document_and_the_language_is_remembered(folder: Path) -> None:
    summary = convert(folder, layout="song", encoding="interval")
    assert (summary.files, summary.documents, summary.before) == (12, 12, {})
    assert sorted(documents(folder)) == [f"band{number:02d}.txt" for number in range(12)]
    for name, text in documents(folder).items():
        score = load_midi(folder / "raw_data" / name.replace(".txt", ".mid"))
        assert [text] == [document.text for document in encode(score, language=SONG)]
    assert language(folder) == SONG
    again = convert(folder)
    assert (again.converted, again.documents, again.before) == (0, 12, {})
    assert texts(folder) == {name.removesuffix(".txt"): [text] for name, text in documents(folder).items()}


def test_a_folder_without_a_language_is_in_the_usual_one_or_if_it_has_documents_in_that_of_tracks(folder: Path) -> None:
    assert language(folder) == Language()
    convert(folder, layout="track", encoding="interval")
    before = documents(folder)
    with closing(open_index(folder)) as index, index:  # as it was before there was a choice
        index.execute("DELETE FROM settings WHERE key IN ('layout', 'encoding')")
    assert language(folder) == TRACKS
    assert convert(folder).converted == 0 and documents(folder) == before
    assert convert(folder, layout="song", encoding="anchored").before == {"encoding": "interval", "layout": "track"}
    assert language(folder) == Language()


def test_another_language_converts_anew_and_leaves_nothing_of_the_old(folder: Path) -> None:
    convert(folder, layout="track", encoding="interval")
    assert len(documents(folder)) == 48 and language(folder) == TRACKS
    out = ok(run_script("scripts/dataset.py", "--root", folder, "--layout", "song", "--workers", "1"))
    assert "all files are converted anew: the last time it was layout track\n" in out
    assert len(documents(folder)) == 12
    summary = convert(folder, encoding="absolute")
    assert (summary.converted, summary.before) == (12, {"encoding": "interval"})
    assert language(folder) == Language("absolute", "song")
    assert all(re.search(r"\n0@\d+=", text) for text in documents(folder).values())
    assert convert(folder, layout="track", encoding="interval").converted == 12
    assert len(documents(folder)) == 48


def test_what_files_are_compared_by_is_the_same_in_every_language(folder: Path) -> None:
    shutil.copy(folder / "raw_data" / "band03.mid", folder / "raw_data" / "copy.mid")
    index_files(folder)

    def compared() -> list[tuple[object, ...]]:
        files = [tuple(row) for row in tables(folder)["files"]]
        return [(row[1], row[10], *row[11:13], *row[14:16]) for row in files]  # notes, fingerprints, song, duplicate

    convert(folder)
    before, prints = compared(), tables(folder)["prints"]
    assert sum(row[-1] is not None for row in before) == 1
    for asked in ({"encoding": "messages"}, {"layout": "track", "encoding": "interval"}, {"shards": True}):
        assert convert(folder, **asked).duplicates == 1
        assert (compared(), tables(folder)["prints"]) == (before, prints)


def test_shards_hold_whole_songs(folder: Path, packed: Path) -> None:
    convert(folder, layout="song", encoding="interval", shards=True, shard_files=5)
    assert sorted(path.name for path in (folder / "data").iterdir()) == [
        "manifest.json",
        *(f"shard-00000{number}.txt" for number in (1, 2, 3)),
    ]
    assert json.loads((folder / "data" / "manifest.json").read_text())["recipe"] == str(SONG)
    assert texts(folder) == texts(packed)
    convert(folder, layout="track")
    assert all(len(some) == 4 for some in texts(folder).values())


def test_a_strangers_file_is_not_touched_and_one_in_the_way_is_told(folder: Path) -> None:
    shutil.copy(folder / "raw_data" / "band03.mid", folder / "raw_data" / "README.mid")
    index_files(folder)
    (folder / "data").mkdir()
    readme, mine = folder / "data" / "README.txt", folder / "data" / "mine.txt"
    mine.write_text("# tempo=100 meter=4/4 key=60\n0@0+10|1/1\n")
    readme.write_text("This is my music.\n")
    convert(folder, layout="track")
    error = refusal(run_script("scripts/dataset.py", "--root", folder, "--layout", "song"))
    assert "data/README.txt is no document, and one is to have its name; put it somewhere else" in error
    assert readme.read_text() == "This is my music.\n" and mine.exists()
    readme.unlink()
    convert(folder, layout="song")
    assert len(documents(folder)) == 14  # with mine
    (folder / "raw_data" / "README.mid").unlink()
    index_files(folder)
    assert convert(folder).removed == 1
    assert not readme.exists() and mine.exists()


def test_make_clean_leaves_a_strangers_file(packed: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(packed, tmp_path / "work"))
    (root / "data" / "README.txt").write_text("Documents begin like this:\n# tempo=100 meter=4/4\n")
    subprocess.run(["make", "clean", f"ROOT={root}"], cwd=PROJECT, check=True, capture_output=True)
    assert [path.name for path in (root / "data").iterdir()] == ["README.txt"]


def test_an_encoding_that_there_is_not_is_told(folder: Path) -> None:
    error = refusal(run_script("scripts/dataset.py", "--root", folder, "--encoding", "morse"))
    assert "--encoding 'morse' is none; there are absolute," in error
    convert(folder)
    assert language(folder) == Language()


def test_documents_that_are_not_yet_in_the_language_are_told(folder: Path) -> None:
    convert(folder, layout="track", encoding="interval")
    shutil.copy(folder / "cache" / "index.sqlite", folder / "kept")
    convert(folder, layout="song")
    learn_tokenizer(folder, 80, SPLIT)
    shutil.copy(folder / "kept", folder / "cache" / "index.sqlite")
    with pytest.raises(UserError, match=r"not of the language 'interval-1 layout=track.*make dataset tokenizer"):
        load_tokenizer(folder)
    with pytest.raises(UserError, match=r"band00_1\.txt is missing"):
        texts(folder)
    shutil.copy(folder / "data" / "band00.txt", folder / "data" / "band00_1.txt")
    with pytest.raises(UserError, match=r"band00_1\.txt is no document"):
        texts(folder)


# --- tokenizer and train.bin -----------------------------------------------------------------------------


def test_a_part_mark_stands_only_at_the_beginning_of_a_piece(packed: Path) -> None:
    tokenizer = Tokenizer.from_file(str(packed / "cache" / "tokenizer.json"))
    line = "0@0+10|4+10|0.2@7+10|33.2@24-12:1/1|127@1+9|d@36=14|42=8|d.2@42=8|1/2\n"
    text = f"# tempo=120 meter=4/4 key=60\n1/2\n{line}42=8|127.2@1+2|1/2\n12+8|1/1\n"
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert pieces[:6] == ["#", " tempo=120", " meter=4/4", " key=60", "\n", "1/2\n"]
    assert pieces[6:13] == [
        "0@0+10|4+10|",
        "0.2@7+10|",
        "33.2@24-12:1/1|",
        "127@1+9|",
        "d@36=14|42=8|",
        "d.2@42=8|1/2\n",
        "42=8|",
    ]
    assert pieces[13:] == ["127.2@1+2|1/2\n", "12+8|1/1\n"]
    for document in (text, *documents(packed).values()):
        assert tokenizer.decode(tokenizer.encode(document).ids) == document
    learned = [token for token in token_texts(tokenizer) if "@" in token]
    assert {"0@", "d@", "33@"} <= {token[: token.index("@") + 1] for token in learned}
    assert all(re.fullmatch(r"[d0-9.]*@[^@\n ]*\n?", token) for token in learned)


def test_train_bin_has_every_song_and_says_its_language(packed: Path) -> None:
    (train, meta), (val, _) = (load_side(packed, name) for name in ("train", "val"))
    assert meta["language"] == str(SONG) and train.language == SONG == language_of(meta)
    assert len(train.docs) + len(val.docs) == 12 == meta["train"]["songs"] + meta["val"]["songs"]
    assert train.notes + val.notes == 12 * 160
    tokenizer = Tokenizer.from_file(str(packed / "cache" / "tokenizer.json"))
    written = {text.partition("\n")[2] for text in documents(packed).values()}
    for side in (train, val):
        for start, lines, end in zip(*side.docs.T, side.ends, strict=True):
            assert side.tokens[start] == START_ID
            assert tokenizer.decode(side.tokens[lines:end].tolist()) in written
            assert "program" not in tokenizer.decode(side.tokens[start:lines].tolist())
    assert tokenizer.decode(val.tokens[1 : val.docs[0, 1]].tolist()) == "# tempo=100 meter=4/4\n"


@pytest.mark.parametrize("layout", ["song", "track"])
@pytest.mark.parametrize("encoding", ["anchored", "messages"])
def test_train_bin_says_in_how_many_training_songs_each_instrument_plays(
    tmp_path: Path, layout: Layout, encoding: str
) -> None:
    raw_data = tmp_path / "raw_data"
    raw_data.mkdir()
    for number in range(12):
        tracks = band(number).tracks + melody(number + 400, program=40 + number % 3).tracks
        write_midi(Score(480, tracks, 100.0), raw_data / f"band{number:02d}.mid")
    index_files(tmp_path)
    convert(tmp_path, layout=layout, encoding=encoding)
    learn_tokenizer(tmp_path, 400, SPLIT)
    make_train_bin(tmp_path, SPLIT)
    training = [int(song.name[4:]) for song in songs(tmp_path) if not SPLIT.is_val(song)]
    strings = {str(40 + n): sum(number % 3 == n for number in training) for n in range(3)}
    everywhere = dict.fromkeys(["0", "33", "d"], len(training))
    meta = load_side(tmp_path, "train")[1]
    assert meta["programs"] == everywhere | strings
    bands = [["0", "0.2", "33", str(40 + number % 3), "d"] for number in training]
    assert sorted(sorted(band) for band in meta["bands"]) == sorted(map(sorted, bands))
    assert len(training) < 12


def test_a_checkpoint_of_another_language_gives_no_tokenizer(packed: Path, tmp_path: Path) -> None:
    shutil.copy(packed / "cache" / "tokenizer.json", tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"language": str(SONG)}))
    before = (packed / "train" / "train.bin").read_bytes()
    make_train_bin(packed, SPLIT, init_from=tmp_path)
    assert (packed / "train" / "train.bin").read_bytes() == before
    (tmp_path / "run.json").write_text(json.dumps({"language": str(Language("absolute", "track"))}))
    with pytest.raises(UserError, match=r'make dataset .*ARGS="--layout track --encoding absolute"'):
        make_train_bin(packed, SPLIT, init_from=tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"language": "morse-1 layout=song grid=24"}))
    with pytest.raises(UserError, match="speaks another language: 'morse-1"):
        make_train_bin(packed, SPLIT, init_from=tmp_path)
    with pytest.raises(LanguageError, match="no language of this version"):
        language_of({"language": "interval-0 layout=song grid=24 velocity-bins=16 pedal=on"})


def test_encode_and_decode_give_back_a_song_of_many_parts(tmp_path: Path) -> None:
    score = Score(480, tuple(melody(number, 5, program=number % 2).tracks[0] for number in range(20)))
    write_midi(score, tmp_path / "song.mid")
    flags = ("--layout", "song", "--encoding", "absolute")
    text = ok(run_script("scripts/encode.py", tmp_path / "song.mid", *flags))
    (tmp_path / "song.txt").write_text(text)
    ok(run_script("scripts/decode.py", tmp_path / "song.txt", "-o", tmp_path / "again.mid", *flags))
    assert ok(run_script("scripts/encode.py", tmp_path / "again.mid", *flags)) == text
    assert len(decode([text], Language("absolute", "song")).tracks) == 20
