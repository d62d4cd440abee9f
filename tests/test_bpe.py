"""What tokens are learned: fields first, then what stands together."""

import re

import pytest
from tokenizers import Tokenizer

from midigpt.bpe import _FIELDS, START, START_ID, base_alphabet, token_texts, train_tokenizer
from midigpt.language import Language
from tests.test_encodings import every_language, played, texts_of

FIELD = r"(?:d|\d+)(?:\.\d+)?@|\d+[+=-]|\d+(?:\||(?=:))|:\d+/\d+\||\d+/\d+\n"  # of a line of notes


def spans(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    return tokenizer.encode(text).offsets


@pytest.mark.parametrize("language", [Language("anchored", layout) for layout in ("song", "track")], ids=str)
def test_where_fields_are_many_no_token_has_two(language: Language) -> None:
    texts = [text for seed in range(20) for text in texts_of(played(seed), language)]
    tokenizer = train_tokenizer(texts, len(base_alphabet(language)) + 60, language)
    body = re.sub("#.*\n", "", "".join(texts))
    fields = {match.end() for match in re.finditer(FIELD, body)}
    assert "".join(re.findall(FIELD, body)) == body
    for begin, end in spans(tokenizer, body):
        assert not fields & {*range(begin + 1, end)}


def test_where_notes_are_few_a_token_is_a_chord() -> None:
    text = "# tempo=90 meter=4/4 key=60\n" + "0@0+10|4+10|3+10|1/1\n2+10|1/2\n" * 50
    tokenizer = train_tokenizer([text], 1024, Language())
    assert {"0@0+10|4+10|3+10|1/1\n", "2+10|1/2\n"} <= {*token_texts(tokenizer)}
    assert tokenizer.get_vocab_size() < 100  # as nothing else is there twice


@pytest.mark.parametrize(
    "line",
    [
        "#| tempo=|90| meter=|3/4| key=|65|\n",
        "#| program=|d|\n",
        "0@|10-|9|:2/1¦|33.2@|7+|10¦|d@|36=|14¦|1/1\n",
        "n67|d24|v10¦|s24\n",
        "60-|¦|62+|10¦|12\n",
        chr(0x89217) + "|" + chr(0xE018) + "|\n",
    ],
)
def test_the_fields_of_a_line(line: str) -> None:
    fields = [field.replace("¦", "|") for field in line.split("|")]
    assert re.findall(_FIELDS, "".join(fields)) == fields


@every_language
def test_fields_are_put_together_first_and_alike_wherever_they_stand(language: Language) -> None:
    texts = [text for seed in range(5) for text in texts_of(played(seed), language)]
    tokenizer = train_tokenizer(texts, 3000, language)
    across = 0
    for text in texts:
        inside, ends = set(), set()
        for field in re.finditer(_FIELDS, text):
            inside |= {field.start() + end for _, end in spans(tokenizer, field[0])}
            ends.add(field.end())
        for begin, end in spans(tokenizer, text):
            assert end in inside, text[begin:end]
            across += len(ends & {*range(begin + 1, end)})
    assert across


@every_language
def test_tokens_are_numbered_and_each_is_another_text(language: Language) -> None:
    alphabet = len(base_alphabet(language))
    texts = [text for seed in range(5) for text in texts_of(played(seed), language)]
    for some, size in ((texts, 3000), (texts, alphabet + 1), (texts, 1), ([], 300), ([""], 300)):
        tokenizer = train_tokenizer(some, size, language)
        vocabulary = tokenizer.get_vocab()
        assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
        assert vocabulary[START] == START_ID and len(vocabulary) >= alphabet + 1
        assert len(vocabulary) == max(alphabet + 1, size) or some != texts or size == 3000
        assert all(tokenizer.decode(tokenizer.encode(text).ids) == text for text in texts)
    assert train_tokenizer(texts, 3000, language).to_str() == train_tokenizer(texts, 3000, language).to_str()


def test_characters_that_the_alphabet_lacks_are_left_out() -> None:
    tokenizer = train_tokenizer(["0@0+10|1/1\n" * 9, "0@ä+10|1/1\n"], 100, Language())
    assert tokenizer.decode(tokenizer.encode("0@ä7+10|1/1\n").ids) == "0@7+10|1/1\n"
    more = train_tokenizer(["0@0+10|1/1\n" * 9], 100, Language(), "ä")
    assert more.decode(more.encode("0@ä7+10|1/1\n").ids) == "0@ä7+10|1/1\n"
