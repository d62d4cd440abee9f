"""What a training run chooses by itself: the model's size, its length, its schedule, how much it regularises."""

import math
from collections import deque
from statistics import median

SMALL_TOKENS = 5_000_000  # of training data, from which on `small` pays on a GPU
BASE_TOKENS = 100_000_000
EVALUATION_SHARE = 0.1  # of a run's time, which evaluating may take
FEWEST_EVALUATIONS, MOST_EVALUATIONS = 4, 20
FORGETTING = 0.15  # of the steps of a run that repeats its music often
OFTEN, OFTEN_IN_KEYS = 12, 20  # repeats of the same text, above which only much regularisation helps
AVERAGED = 0.05  # of the steps of a run, over which the averaged weights look back
MARGIN = 0.02  # of a budget of minutes, kept back


def choose_preset(tokens: int, device: str) -> tuple[str, str]:
    """The preset for so many training tokens on a device, and why.

    A model with about as many parameters as there are tokens, each seen some twenty times, is about as large as data
    that repeats can feed (Muennighoff et al. 2023, arXiv 2305.16264).
    """
    if device == "cpu":
        return "demo", "on a CPU larger ones take many hours"
    if tokens < SMALL_TOKENS:
        return "demo", f"{tokens / 1e6:.1f} M tokens teach a larger one nothing"
    if tokens < BASE_TOKENS:
        return "small", f"it suits {tokens / 1e6:.0f} M tokens"
    return "base", f"it suits {tokens / 1e6:.0f} M tokens"


def regularisation(
    repeats: float, max_steps: int, learning_rate: float, has_learned: bool = False, keys: int = 1
) -> tuple[float, float]:
    """Dropout and weight decay for a run of so many steps that repeats every text so many times (dev/LOG.md).

    Weights forget over 1 / (learning rate * decay) steps: where the same music comes again and again, over
    FORGETTING of the run (Wang and Aitchison 2024, arXiv 2405.13698); else so slowly that it hardly matters. A model
    that goes on from another (`has_learned`) must not forget what that has learned; one that reads each piece in
    several keys learns less of it by heart.
    """
    if has_learned:
        return 0.1, 0.1
    if repeats <= 4:
        return 0.0, 0.1
    often = OFTEN if keys == 1 else OFTEN_IN_KEYS
    return (0.1, 0.1) if repeats <= often else (0.3, max(1 / (FORGETTING * max_steps * learning_rate), 0.1))


def learning_rate_factor(step: int, max_steps: int, warmup_steps: int, decay: float) -> float:
    """Share of the highest learning rate: up in a line, constant, over the last `decay` of the run down to zero.

    Constant, then linear to zero: Hägele et al. 2024 (arXiv 2405.18392), Bergsma et al. 2025 (arXiv 2502.15938).
    """
    return min((step + 1) / max(warmup_steps, 1), 1.0, (max_steps - step) / (decay * max_steps))


def is_decaying(step: int, max_steps: int, decay: float) -> bool:
    return step >= (1 - decay) * max_steps


def steps_between_evaluations(max_steps: int, tokens_per_step: int, tokens_read: int) -> int:
    """So that raw and averaged weights, which each read so many tokens, take EVALUATION_SHARE of the time."""
    cost = 2 * tokens_read / 3  # in tokens trained: a forward pass is a third of a step
    affordable = int(EVALUATION_SHARE * max_steps * tokens_per_step / max(cost, 1))
    return math.ceil(max_steps / min(max(affordable, FEWEST_EVALUATIONS), MOST_EVALUATIONS))


def steps_that_fit(done: int, seconds_left: float, step_seconds: float, eval_interval: int, eval_seconds: float) -> int:
    """The step at which a run must end to end in time; at least the next."""
    per_step = step_seconds + eval_seconds / eval_interval
    return done + max(int((seconds_left * (1 - MARGIN) - eval_seconds) / per_step), 1)


class Pace:
    """The usual time of what is done again and again: the median of its last nine, which one stall does not change."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=9)

    def add(self, seconds: float) -> float:
        """Take one more time; the usual one now."""
        self._last.append(seconds)
        return median(self._last)


def averaging_weight(step: int, max_steps: int) -> float:
    """How far the averaged weights move towards the raw ones: they look back over AVERAGED of the run."""
    return min(max(1 / (AVERAGED * max_steps), 10 / (10 + step)), 1.0)
