"""What a run chooses by itself."""

import pytest

from midigpt.config import load_preset
from midigpt.plan import (
    Pace,
    averaging_weight,
    choose_preset,
    is_decaying,
    learning_rate_factor,
    regularisation,
    steps_between_evaluations,
    steps_that_fit,
)
from midigpt.settings import Config


def test_the_learning_rate_rises_stays_and_falls_to_nearly_nothing() -> None:
    factors = [learning_rate_factor(step, 100, 10, 0.4) for step in range(100)]
    assert factors[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert set(factors[10:60]) == {1.0}
    assert factors[60:] == pytest.approx([n / 40 for n in range(40, 0, -1)])
    assert not is_decaying(59, 100, 0.4) and is_decaying(60, 100, 0.4)
    assert learning_rate_factor(0, 1, 50, 1.0) == 1 / 50


def test_averaged_weights_look_back_over_a_share_of_the_run() -> None:
    assert averaging_weight(0, 1000) == 1.0
    weights = [averaging_weight(step, 1000) for step in range(1000)]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == pytest.approx(1 / 50)


@pytest.mark.parametrize("tokens", [1_000, 2_000_000, 30_000_000, 300_000_000])
@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
def test_the_size_follows_the_music_and_the_device(tokens: int, device: str) -> None:
    preset, reason = choose_preset(tokens, device)
    assert load_preset(Config, preset).model.n_layer and reason
    larger, _ = choose_preset(10 * tokens, device)
    sizes = ["demo", "small", "base"]
    assert sizes.index(larger) >= sizes.index(preset)
    assert device != "cpu" or preset == "demo"


def test_more_epochs_are_regularised_more() -> None:
    dropouts, decays = zip(*(regularisation(epochs, 1000, 0.002) for epochs in (0.5, 3, 8, 20, 100)), strict=True)
    for figures in (dropouts, decays):
        assert [*figures] == sorted(figures) and figures[0] < figures[-1]
    assert regularisation(20, 1000, 0.002)[1] == pytest.approx(1 / (0.15 * 1000 * 0.002))
    assert regularisation(20, 10**6, 0.002)[1] == 0.1
    assert regularisation(15, 1000, 0.002, keys=12) == (0.1, 0.1) != regularisation(15, 1000, 0.002)
    assert regularisation(25, 1000, 0.002, keys=12) == regularisation(25, 1000, 0.002)
    assert regularisation(20, 100, 0.002, has_learned=True) == (0.1, 0.1)


def test_evaluations_take_a_tenth_of_the_time_but_are_neither_too_few_nor_too_many() -> None:
    # Each reads 2/3 of what it would be to train on 30,000 tokens: as long as 20 steps of 1,000.
    assert steps_between_evaluations(2000, 1000, 30_000) == 200
    assert steps_between_evaluations(2000, 1000, 10**9) == 500
    assert steps_between_evaluations(2000, 1000, 0) == 100
    assert steps_between_evaluations(3, 1000, 0) == 1


def test_a_stall_changes_nothing_and_a_slower_machine_does() -> None:
    pace = Pace()
    assert [pace.add(seconds) for seconds in (1, 1, 1.2, 30, 1)] == [1, 1, 1, 1.1, 1]
    assert [pace.add(3) for _ in range(9)][-1] == 3


def test_a_budget_of_time_is_used_and_kept() -> None:
    steps = steps_that_fit(100, seconds_left=1000, step_seconds=1, eval_interval=50, eval_seconds=10)
    evaluations = (steps - 100) // 50
    assert 900 < (steps - 100) + 10 * evaluations <= 1000
    assert steps_that_fit(100, seconds_left=-5, step_seconds=1, eval_interval=50, eval_seconds=10) == 101
