"""How like two sets of pieces are in one respect: the overlapped area of two densities, and their divergence.

Yang and Lerch, "On the evaluation of generative models in music", 2020, smooth distances between pieces: those
within the real set against those from it to the other. So it is here where a piece gives a histogram. Where it gives
one number, the densities are of the numbers themselves, because distances tell less: of two bells a deviation apart
64 % overlap, of the distances 89 %; of a set that is always the mean 37 %, of the distances 83 % (dev/LOG.md).

Both densities are smoothed by the same Gaussian, whose width follows from the real set by Scott's rule: so a set does
not look smooth because it is odd. The divergence is Kullback and Leibler's of the other set from the real one, in
bits; each set gets one piece more that may lie anywhere on the axis, else it would be infinite too soon.
"""

from dataclasses import dataclass

import numpy as np

from midigpt.metrics import FloatArray
from midigpt.score import IntArray

POINTS = 256  # of an axis
RESAMPLES = 200  # of the bootstrap
FEW_SONGS = 5  # too few to resample


@dataclass(frozen=True)
class Set:
    """What was measured in some pieces. Pieces of one song hang together: they are resampled as one."""

    values: FloatArray  # (P,) numbers, or (P, K) histograms; without nan
    song: IntArray  # (P,) 0, 1, ...

    @property
    def songs(self) -> int:
        return int(self.song.max()) + 1


@dataclass(frozen=True)
class Likeness:
    """How much a set is like the real one."""

    overlap: float  # 0..1
    overlap_error: float | None  # standard error by the bootstrap over songs of both sets; None where they are few
    divergence: float  # bits
    divergence_error: float | None


@dataclass(frozen=True)
class Axis:
    """Where densities over a sample of real values are computed, and how they are smoothed."""

    points: FloatArray  # (POINTS,)
    smoothing: FloatArray  # (POINTS, POINTS) what a value at a point gives to each


def make_axis(sample: FloatArray, pieces: int, finest: float) -> Axis:
    """An axis for a sample of real values, (S,), that stands for so many independent ones.

    It goes beyond them on both sides by as far as they reach; values further out count at its ends. Scott,
    "Multivariate density estimation", 1992: the Gaussian's width is the deviation times pieces ** -0.2.
    """
    width = max(float(sample.std()) * pieces**-0.2, finest)
    reach = max(float(np.ptp(sample)), 8 * width)
    points = np.linspace(sample.min() - reach, sample.max() + reach, POINTS)
    kernel = np.exp(-0.5 * ((points[:, None] - points) / width) ** 2)
    return Axis(points, kernel / kernel.sum(axis=1, keepdims=True))


def place(axis: Axis, values: FloatArray) -> IntArray:
    """(S,) The nearest point to each value."""
    step = axis.points[1] - axis.points[0]
    return np.rint((values - axis.points[0]) / step).clip(0, POINTS - 1).astype(np.int64)


def density(axis: Axis, places: IntArray, weights: FloatArray | None = None) -> FloatArray:
    """(POINTS,) The smoothed shares of values at these points, each of some weight; they sum to 1."""
    count = np.bincount(places, weights, POINTS)
    return (count / max(count.sum(), 1e-9)) @ axis.smoothing  # a resample of one piece has no distances


def overlap(p: FloatArray, q: FloatArray) -> float:
    """The area under both densities, 0..1."""
    return float(np.minimum(p, q).sum())


def divergence(p: FloatArray, q: FloatArray, pieces_p: int, pieces_q: int) -> float:
    """KL(p || q) in bits, each with one piece more, spread over the axis."""
    p, q = ((d * pieces + 1 / len(d)) / (pieces + 1) for d, pieces in ((p, pieces_p), (q, pieces_q)))
    return float((p * np.log2(p / q)).sum())


def compare(real: Set, others: dict[str, Set], finest: float, rng: np.random.Generator) -> dict[str, Likeness]:
    """How like each of the others is to the real set. `finest` is the least width of the smoothing."""
    within = _sample(real, None)
    axis = make_axis(within.values, len(real.values), finest)
    samples = {name: _sample(real, other) for name, other in others.items()}
    places = {name: place(axis, sample.values) for name, sample in samples.items()}
    at = place(axis, within.values)

    def figures(w: FloatArray, v: dict[str, FloatArray]) -> FloatArray:
        """(others, 2) overlap and divergence, with the pieces of the real set and of the others weighted."""
        p = density(axis, at, within.weights(w, w))
        q = {name: density(axis, places[name], samples[name].weights(w, v[name])) for name in others}
        sizes = {name: len(other.values) for name, other in others.items()}
        return np.array([(overlap(p, q[n]), divergence(p, q[n], len(real.values), sizes[n])) for n in others])

    found = figures(np.ones(len(real.values)), {name: np.ones(len(other.values)) for name, other in others.items()})
    again = np.stack(
        [figures(_resample(real, rng), {n: _resample(o, rng) for n, o in others.items()}) for _ in range(RESAMPLES)]
    )
    errors = again.std(axis=0)
    is_enough = {name: min(real.songs, other.songs) >= FEW_SONGS for name, other in others.items()}
    return {
        name: Likeness(
            overlap=float(found[row, 0]),
            overlap_error=float(errors[row, 0]) if is_enough[name] else None,
            divergence=float(found[row, 1]),
            divergence_error=float(errors[row, 1]) if is_enough[name] else None,
        )
        for row, name in enumerate(others)
    }


@dataclass(frozen=True)
class _Sample:
    """The numbers of a set, or the distances from one set to another, and which pieces each is of."""

    values: FloatArray  # (S,)
    left: IntArray | None  # (S,) the real piece of a distance
    right: IntArray  # (S,)

    def weights(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """(S,) by the weights of the pieces on both sides."""
        return right[self.right] if self.left is None else left[self.left] * right[self.right]


def _sample(real: Set, other: Set | None) -> _Sample:
    """Of a set, or where there is no other of the real one itself, each of whose pairs counts once."""
    values = (other or real).values
    if values.ndim == 1:
        return _Sample(values, None, np.arange(len(values)))
    if other is None:
        left, right = np.triu_indices(len(values), 1)
    else:
        left, right = (row.reshape(-1) for row in np.indices((len(real.values), len(values))))
    squares = (real.values**2).sum(1)[:, None] + (values**2).sum(1) - 2 * real.values @ values.T
    return _Sample(np.sqrt(squares.clip(0))[left, right], left, right)


def _resample(of: Set, rng: np.random.Generator) -> FloatArray:
    """(P,) How often each piece is in a bootstrap sample of as many songs."""
    drawn = rng.integers(0, of.songs, of.songs)
    return np.bincount(drawn, minlength=of.songs)[of.song].astype(np.float64)
