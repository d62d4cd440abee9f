"""Where tokens stand in musical time: the model's rotary positions.

    position = POSITIONS_A_STEP * (grid steps from the document's beginning to the token's line)
               + (the token's place in its line, from 0)

So notes that are a beat apart are as far apart to the model, however many tokens lie between them; of two tokens of one
line the later one has the greater position. The start token and the header are lines without length: they, and the
first line of notes, begin at 0. Time begins anew with each document. Rotary positions count by their differences
alone, so a window may begin anywhere in a document.

Rotary positions are those of RoFormer (arXiv 2104.09864), which does not ask that they be indices. Nothing of the
model is changed for it: in transformers they are its `position_ids`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from midigpt.score import IntArray
from midigpt.tokenizer import ranges

POSITIONS_A_STEP = 4  # of the grid

Positions = NDArray[np.uint32]
POSITIONS_DTYPE = np.dtype("<u4")  # of train.positions.bin: enough for 200 days of music at 120 beats a minute


def line_positions(time: IntArray, tokens: IntArray) -> IntArray:
    """The positions (N,) of lines' tokens, end to end: of each line when it begins, in grid steps, and how many
    tokens it has, both (L,)."""
    return ranges(POSITIONS_A_STEP * time, tokens)


def token_positions(times: Sequence[int], texts: Sequence[str]) -> list[int]:
    """The positions of a document's tokens: of each the time of its line, in grid steps, and its text.

    The start token, whose text is "", is a line of its own.
    """
    is_end = np.array([not text or text.endswith("\n") for text in texts], bool)
    begin = np.flatnonzero(np.append(True, is_end)[: len(texts)])
    return line_positions(np.array(times, np.int64)[begin], np.diff(begin, append=len(texts))).tolist()
