"""MIDI files -> documents, a chunk of files at a time: one pure function, which any process on any machine can run.

Every fault of a file becomes its outcome, never an error. The documents of a file go into data/NAME_1.txt,
data/NAME_2.txt, ..., in the song layout into data/NAME.txt, or those of the whole chunk into one shard, with an empty
line between them. Fingerprints and prints, by which files are compared, don't depend on the documents' language.
"""

import errno
import hashlib
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from midigpt.duplicates import Print, batch_prints
from midigpt.files import UserError
from midigpt.filters import FilteredError, Filters
from midigpt.header import LanguageError
from midigpt.index import document_names
from midigpt.language import TRACKS, Document, Language, encode_batch
from midigpt.midi_bytes import MidiError
from midigpt.rescue import rescue
from midigpt.score import Score
from midigpt.storage import UNREADABLE, Folder

TOO_LARGE = "needs more memory than a worker has (--memory-limit)"
BATCH_NOTES = 16384  # to encode at once

_alone = threading.Lock()  # the time limit is the process's, so one thread at a time converts


@dataclass(frozen=True)
class Job:
    path: str  # below raw_data
    name: str


@dataclass(frozen=True)
class Chunk:
    """Files to be converted together, into `shard` if one is named, else into a file for each document.

    A probe writes nothing: it shows which file of a chunk is the one that kills its worker.
    """

    jobs: tuple[Job, ...]
    shard: str | None = None
    is_probe: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one file: documents, or the reason there are none."""

    state: str  # converted, refused, filtered
    reason: str | None = None
    remark: str | None = None  # what was done to save a damaged file
    tracks: int = 0
    notes: int = 0
    exact: str | None = None  # fingerprint of the notes
    music: str | None = None  # fingerprint of the notes without their key, and the tempo
    grams: bytes = b""  # the print, uint32, by which near-duplicates are found


@dataclass(frozen=True)
class Result:
    """What became of a chunk."""

    outcomes: list[Outcome]
    size: int = 0  # bytes of the shard
    sha256: str = ""  # of the shard


@dataclass
class _Batch:
    """Scores on their way to be encoded at once, with their place in the chunk."""

    scores: dict[int, Score] = field(default_factory=dict)
    notes: int = 0


def convert_chunk(
    chunk: Chunk,
    raw_data: Folder,
    data: Folder,
    filters: Filters,
    language: Language = TRACKS,
    time_limit: float = 0,
) -> Result:
    """Convert the files of a chunk. Raises UserError where raw_data is missing or writing fails.

    A file that takes longer than `time_limit` seconds (0: no limit) ends the process with SIGALRM: nothing
    less stops a C library that hangs. So a limit belongs into worker processes only.
    """
    if not raw_data.exists():
        raise UserError(f"{raw_data} does not exist on {platform.node()}; all machines need the folder at this path")
    with _alone:
        outcomes: dict[int, Outcome] = {}
        shard: list[bytes] = []
        for documents in _documents(chunk, raw_data, filters, language, time_limit, outcomes):
            for place, texts in documents.items():
                contents = [document.text.encode("utf-8") for document in texts]
                if chunk.shard:
                    shard += contents
                elif not chunk.is_probe:
                    names = document_names(chunk.jobs[place].name, len(contents), language.layout)
                    for name, content in zip(names, contents, strict=True):
                        data.write(name, content)
        ordered = [outcomes[place] for place in range(len(chunk.jobs))]
        if not chunk.shard:
            return Result(ordered)
        try:
            whole = b"\n".join(shard)
            if shard:
                data.write(chunk.shard, whole)
            return Result(ordered, len(whole), hashlib.sha256(whole).hexdigest())
        except MemoryError:
            raise UserError(f"{chunk.shard} is too large for a worker; give it a larger --memory-limit") from None


def _documents(
    chunk: Chunk,
    raw_data: Folder,
    filters: Filters,
    language: Language,
    time_limit: float,
    outcomes: dict[int, Outcome],
) -> Iterator[dict[int, list[Document]]]:
    """The documents of a chunk's files by place, in order, some files at a time; fills in the outcomes."""
    batch = _Batch()
    remarks: dict[int, str] = {}
    last = len(chunk.jobs) - 1
    for place, content in enumerate(raw_data.read([job.path for job in chunk.jobs])):
        encoded: dict[int, list[Document]] = {}
        with _limited(time_limit):
            score = _score(content, filters)
            if isinstance(score, Outcome):
                outcomes[place] = score
            else:
                batch.scores[place], remarks[place] = score
                batch.notes += batch.scores[place].notes
            if batch.notes >= BATCH_NOTES or place == last:
                encoded = _encoded(batch, language, remarks, outcomes)
                batch = _Batch()
        yield encoded


def _score(content: bytes | OSError, filters: Filters) -> tuple[Score, str] | Outcome:
    """What a file's bytes hold, and what was done to save it; or the outcome where that is nothing."""
    if isinstance(content, OSError):
        if content.errno == errno.ENOMEM:
            return Outcome("refused", TOO_LARGE)
        return Outcome("refused", f"{UNREADABLE} ({content.strerror or content})")
    try:
        score, remark = rescue(content)
        return filters.apply(score), remark
    except FilteredError as error:
        return Outcome("filtered", str(error))
    except MidiError as error:
        return Outcome("refused", str(error))
    except MemoryError:
        return Outcome("refused", TOO_LARGE)


def _encoded(
    batch: _Batch, language: Language, remarks: dict[int, str], outcomes: dict[int, Outcome]
) -> dict[int, list[Document]]:
    """The documents of a batch by place. A score that can't be written spoils no other."""
    scores = list(batch.scores.values())
    try:
        tracks = encode_batch(scores)
        documents = tracks if language == TRACKS else encode_batch(scores, language=language)
    except (LanguageError, MemoryError) as error:
        if len(batch.scores) == 1:
            reason = str(error) if isinstance(error, LanguageError) else TOO_LARGE
            outcomes.update(dict.fromkeys(batch.scores, Outcome("refused", reason)))
            return {}
        singles = [_Batch({place: score}) for place, score in batch.scores.items()]
        return {place: texts for one in singles for place, texts in _encoded(one, language, remarks, outcomes).items()}
    prints = batch_prints([[text for text in texts if "key=" in text.header] for texts in tracks])
    for place, texts, music, print_ in zip(batch.scores, documents, tracks, prints, strict=True):
        outcomes[place] = _converted(len(texts), music, remarks[place], print_)
    return dict(zip(batch.scores, documents, strict=True))


def _converted(documents: int, tracks: list[Document], remark: str, print_: Print) -> Outcome:
    # The same for whatever order of tracks. The header's last field is the key; of drums, the meter.
    parts = sorted((document.body, document.header.rpartition(" ")[2]) for document in tracks)
    music = hashlib.sha256("\n".join(body for body, _ in parts).encode("ascii"))
    exact = hashlib.sha256(music.digest() + "".join(key for _, key in parts).encode("ascii"))
    return Outcome(
        "converted",
        remark=remark or None,
        tracks=documents,
        notes=sum(document.notes for document in tracks),
        exact=exact.hexdigest()[:16],
        music=music.hexdigest()[:16],
        grams=print_.tobytes(),
    )


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """The process ends by SIGALRM if what is within takes longer; 0 is no limit."""
    if seconds:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)
