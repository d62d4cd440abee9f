"""Byte-pair encoding that learns fields first, then what stands together in a line.

A note of the language has fields: whose it is, its pitch, loudness and length, the time to what follows. Merges are
learned in two steps: within fields, until the vocabulary is full or no two tokens stand together twice within one;
then, if there is room left, of fields within a line (in the song layout, within one part's notes of a line). So where
notes are various no token holds more than a field, and where they are few whole chords are tokens. Plain byte-pair
encoding (Gage 1994; for language models Sennrich et al., arXiv 1508.07909) learns whole notes even where each is rare,
which costs bits (docs/encodings.md).
"""

import json
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from midigpt.language import TRACKS, Language

START = "<|start|>"  # the one special token: a document begins, and so the one before it has ended
START_ID = 0

_MARK = r"(?:d|[0-9]+)(?:\.[0-9]+)?@"
_TIME = "[0-9]+/[0-9]+"
_NAME, _VALUE = " [a-z]+=", r"(?<=[a-z]=)[^ \n]+"  # in the header
_PITCH, _LENGTH = "[0-9]+[+=-]", rf":{_TIME}\|"
_NUMBER = r"[a-z]?[0-9]+(?:/[0-9]+)?\|?\n?"  # loudness, the line's time, or n67 and the like of other encodings
_FIELDS = "|".join([_NAME, _VALUE, _MARK, _PITCH, _LENGTH, _NUMBER, r".|\n"])

# A line is one piece; so is each field of the header (with the space before it), its "#" and its newline. In the song
# layout a line is cut in front of each part mark, so that a token has notes of one part only.
_PIECES = r" [^ \n]*|[^ \n]+\n?|\n"
_SONG_PIECES = rf" [^ \n]*|(?>(?:{_MARK})?)[^ \n@]+?(?={_MARK})|[^ \n]+\n?|\n"
_TOKEN = 0xF0000  # and on: a private character for each token, where merges of tokens are learned

# The byte-level tokenizer's characters for the 256 bytes: those that can be printed, and others from U+0100 on.
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _PRINTED}
_BYTES |= {chr(0x100 + n): byte for n, byte in enumerate(sorted({*range(0x100)} - {*_PRINTED}))}


def base_alphabet(language: Language) -> list[str]:
    """What merges begin with: characters, or, where there are too many of them, the bytes of their UTF-8."""
    if not language.is_open:
        return list(language.alphabet)
    return [character for character, byte in _BYTES.items() if byte >= 0x80 or chr(byte) in language.alphabet]


def train_tokenizer(
    texts: Sequence[str], vocab_size: int, language: Language = TRACKS, more_characters: str = ""
) -> Tokenizer:
    """A tokenizer learned from documents, of so many tokens, or fewer if no other two stand together twice.

    It has the language's alphabet, and `more_characters`, whatever the size; texts lose characters that are not in it.
    """
    pieces = pre_tokenizers.Split(Regex(_SONG_PIECES if language.is_song else _PIECES), "isolated")
    fields = pre_tokenizers.Split(Regex(_FIELDS), "isolated")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _to_bytes(fields) if language.is_open else fields
    tokenizer.decoder = decoders.ByteLevel() if language.is_open else decoders.Fuse()
    tokenizer.train_from_iterator(texts, _trainer(vocab_size, [*base_alphabet(language), *more_characters], [START]))
    if tokenizer.get_vocab_size() < vocab_size:
        tokenizer.model = _merge_fields(tokenizer, texts, pieces, vocab_size)
    tokenizer.pre_tokenizer = _to_bytes(pieces) if language.is_open else pieces
    return tokenizer


def _to_bytes(pieces: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _trainer(vocab_size: int, alphabet: list[str], special_tokens: list[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special_tokens,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )


def _merge_fields(
    tokenizer: Tokenizer, texts: Sequence[str], pieces: pre_tokenizers.PreTokenizer, vocab_size: int
) -> models.BPE:
    """The tokenizer's model with more merges, of its tokens within pieces.

    Each text is written once more with a character for each token, and those are merged. The merges learned before
    keep their precedence, and none of them crosses a field: so a text's fields are put together first, as before.
    """
    written: dict[str, str] = {}  # of each piece

    def rewrite(text: str) -> str:
        cut = [piece for piece, _ in pieces.pre_tokenize_str(text)]
        new = [piece for piece in dict.fromkeys(cut) if piece not in written]
        for piece, encoding in zip(new, tokenizer.encode_batch_fast(new), strict=True):
            written[piece] = "".join(chr(_TOKEN + token) for token in encoding.ids)
        return "\n".join(map(written.__getitem__, cut))

    size = tokenizer.get_vocab_size()
    of_tokens = Tokenizer(models.BPE())
    of_tokens.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    of_tokens.train_from_iterator(map(rewrite, texts), _trainer(vocab_size, [chr(_TOKEN + n) for n in range(size)], []))

    vocabulary = tokenizer.get_vocab()
    texts_of = {chr(_TOKEN + token): text for text, token in vocabulary.items()}
    merges = list(map(tuple, json.loads(tokenizer.to_str())["model"]["merges"]))
    for pair in json.loads(of_tokens.to_str())["model"]["merges"]:
        left, right = ("".join(map(texts_of.__getitem__, tokens)) for tokens in pair)
        vocabulary.setdefault(left + right, len(vocabulary))
        merges.append((left, right))
    return models.BPE(vocab=vocabulary, merges=merges)


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """What each token stands for; "" for the start token, which stands for no text.

    Tokens may be bytes of a character: those are as the error handler "surrogateescape" has them.
    """
    texts = [tokenizer.id_to_token(token) or "" for token in range(tokenizer.get_vocab_size())]
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        texts = [bytes(_BYTES[character] for character in text).decode("utf-8", "surrogateescape") for text in texts]
    return ["" if text == START else text for text in texts]
