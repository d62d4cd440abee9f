"""The documents in data/: which there are, what they say, and which are held out of training."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from midigpt.files import UserError
from midigpt.index import Song
from midigpt.language import LanguageError, check_document


def is_drawn(text: str, fraction: float) -> bool:
    """Whether a text is among the given fraction of all, by its hash: chance that is always the same."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


@dataclass(frozen=True)
class Split:
    """Which songs are held out: those whose hash with the seed falls into the fraction.

    The hash is of the music itself, so copies and transpositions stay on one side, and adding files moves
    no song. Raises UserError for a fraction outside 0..1.
    """

    val_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"--val-fraction {self.val_fraction} is not in 0..1; 0.05 holds out a song in twenty")

    def is_val(self, song: Song) -> bool:
        return is_drawn(f"{self.seed} {song.fingerprint}", self.val_fraction)


def read_songs(root: Path, chosen: Iterable[Song]) -> Iterator[tuple[Song, list[str]]]:
    """The texts of songs, song by song in the order given, of each song in the order of its tracks.

    Every line of a text ends in a newline, also its last. Raises UserError where a document is gone or in no
    language of ours.
    """
    for song in chosen:
        names = (f"{song.name}_{number}.txt" for number in range(1, song.tracks + 1))
        yield song, [_read_document(root / "data" / name) for name in names]


def _read_document(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii")
        check_document(text)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it again with: make dataset") from None
    except (UnicodeDecodeError, LanguageError) as error:
        raise UserError(f"{path} is no document ({error}); delete it and make it again with: make dataset") from None
    return text + "\n" if text and text[-1] != "\n" else text  # as an editor may leave it
