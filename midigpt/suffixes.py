"""Suffix arrays of whole numbers: where the longest beginning of a query stands in a long sequence.

Sorting is by prefix doubling of what is not yet told apart (Larsson and Sadakane, Faster suffix sorting, 2007),
the search by bisection that does not compare again what is known to agree (Manber and Myers, 1993); both for many
positions at once in numpy.
"""

import numpy as np
from numpy.typing import NDArray

from midigpt.score import IntArray

MOST = (1 << 21) - 1  # symbols of a sequence: three numbers below 2**21 fit into one that numpy sorts quickly
_BITS = 21
_WINDOW, _WIDEST = 4, 64  # symbols compared at once: at first, at most


def sort_suffixes(symbols: IntArray) -> NDArray[np.int32]:
    """Where the suffixes of `symbols`, (N,), begin, in lexicographic order: (N,). Raises ValueError for N > MOST."""
    count = len(symbols)
    if count > MOST:
        raise ValueError(f"{count} symbols are more than {MOST}")
    suffixes, is_first, depth = _sort_by_beginning(symbols)
    slots = np.arange(count)
    head = np.maximum.accumulate(np.where(is_first, slots, 0))  # of each slot: where its group begins
    rank = np.zeros(count + 1, np.int64)  # by position; 0 behind the end
    rank[suffixes] = head + 1
    while True:
        is_open = ~(is_first & np.append(is_first[1:], True))[: len(slots)]
        slots, head = slots[is_open], head[is_open]
        if not len(slots):
            return suffixes.astype(np.int32)
        position = suffixes[slots]
        follower = rank[np.minimum(position + depth, count)]
        keys = np.sort(head << 2 * _BITS | follower << _BITS | position)  # twice as quick as argsort and more
        position = keys & MOST
        is_first = np.append(True, np.diff(keys >> _BITS) != 0)
        head = np.maximum.accumulate(np.where(is_first, slots, 0))
        suffixes[slots] = position
        rank[position] = head + 1
        depth *= 2


def _sort_by_beginning(symbols: IntArray) -> tuple[IntArray, NDArray[np.bool_], int]:
    """The suffixes by their first few symbols; which of them begin otherwise than the one before; how few."""
    count = len(symbols)
    order = np.argsort(symbols)
    number = np.zeros(count, np.int64)  # of each symbol, from 1: 0 is behind the end
    number[order] = np.cumsum(np.append(True, np.diff(symbols[order]) != 0)[:count])
    bits = max(int(number.max(initial=0)).bit_length(), 1)
    depth = 63 // bits
    beginning = np.zeros(count, np.int64)
    for at in range(depth):
        beginning[: max(count - at, 0)] |= number[at:] << (depth - 1 - at) * bits
    order = np.argsort(beginning)
    return order, np.append(True, np.diff(beginning[order]) != 0)[:count], depth


def longest_beginnings(
    symbols: IntArray, suffixes: NDArray[np.int32], query: IntArray, starts: IntArray
) -> tuple[IntArray, IntArray]:
    """Of query[start:], for each start, (Q,), how many symbols at most stand somewhere in `symbols`, and where.

    `suffixes` is sort_suffixes(symbols). The last symbol of `symbols` must not be in the query, and the query
    must end in a symbol that is not in `symbols` and is less than all of them.
    """
    low, high = np.full(len(starts), -1), np.full(len(starts), len(suffixes))  # of what is not yet known
    low_agree, high_agree = np.zeros((2, len(starts)), np.int64)
    for _ in range(len(suffixes).bit_length()):
        middle = np.minimum((low + high) >> 1, len(suffixes) - 1)
        is_open = high - low > 1
        middle = np.where(is_open, middle, np.maximum(low, 0))
        position = suffixes[middle].astype(np.int64)
        agree = _agreement(symbols, position, query, starts, np.minimum(low_agree, high_agree))
        is_less = symbols.take(position + agree, mode="clip") < query[starts + agree]
        goes_up, goes_down = is_open & is_less, is_open & ~is_less
        low, low_agree = np.where(goes_up, middle, low), np.where(goes_up, agree, low_agree)
        high, high_agree = np.where(goes_down, middle, high), np.where(goes_down, agree, high_agree)
    is_low = low_agree >= high_agree
    best = np.where(is_low, np.maximum(low, 0), np.minimum(high, len(suffixes) - 1))
    return np.maximum(low_agree, high_agree), suffixes[best].astype(np.int64)


def _agreement(
    symbols: IntArray, position: IntArray, query: IntArray, starts: IntArray, known: IntArray
) -> IntArray:
    """How many symbols agree from each position and each start on, (Q,), of which `known` are known to."""
    agree = known.copy()
    going = np.arange(len(starts))
    width = _WINDOW
    while len(going):
        window = np.arange(width)
        ours = query.take((starts + agree)[going, None] + window, mode="clip")
        theirs = symbols.take((position + agree)[going, None] + window, mode="clip")
        differs = ours != theirs
        more = np.where(differs.any(axis=1), differs.argmax(axis=1), width)
        agree[going] += more
        going = going[more == width]
        width = min(2 * width, _WIDEST)  # what agrees so far often agrees for long
    return agree
