"""What tokens are learned: fields first, then what stands together."""

import re

import pytest
from tokenizers import Tokenizer

from midigpt.bpe import _FIELDS, base_alphabet, token_texts, train_tokenizer
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
