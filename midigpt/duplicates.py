"""Which files hold the same music: also in another key, at another tempo, shortened, or without one of its parts.

A file's melodic intervals, seven at a time, are hashed, and the smallest hashes are kept as its print. Because all
files keep the smallest, two prints show what share of the one file's music is in the other (bottom-k sketches:
Broder, "On the resemblance and containment of documents", 1997; Thorup, "Bottom-k and priority sampling", 2013).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from midigpt.score import IntArray, Score

Print = NDArray[np.uint32]

PRINT_GRAMS = 128  # hashes kept of a file
MIN_SHARED = 8  # prints with fewer grams in common are never joined
COMMON = 200  # a gram that more different songs than this share says nothing

_GRAM = 7  # intervals to a gram; as bytes they fit into a 64-bit number
_GRAM_MASK = np.uint64(2 ** (8 * _GRAM) - 1)
_CHORD_GAP = 1  # grid steps; notes no further apart are one chord, which people play a little spread
_ABSENT = np.uint32(2**32 - 1)  # fills prints with fewer grams; a gram of this very hash is lost
_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd, half of the bits set
_NEIGHBOURS = 3  # each owner of a gram is compared with so many that follow it
_CHUNK = 1 << 15  # pairs compared at a time


class Part(Protocol):
    """Notes of one part, ordered by onset, then pitch."""

    @property
    def onset(self) -> IntArray: ...  # (N,) grid steps

    @property
    def pitch(self) -> IntArray: ...  # (N,)


def batch_prints(files: Sequence[Sequence[Part]]) -> list[Print]:
    """The prints of files by their parts that are no drums, together: numpy's cost for each call is shared.

    A print is the PRINT_GRAMS smallest hashes of a file's grams, ascending, distinct; all where it has fewer. A gram
    is seven successive intervals of one part's upper line (the highest note of each chord), repeated notes counting
    once. So it is the same in every key and tempo and in whatever order a file has its parts. Patterns that repeat
    after up to four intervals are left out: trills, alternating chords and arpeggios are in all music.

    Empty for a file without pitched notes, or with too few.
    """
    parts = [part for file in files for part in file]
    nothing = np.empty(0, np.int64)
    onset = np.concatenate([nothing, *(part.onset for part in parts)])  # (N,) of all notes
    pitch = np.concatenate([nothing, *(part.pitch for part in parts)])
    if len(pitch) <= _GRAM:
        return [np.empty(0, np.uint32) for _ in files]
    part_of_note = np.repeat(np.arange(len(parts)), [len(part.pitch) for part in parts])
    file_of_part = np.repeat(np.arange(len(files)), [len(file) for file in files])
    gap = np.diff((part_of_note << 32) + onset)  # between parts it is large, because onsets are below 2**31
    chord = np.concatenate(([0], np.flatnonzero(gap > _CHORD_GAP) + 1))  # the first note of each
    part_of_chord = part_of_note[chord]
    is_new_part = np.diff(part_of_chord) != 0
    interval = np.diff(np.maximum.reduceat(pitch, chord))
    kept = np.flatnonzero((interval != 0) | is_new_part)
    gram, begin = _grams(interval[kept], is_new_part[kept])
    file = file_of_part[part_of_chord[kept[begin]]].astype(np.uint64)
    keys = file << np.uint64(32) | _hash(gram)
    keys.sort()
    keys = keys[_is_first(keys)]
    cuts = np.searchsorted(keys, np.arange(len(files) + 1, dtype=np.uint64) << np.uint64(32)).tolist()
    return [keys[start : min(stop, start + PRINT_GRAMS)].astype(np.uint32) for start, stop in pairwise(cuts)]


def _grams(interval: IntArray, is_new_part: NDArray[np.bool_]) -> tuple[NDArray[np.uint64], IntArray]:
    """The grams of parts end to end, (G,), and at which interval each begins, (G,).

    Both arrays are of shape (I,); an interval that leads to a new part is in no gram.
    """
    count = max(len(interval) - _GRAM + 1, 0)
    line = np.zeros(count + _GRAM, np.int8)  # eight bytes are read at the last gram, too
    line[: len(interval)] = interval
    gram = np.ndarray((count,), "<u8", line.data, strides=(1,)) & _GRAM_MASK  # line[i : i + 7] as one number
    is_kept = np.ones(count, bool)
    for period in (3, 4):  # and so 1 and 2
        bits = np.uint64(8 * period)
        is_kept &= (gram ^ gram >> bits) & (_GRAM_MASK >> bits) != 0
    across = np.flatnonzero(is_new_part)[:, None] - np.arange(_GRAM)  # grams that run from part to part
    is_kept[across[(across >= 0) & (across < count)]] = False
    begin = np.flatnonzero(is_kept)
    return gram[begin], begin


def score_print(score: Score) -> Print:
    """The print of a score in normal form (midigpt.normal.normalise)."""
    return batch_prints([[track for track in score.tracks if not track.is_drum]])[0]


def _hash(gram: NDArray[np.uint64]) -> Print:
    """The upper half of a multiplicative mix."""
    for factor in _MIX:
        gram = (gram ^ gram >> np.uint64(32)) * factor
    return (gram >> np.uint64(32)).astype(np.uint32)


def share_within(one: Print, other: Print) -> float:
    """How much of one file's music is in the other's, 0..1, by their prints; 0 where they are too small to tell."""
    limit = min((int(p[-1]) for p in (one, other) if len(p) == PRINT_GRAMS), default=int(_ABSENT))
    one = one[one <= limit]
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / len(one) if shared >= MIN_SHARED else 0.0


@dataclass(frozen=True)
class Clusters:
    """Files grouped by their music."""

    label: IntArray  # (F,) the smallest index of a file of the cluster; its own for a file that is alone
    nearest: IntArray  # (F,) the file whose print is most like this one's; -1 for a file that is alone
    share: NDArray[np.float64]  # (F,) how much of the smaller of the two is in the other, 0..1


def clusters(prints: list[Print]) -> Clusters:
    """Join files whose prints have enough in common.

    Two files are joined if, of the grams of the smaller that the other's print can show, a fifth and four more
    (and no fewer than MIN_SHARED) are there; and all that are joined by way of others are one cluster. Prints with
    fewer than MIN_SHARED grams stay alone. How the files are ordered changes nothing but the labels.

    Grams that more than COMMON different songs share don't count. What is a different song is found first, by a
    stricter rule that counts all grams; so a song may well be there a thousand times.
    """
    rows, row_of_file = _distinct(prints)
    a, b = _candidates(rows)
    reach = _reach(rows)
    smaller, shared = _compare(rows, reach, a, b)
    is_copy = shared >= smaller // 2 + MIN_SHARED
    songs = _components(len(rows), a[is_copy], b[is_copy])
    rows = _without_common(rows, songs)
    smaller, shared = _compare(rows, reach, a, b)
    is_same = shared >= np.maximum(smaller / 5 + 4, MIN_SHARED)
    a, b = a[is_same], b[is_same]
    return _report(_components(len(rows), a, b), a, b, shared[is_same] / smaller[is_same], row_of_file)


def _distinct(prints: list[Print]) -> tuple[Print, IntArray]:
    """The distinct prints as rows, shape (R, PRINT_GRAMS), in the order of their grams; and the row of each file.

    A file whose print is too small for any comparison has a row -1.
    """
    size = np.fromiter(map(len, prints), np.int64, len(prints))
    usable = np.flatnonzero(size >= MIN_SHARED)
    rows = np.full((len(usable), PRINT_GRAMS), _ABSENT)
    if len(usable):
        rows[np.arange(PRINT_GRAMS) < size[usable, None]] = np.concatenate([prints[i] for i in usable.tolist()])
    as_bytes = rows.astype(">u4").view(f"V{4 * PRINT_GRAMS}")[:, 0]  # so that they compare as the numbers do
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    row_of_file = np.full(len(prints), -1)
    row_of_file[usable] = inverse
    return rows[first], row_of_file


def _reach(rows: Print) -> Print:
    """(R,) The largest hash up to which a row shows all grams of its file: all there are, if it is not full."""
    last = rows[:, -1]
    return np.where(last == _ABSENT, _ABSENT - np.uint32(1), last)


def _owners(rows: Print) -> tuple[Print, NDArray[np.uint32]]:
    """Each gram of each row, and the row, ordered by gram, then row."""
    key = rows.astype(np.uint64)
    key <<= np.uint64(32)
    key |= np.arange(len(rows), dtype=np.uint64)[:, None]
    key = key[rows != _ABSENT]
    key.sort()
    return (key >> np.uint64(32)).astype(np.uint32), key.astype(np.uint32)


def _candidates(rows: Print) -> tuple[IntArray, IntArray]:
    """Pairs of rows (a, b), a < b, that several times own a gram one soon after the other.

    Not all pairs of owners: a gram of ten thousand songs would make fifty million. Rows are in the order of their
    smallest grams, so copies lie near each other, and the rare grams bring together what is left.
    """
    gram, row = _owners(rows)
    pairs = []
    for distance in range(1, _NEIGHBOURS + 1):
        at = np.flatnonzero(gram[distance:] == gram[:-distance])
        pairs.append(row[at].astype(np.uint64) << np.uint64(32) | row[at + distance].astype(np.uint64))
    pair = np.concatenate(pairs)
    pair.sort()
    seen_thrice = pair[2:][pair[2:] == pair[:-2]]
    pair = seen_thrice[_is_first(seen_thrice)]
    return (pair >> np.uint64(32)).astype(np.int64), (pair & np.uint64(2**32 - 1)).astype(np.int64)


def _compare(rows: Print, reach: Print, a: IntArray, b: IntArray) -> tuple[IntArray, IntArray]:
    """For each pair, (P,): the grams of the smaller row within the reach of both, and how many of them are shared."""
    smaller, shared = np.empty(len(a), np.int64), np.empty(len(a), np.int64)
    for start in range(0, len(a), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        limit = np.minimum(reach[a[chunk]], reach[b[chunk]])[:, None]
        left, right = rows[a[chunk]], rows[b[chunk]]
        smaller[chunk] = np.minimum((left <= limit).sum(1), (right <= limit).sum(1))
        both = np.sort(np.concatenate((left, right), axis=1), axis=1)
        shared[chunk] = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] <= limit)).sum(1)
    return smaller, shared


def _without_common(rows: Print, songs: IntArray) -> Print:
    """The rows without the grams that more than COMMON songs share; songs[r] is the song of row r."""
    gram, row = _owners(rows)
    start = np.flatnonzero(_is_first(gram))
    owners = np.diff(start, append=len(gram))
    is_frequent = np.repeat(owners > COMMON, owners)
    gram_of_song = gram[is_frequent].astype(np.uint64) << np.uint64(32) | songs[row[is_frequent]].astype(np.uint64)
    gram_of_song.sort()
    frequent, in_songs = np.unique(gram_of_song[_is_first(gram_of_song)] >> np.uint64(32), return_counts=True)
    common = np.append(frequent[in_songs > COMMON].astype(np.uint32), _ABSENT)
    kept = rows.copy()
    for start_row in range(0, len(rows), _CHUNK):
        chunk = kept[start_row : start_row + _CHUNK]
        chunk[common[np.searchsorted(common, chunk)] == chunk] = _ABSENT
    return kept


def _is_first(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a value differs from the one before it."""
    return np.append(np.ones(min(len(ordered), 1), bool), ordered[1:] != ordered[:-1])


def _components(count: int, a: IntArray, b: IntArray) -> IntArray:
    """(count,) The smallest member of each node's connected component in the graph of the edges (a, b)."""
    root = np.arange(count)
    while True:
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        is_open = low < high
        if not is_open.any():
            return root
        np.minimum.at(root, high[is_open], low[is_open])
        while (root[root] != root).any():
            root = root[root]


def _report(song: IntArray, a: IntArray, b: IntArray, share: NDArray[np.float64], row_of_file: IntArray) -> Clusters:
    """From rows back to files: files of one row are each other's nearest."""
    files = np.arange(len(row_of_file))
    usable = np.flatnonzero(row_of_file >= 0)
    row = row_of_file[usable]

    first_of_song = np.full(len(song), len(files))
    np.minimum.at(first_of_song, song[row], usable)
    label = files.copy()
    label[usable] = first_of_song[song[row]]

    best_row, best_share = _best(len(song), np.append(a, b), np.append(b, a), np.append(share, share))
    first_of_row = np.full(len(song), len(files))
    np.minimum.at(first_of_row, row, usable)
    last_of_row = np.full(len(song), -1)
    np.maximum.at(last_of_row, row, usable)

    nearest, nearest_share = np.full(len(files), -1), np.zeros(len(files))
    is_joined = best_row[row] >= 0
    nearest[usable[is_joined]] = first_of_row[best_row[row[is_joined]]]
    nearest_share[usable] = best_share[row]
    is_copy = first_of_row[row] < last_of_row[row]
    copy, copy_row = usable[is_copy], row[is_copy]
    nearest[copy] = np.where(copy == first_of_row[copy_row], last_of_row[copy_row], first_of_row[copy_row])
    nearest_share[copy] = 1.0
    return Clusters(label, nearest, nearest_share)


def _best(
    count: int, node: IntArray, other: IntArray, share: NDArray[np.float64]
) -> tuple[IntArray, NDArray[np.float64]]:
    """For each of `count` nodes the other end of its edge with the greatest share, and that share; -1 and 0 without."""
    best, best_share = np.full(count, -1), np.zeros(count)
    order = np.lexsort((-other, share, node))  # the last of each node is its best
    last = order[np.append(_is_first(node[order])[1:], True)[: len(order)]]
    best[node[last]], best_share[node[last]] = other[last], share[last]
    return best, best_share
