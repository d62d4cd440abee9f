"""Every encoding in both layouts: round trips up to what it says it loses, normal form, counting, refusals, tokens."""

import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midigpt.bpe import START, START_ID, base_alphabet, token_texts, train_tokenizer
from midigpt.encodings import characters, events
from midigpt.header import LanguageError, split_header
from midigpt.language import ENCODINGS, Language, check_document, decode, encode, encode_batch
from midigpt.midi import read_midi
from midigpt.normal import GRID, Layout, normalise
from midigpt.score import Score, Track, track_from_notes
from midigpt.tokenizer import LineEncoder
from tests.conftest import midi_files

LAYOUTS: tuple[Layout, ...] = ("track", "song")
LANGUAGES = [Language(encoding, layout) for encoding in ENCODINGS for layout in LAYOUTS]
every_language = pytest.mark.parametrize("language", LANGUAGES, ids=lambda one: f"{one.encoding}-{one.layout}")

# Repeated and overlapping notes, the same keys in several parts, rests of thousands of beats.
waits = st.sampled_from([0, 0, 0, 1, 2, 6, 11, 12, 22, 24, 24, 26, 100, 391, 4096, 100_001])
lengths = st.sampled_from([1, 6, 12, 23, 24, 24, 48, 50, 384, 385, 400, 5000, 1_000_000])
rows = st.lists(st.tuples(waits, lengths, st.sampled_from([0, 36, 36, 60, 61, 127]), st.integers(1, 127)), min_size=1)


def part(rows: list[tuple[int, int, int, int]], program: int, is_drum: bool) -> Track:
    onsets = np.cumsum([row[0] for row in rows]).tolist()
    return track_from_notes([(onset, *row[1:]) for onset, row in zip(onsets, rows, strict=True)], program, is_drum)


parts = st.builds(part, rows, st.sampled_from([0, 0, 33, 127]), st.sampled_from([False, False, True]))
scores = st.builds(
    lambda parts, ticks: Score(ticks, tuple(parts)), st.lists(parts, min_size=1, max_size=4), st.sampled_from([24, 25])
)


def texts_of(score: Score, language: Language, end: int | None = None) -> list[str]:
    return [document.text for document in encode(score, end, language)]


def one(*rows: tuple[int, int, int, int]) -> Score:
    """A score of one piano from (onset, duration, pitch, velocity) rows."""
    return Score(GRID, (track_from_notes(list(rows)),))


def shape(score: Score) -> list[tuple[int, bool, list[int], list[int]]]:
    """What no encoding loses."""
    return [(t.program, t.is_drum, t.pitch.tolist(), t.velocity.tolist()) for t in score.tracks]


def times(score: Score) -> tuple[list[int], list[int]]:
    """The onsets of all notes, and their ends, in grid steps."""
    onsets = [onset for track in score.tracks for onset in track.onset.tolist()]
    return onsets, [end for track in score.tracks for end in (track.onset + track.duration).tolist()]


def check_loss(normal: Score, read: Score, language: Language) -> None:
    """What was read is what was written, up to the losses that the encoding states."""
    assert shape(read) == shape(normal)
    if language.encoding == "characters":
        for was, now in zip(normal.tracks, read.tracks, strict=True):
            assert np.array_equal(was.onset, now.onset)
            is_exact = was.duration <= 16 * GRID
            assert np.array_equal(was.duration[is_exact], now.duration[is_exact])
            assert (now.duration <= was.duration).all() and (now.duration >= was.duration * 7 / 8).all()
    elif language.encoding == "events":
        documents = [(normal, read)]
        if language.layout == "track":
            both = zip(normal.tracks, read.tracks, strict=True)
            documents = [(Score(GRID, (was,)), Score(GRID, (now,))) for was, now in both]
        for written, found in documents:
            check_times(*(onsets + ends for onsets, ends in (times(written), times(found))))
    else:
        assert read == normal


def check_times(was: list[int], now: list[int]) -> None:
    """The instants of a document, read in `events`, are within 3 % of the longest wait before, and a step."""
    longest, before = {0: 0}, 0
    for instant in sorted({*now} - {0}):
        longest[instant] = max(longest[before], instant - before)
        before = instant
    for a, b in zip(was, now, strict=True):
        assert abs(a - b) <= (0.03 * longest[b] + 1 if longest[b] > 20 else 0)


# --- round trips -----------------------------------------------------------------------------------------


@every_language
@given(score=scores)
def test_a_score_is_read_as_it_was_written_and_the_text_is_normal(language: Language, score: Score) -> None:
    texts = texts_of(score, language)
    read = decode(texts, language)
    check_loss(normalise(score, language.layout), read, language)
    assert texts_of(read, language) == texts
    for text in texts:
        check_document(text, language)


@every_language
def test_real_files(language: Language, corpus: Callable[[str], Path]) -> None:
    files = midi_files(corpus("mini"))[::15]
    assert len(files) == 10
    for path in files:
        score = read_midi(path)
        texts = texts_of(score, language)
        read = decode(texts, language)
        check_loss(normalise(score, language.layout), read, language)
        assert texts_of(read, language) == texts, path


@every_language
def test_a_prompt_runs_to_its_cut(language: Language) -> None:
    score = one((12, 12, 60, 84), (24, 100, 64, 84), (36, 12, 60, 84), (48, 24, 61, 84))
    (document,) = encode(score, 72, language)
    lines = document.body.splitlines()
    steps = [language.module.line_steps(line) for line in lines]
    assert sum(steps) == 72 and min(steps) > 0
    onsets, ends = times(decode([document.text], language))
    assert onsets == [12, 24, 36, 48]
    assert ends == [24, 72 if language.encoding in ("messages", "events") else 124, 48, 72]


@every_language
def test_a_cut_at_the_last_note_leaves_it_a_step(language: Language) -> None:
    for end in (36, 24):
        (document,) = encode(one((0, 12, 60, 84), (36, 12, 61, 84)), end, language)
        assert sum(map(language.module.line_steps, document.body.splitlines())) == 37


@every_language
def test_a_document_ends_with_its_last_line_or_the_last_ending(language: Language) -> None:
    (document,) = encode(one((0, 96, 60, 84), (24, 12, 61, 84)), language=language)
    steps = sum(map(language.module.line_steps, document.body.splitlines()))
    assert steps == (96 if language.encoding in ("messages", "events") else 36)


@every_language
def test_scores_together_are_written_as_each_alone(language: Language) -> None:
    some = [one((0, 30, 60, 84)), one((50, 10, 61, 84), (50, 20, 60, 84)), one((0, 24, 60, 84), (24, 24, 60, 84))]
    for end in (None, 96):
        together = encode_batch(some, end, language)
        assert together == [encode(score, end, language) for score in some]


# --- what the pipeline asks ------------------------------------------------------------------------------


@every_language
@given(score=scores, seed=st.integers(0, 1000))
def test_lines_tell_their_notes_and_their_time(language: Language, score: Score, seed: int) -> None:
    module, rng = language.module, random.Random(seed)
    for document in encode(score, language=language):
        lines = document.body.splitlines(keepends=True)
        assert "".join(lines) == document.body and all(line.endswith("\n") for line in lines)
        now, onsets = 0, list[int]()
        for line in lines:
            onsets += [now] * module.count_notes(line)
            now += module.line_steps(line)
            cut = rng.randrange(len(line))
            assert module.count_notes(line) == module.count_notes(line[:cut]) + module.count_notes(line[cut:])
        assert module.count_notes(document.header) == 0
        assert len(onsets) == document.notes
        assert onsets == sorted(times(decode([document.text], language))[0])


@every_language
def test_what_is_no_line_has_no_time(language: Language) -> None:
    for line in ("\n", "hello\n", "0@\n"):
        with pytest.raises(ValueError):
            language.module.line_steps(line)


@every_language
def test_a_mark_stands_where_the_part_changes(language: Language) -> None:
    bass, drums = (
        track_from_notes([(0, 24, 36, 84), (48, 24, 36, 84)], 33),
        track_from_notes([(0, 24, 36, 84)], 0, True),
    )
    score = Score(GRID, (drums, bass, bass))
    texts = texts_of(score, language)
    marks = [re.findall(r"[d0-9.]+@", split_header(text)[1]) for text in texts]
    if language.layout == "track":
        assert marks == [[], [], []]
    elif language.encoding in ("messages", "events"):
        assert marks == [["33@", "33.2@", "d@", "33@", "33.2@", "d@", "33@", "33.2@", "33@", "33.2@"]]
    else:
        assert marks == [["33@", "33.2@", "d@", "33@", "33.2@"]]


# --- the examples of the docstrings ----------------------------------------------------------------------

EXAMPLES = {
    "absolute": ["60=10|64=10|67=10|1/1", "62=10|1/2", "60=10:1/4|1/1"],
    "indexscore": ["n67d24v10|n64d24v10|n60d24v10|s24", "n62d12v10|s12", "n60d6v10|s24"],
    "messages": ["60+10|64+10|67+10|24", "60-|64-|67-|62+10|12", "62-|60+10|6", "60-|18"],
    "events": ["60+10|64+10|67+10|24", "60-|64-|67-|62+10|12", "62-|60+10|6", "60-|18"],
    "characters": ["U+89217 U+91217 U+97217 U+E018", "U+8D20B U+E00C", "U+89205 U+E018"],
}


@pytest.mark.parametrize("encoding", EXAMPLES)
def test_the_example_is_what_is_written(encoding: str) -> None:
    language = Language(encoding, "track")
    (document,) = encode(
        one((0, 24, 60, 76), (0, 24, 64, 76), (0, 24, 67, 76), (24, 12, 62, 76), (36, 6, 60, 76)), 60, language
    )
    lines = document.body.splitlines()
    if encoding == "characters":
        lines = [" ".join(f"U+{ord(character):X}" for character in line) for line in lines]
    assert lines == EXAMPLES[encoding]
    for line in lines:
        assert re.search(rf"^    {re.escape(line)}(  |$)", language.module.__doc__ or "", re.MULTILINE), line


# --- each encoding's own ---------------------------------------------------------------------------------


def body_of(score: Score, encoding: str, layout: Layout = "track") -> str:
    (document,) = encode(score, language=Language(encoding, layout))
    return document.body


def test_a_note_that_begins_again_ends_first() -> None:
    again = one((0, 24, 60, 76), (12, 24, 60, 44))
    for encoding in ("messages", "events"):
        assert body_of(again, encoding) == "60+10|12\n60-|60+6|24\n60-|0\n"
    (track,) = decode(["60+10|12\n60+6|24\n60-|0\n"], Language("messages", "track")).tracks
    assert (track.onset.tolist(), track.duration.tolist()) == ([0, 12], [12, 24])


def test_what_has_no_ending_sounds_to_the_end() -> None:
    (track,) = decode(["60+10|12\n62+10|24\n"], Language("messages", "track")).tracks
    assert (track.onset.tolist(), track.duration.tolist()) == ([0, 12], [36, 24])


def test_the_waits_of_events() -> None:
    usual = {2 * 24 // 3, 8, 4, 2, 36, 18, 9, *(24 * 2**n for n in range(10)), 12, 6, 3, 72, 144}
    assert usual <= {*events.WAITS} and {*range(1, 22)} <= {*events.WAITS}
    assert all(b / a < 1.1 for a, b in pairwise(events.WAITS[12:]))


def test_the_errors_of_events_do_not_add_up() -> None:
    """A pulse of 26 steps, which is not in the table, and one of 22."""
    for pulse in (22, 26):
        score = one(*((n * pulse, pulse, 60, 76) for n in range(500)))
        onsets, _ = times(decode(texts_of(score, Language("events")), Language("events")))
        assert max(abs(onset - n * pulse) for n, onset in enumerate(onsets)) == 1


def test_the_lengths_of_characters() -> None:
    assert len(characters.LENGTHS) == 512
    assert characters.LENGTHS[:384].tolist() == [*range(1, 385)]
    assert all(b / a < 8 / 7 for a, b in pairwise(characters.LENGTHS[383:].tolist()))
    assert characters.LENGTHS[-1] == 2**31 - 1


def test_long_waits_of_characters_are_several() -> None:
    body = body_of(one((0, 1, 60, 76), (4096 * 5 + 3, 1, 60, 76)), "characters")
    assert body.partition("\n")[0][1:] == "\uf002\uf000\ue003"


# --- errors ----------------------------------------------------------------------------------------------

NOTE, TIME = "\U00089217", "\ue018"


@pytest.mark.parametrize(
    ("encoding", "layout", "body", "message"),
    [
        ("absolute", "track", "60=10|1/1\n2+10|1/1\n", "line 2: '2+10|1/1' has an interval"),
        ("absolute", "song", "d@60=10|0@60-10|1/1\n", "line 1: 'd@60=10|0@60-10|1/1' has an interval"),
        ("absolute", "track", "128=10|1/1\n", "line 1"),
        ("indexscore", "track", "n60d24v10|s24\nn60d24v10|24\n", "line 2: 'n60d24v10|24' does not end in a time"),
        ("indexscore", "track", "n60d24v10\n", "does not end in a time"),
        ("indexscore", "track", "n60d24v10|s0\n", "does not end in a time"),
        ("indexscore", "track", "n128d24v10|s24\n", "'n128d24v10' is not a note"),
        ("indexscore", "track", "n60d0v10|s24\n", "'n60d0v10' is not a note"),
        ("indexscore", "track", "n60d24v17|s24\n", "'n60d24v17' is not a note"),
        ("indexscore", "track", "n60d24v0|s24\n", "'n60d24v0' is not a note"),
        ("indexscore", "track", "n060d24v1|s24\n", "'n060d24v1' is not a note"),
        ("indexscore", "track", "n٣d24v1|s24\n", "is not a note"),
        ("indexscore", "track", "n60d9999999999v1|s24\n", "'n60d9999999999v1' is longer than a MIDI file"),
        ("indexscore", "track", "n60d1v1|s9999999999\n", "line 1: the piece is longer than a MIDI file"),
        ("indexscore", "track", "0@n60d24v10|s24\n", "which only the song layout knows"),
        ("indexscore", "song", "n60d24v10|s24\n", "has no part mark"),
        ("indexscore", "song", "128@n60d24v10|s24\n", "line 1: '128@' is no part mark"),
        ("messages", "track", "60-|24\n", "line 1: '60-' ends a note that does not sound"),
        ("messages", "track", "60+10|24\n60-|60-|0\n", "line 2: '60-' ends a note that does not sound"),
        ("messages", "song", "0@60+10|24\n1@60-|24\n", "line 2: '1@60-' ends a note that does not sound"),
        ("messages", "track", "60+10|60-|24\n", "line 1: '60-' follows its own note"),
        ("messages", "track", "60+10|60+10|24\n", "line 1: '60+10' follows its own note"),
        ("messages", "track", "60+10|24\n60-|0\n61+10|24\n", "line 3: the document has ended"),
        ("messages", "track", "60+10|0\n", "line 1: '60+10' begins where the document ends"),
        ("messages", "track", "60+0|24\n", "'60+0' is no message"),
        ("messages", "track", "60+17|24\n", "'60+17' is no message"),
        ("messages", "track", "128+10|24\n", "'128+10' is no message"),
        ("messages", "track", "60+10|024\n", "does not end in a time"),
        ("messages", "track", "0@60+10|24\n", "which only the song layout knows"),
        ("messages", "song", "60+10|24\n", "has no part mark"),
        ("events", "track", "60+10|24\n60-|22\n", "line 2: '60-|22' does not end in a wait of the table"),
        ("events", "track", "60+10|24\n60-|60-|0\n", "line 2: '60-' ends a note that does not sound"),
        ("characters", "track", f"{NOTE}{TIME}\n{NOTE}\n", "line 2: '\\U00089217' is not notes"),
        ("characters", "track", f"{TIME}{NOTE}\n", "is not notes"),
        ("characters", "track", f"{NOTE}\ue000\n", "is not notes"),
        ("characters", "track", f"{NOTE}\uf013\n", "is not notes"),
        ("characters", "track", f"{NOTE}\ufffd{TIME}\n", "is not notes"),
        ("characters", "track", f"60{NOTE}{TIME}\n", "is not notes"),
        ("characters", "track", f"0@{NOTE}{TIME}\n", "which only the song layout knows"),
        ("characters", "song", f"{NOTE}{TIME}\n", "has no part mark"),
        ("characters", "song", f"0@0@{NOTE}{TIME}\n", "is not notes"),
        ("characters", "song", f"0.1@{NOTE}{TIME}\n", "line 1: '0.1@' is no part mark"),
        ("characters", "track", "\uf012" * 9 + "\n", "line 1: the piece is longer than a MIDI file"),
    ],
)
def test_what_is_broken_is_refused(encoding: str, layout: Layout, body: str, message: str) -> None:
    with pytest.raises(LanguageError, match=re.escape(message)):
        decode([body], Language(encoding, layout))


@every_language
@pytest.mark.parametrize("body", ["<pad>\n", "\n", "0\n", "\0\0\n", "hello|1/1\n", "60|24\n", "d@\n", "|\n", "0@24\n"])
def test_padding_and_prose_are_never_notes(language: Language, body: str) -> None:
    if (language.encoding, body) in (("messages", "0\n"), ("events", "0\n")):
        assert decode([body], language).notes == 0  # a document without notes that ends at once
        return
    with pytest.raises(LanguageError, match="line 1"):
        decode([body], language)
    if body != "\n":  # a quick look at the first line only
        with pytest.raises(LanguageError):
            check_document(body, language)


# --- tokens ----------------------------------------------------------------------------------------------


def played(seed: int, notes: int = 150) -> Score:
    """Two parts and drums, in loudness and length as people play."""
    rng = random.Random(seed)
    tracks = []
    for program, is_drum in ((0, False), (33, False), (0, True)):
        rows = [
            (rng.randrange(4000), rng.randrange(1, 500), rng.randrange(30, 90), rng.randrange(1, 128))
            for _ in range(notes)
        ]
        tracks.append(track_from_notes(rows, program, is_drum))
    return Score(GRID, tuple(tracks))


@every_language
def test_tokens_give_back_the_exact_text_and_their_notes(language: Language) -> None:
    alphabet = len(base_alphabet(language))
    tokenizer = train_tokenizer(texts_of(played(0), language), alphabet + 60, language)
    assert tokenizer.get_vocab_size() == alphabet + 60
    texts = token_texts(tokenizer)
    for text in texts_of(played(1), language):  # with characters that were never seen in training
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert b"".join(texts[i].encode("utf-8", "surrogateescape") for i in ids).decode() == text
        assert sum(map(language.module.count_notes, (texts[i] for i in ids))) == language.module.count_notes(text)
        assert not any("\n" in texts[i][:-1] for i in ids)
        lines = text.splitlines(keepends=True)
        tokens, lengths, _ = LineEncoder(tokenizer, language)([START, *lines])
        assert tokens.tolist() == [START_ID, *ids] and len(lengths) == 1 + len(lines)


def test_half_a_character_is_no_note() -> None:
    language = Language("characters")
    tokenizer = train_tokenizer([], 1000, language)
    ids = tokenizer.encode(NOTE + TIME + "\n").ids
    assert len(ids) == 8
    for cut in range(1, 7):
        with pytest.raises(LanguageError, match="line 1"):
            decode([tokenizer.decode(ids[:cut] + ids[-1:])], language)


def test_transformers_opens_a_tokenizer_of_bytes(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    language = Language("characters")
    text, *_ = texts_of(played(0), language)
    tokenizer = train_tokenizer([text], 300, language)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs.encode(text) == tokenizer.encode(text).ids
    assert theirs.decode(theirs.encode(text)) == text
