"""Piano rolls: what tells prompt from continuation, tracks, loudness, bars and drums apart, for any score."""

import warnings
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from numpy.typing import NDArray

from midigpt.midi import read_midi
from midigpt.score import Score, track_from_notes
from midigpt.show import COLOURS, DRUM_COLOUR, bar_starts, draw_piano_roll, piano_roll_figure
from tests.conftest import melody, midi_files

BAR = 1920


def notes_of(axes: Axes) -> list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Of each track drawn: its notes' corners, (N, left-right, tick-pitch), and the colours inside and around them."""
    drawn = [c for c in axes.collections if isinstance(c, PolyCollection) and c.get_zorder() == 2]
    corners = [np.array([[p.vertices.min(0), p.vertices.max(0)] for p in c.get_paths()]) for c in drawn]
    colours = [(np.array(c.get_facecolor())[:, :3], np.array(c.get_edgecolor())[:, :3]) for c in drawn]
    return [(place, *pair) for place, pair in zip(corners, colours, strict=True)]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def legend(score: Score) -> list[str]:
    return [text.get_text() for text in piano_roll_figure(score).legends[0].get_texts()]


def test_the_notes_of_a_prompt_are_hollow_on_tinted_paper() -> None:
    score = Score(480, (track_from_notes([(0, 480, 60, 80), (960, 960, 62, 80), (1440, 480, 64, 80)]),))
    for cut, hollow in ((1440, [True, True, False]), (0, [False] * 3), (9999, [True] * 3), (None, [False] * 3)):
        (axes,) = piano_roll_figure(score, cut=cut).axes
        ((_, inside, around),) = notes_of(axes)
        assert ((inside - around).mean(axis=1) > 0.2).tolist() == hollow
        assert len(axes.patches) == (cut not in (0, None))  # the paper
        assert any("continuation" in text for text in texts(axes)) == (cut in (0, 1440))
        assert any("prompt" in text for text in texts(axes)) == (cut == 1440)


def test_loud_notes_are_darker() -> None:
    score = Score(480, (track_from_notes([(480 * n, 480, 60, velocity) for n, velocity in enumerate((1, 40, 127))]),))
    ((_, inside, _),) = notes_of(piano_roll_figure(score).axes[0])
    light = inside.mean(axis=1)
    assert light[0] > light[1] + 0.05 > light[2] + 0.1
    assert inside[2].tolist() == pytest.approx(to_rgb(COLOURS[0]))


def seen_by(colour: str, loss: list[list[float]]) -> NDArray[np.float64]:
    """A colour in Oklab (Ottosson 2020) as colour-blind eyes see it (Machado et al. 2009)."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_cones = [[0.41222, 0.53633, 0.05145], [0.2119, 0.6807, 0.1074], [0.0883, 0.28172, 0.62998]]
    to_lab = [[0.21045, 0.79362, -0.00407], [1.978, -2.42859, 0.45059], [0.0259, 0.78277, -0.80868]]
    return np.array(to_lab) @ np.cbrt(np.array(to_cones) @ (np.array(loss) @ linear).clip(0, 1))


@pytest.mark.parametrize(
    "loss",
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
    ids=["all", "no red", "no green", "no blue"],
)
def test_sixteen_tracks_and_drums_are_told_apart_by_all_eyes(loss: list[list[float]]) -> None:
    seen = [seen_by(colour, loss) for colour in [*COLOURS, DRUM_COLOUR]]
    assert len(COLOURS) == 16
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.055  # about three just noticeable steps


def test_instruments_are_named_once_or_numbered() -> None:
    def track(program: int, is_drum: bool = False) -> Score:
        return melody(program, program=program, is_drum=is_drum)

    parts = [track(0), track(40), track(0), track(0, True), track(5, True)]
    score = Score(480, (*(part.tracks[0] for part in parts), track_from_notes([], 9)))
    assert legend(score) == ["grand piano 1", "violin", "grand piano 2", "drums"]
    assert legend(Score(480, tuple(melody(n).tracks[0] for n in range(50))))[-1] == "and 18 more"


def test_drums_have_lanes_of_their_own() -> None:
    drums = track_from_notes([(0, 10, 36, 90), (480, 10, 38, 90), (960, 10, 42, 90), (1440, 900, 57, 90)], is_drum=True)
    for tracks in ((drums,), (track_from_notes([(0, 480, 20, 90), (0, 480, 90, 90)]), drums)):
        (axes,) = piano_roll_figure(Score(480, tracks)).axes
        (strokes, _, _) = notes_of(axes)[-1]
        low, high = strokes[:, 0, 1], strokes[:, 1, 1]
        lanes = dict(zip((t.get_text() for t in axes.get_yticklabels()), axes.get_yticks(), strict=True))
        assert [lanes[kind] for kind in ("kick", "snare", "hi-hat", "cymbals")] == pytest.approx((low + high) / 2)
        assert (low[1:] > high[:-1]).all() and high.max() < (60 if len(tracks) == 1 else 19)
        assert np.ptp(strokes[:, :, 0], axis=1) == pytest.approx(60)  # ticks, however long the note


def test_bars_are_ruled_by_the_meter_or_as_given() -> None:
    score = Score(480, melody(1, 40).tracks, meter=(3, 4))
    starts = bar_starts(score)
    assert set(np.diff(starts)) == {1440} and 0 <= starts[-1] - score.end < 1440 and starts[0] == 0
    assert bar_starts(score, [0, 480, 2400, 3840])[:6].tolist() == [0, 480, 2400, 3840, 5280, 6720]
    assert bar_starts(Score(480, ())).tolist() == [0, BAR]
    (axes,) = piano_roll_figure(score, bars=[0, 480, 2400]).axes
    assert axes.get_xticks()[:4].tolist() == [0, 480, 2400, 4320]
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["1", "2", "3"]


def test_octaves_are_named() -> None:
    (axes,) = piano_roll_figure(Score(480, (track_from_notes([(0, 480, 48, 90), (0, 480, 72, 90)]),))).axes
    labels = dict(zip(axes.get_yticks().tolist(), (t.get_text() for t in axes.get_yticklabels()), strict=True))
    assert labels == {48: "C3", 60: "C4", 72: "C5"}


def test_a_long_piece_is_in_rows_of_whole_bars_without_silent_ones() -> None:
    first = [(BAR * n, 480, 60 + n % 12, 80) for n in range(20)]
    later = [(BAR * n, 480, 60, 80) for n in range(100, 120)]
    axes = piano_roll_figure(Score(480, (track_from_notes(first + later),)), cut=BAR * 60).axes
    windows = [tuple(tick / BAR for tick in a.get_xlim()) for a in axes]
    assert windows == [(0, 16), (16, 32), (48, 64), (96, 112), (112, 120)]  # the third has the cut
    assert sum(len(corners) for a in axes for corners, _, _ in notes_of(a)) == 40
    assert [label.get_text() for label in axes[3].get_xticklabels()][:2] == ["97", "98"]
    widths = [a.get_position().width for a in axes]
    assert widths[-1] == pytest.approx(widths[0] / 2)  # one scale
    waltz = Score(480, (track_from_notes([(1440 * n, 480, 60, 80) for n in range(41)]),), meter=(3, 4))
    assert [a.get_xlim()[0] / 1440 for a in piano_roll_figure(waltz).axes] == [0, 20]  # the 21 that fit would be odd
    assert all(a.get_position().y0 > b.get_position().y1 for a, b in pairwise(axes))


def test_the_longest_pieces_stay_a_picture(tmp_path: Path) -> None:
    score = Score(480, (track_from_notes([(240 * n, 240, 60 + n % 12, 80) for n in range(20_000)]),))
    draw_piano_roll(score, tmp_path / "a.png")
    height, width, _ = imread(tmp_path / "a.png").shape
    assert height < 5000 and width < 2000


def test_odd_titles_and_odd_scores_are_drawn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_piano_roll(melody(1), tmp_path / "a.png", "a $x_{ and $ 日本 \n \udcff.mid", cut=480)
        draw_piano_roll(Score(480, tuple(melody(seed).tracks[0] for seed in range(25))), tmp_path / "many.png")
        draw_piano_roll(Score(480, ()), tmp_path / "none.png", cut=0)
        far = track_from_notes([(0, 1, 0, 1), (2**30, 1, 127, 127)])
        draw_piano_roll(Score(1, (far,), meter=(1, 128)), tmp_path / "far.png")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "many.png").stat().st_size > (tmp_path / "none.png").stat().st_size > 0
    assert not list(tmp_path.glob(".*"))


def test_every_note_of_real_files_is_drawn(corpus: Callable[[str], Path]) -> None:
    for path in midi_files(corpus("mini"))[::12]:
        score = read_midi(path)
        axes = piano_roll_figure(score, cut=score.end // 2).axes
        drawn = [corners for a in axes for corners, _, _ in notes_of(a)]
        onsets = np.unique(np.concatenate(drawn)[:, 0, 0])
        assert np.array_equal(onsets, np.unique(np.concatenate([track.onset for track in score.tracks]))), path
