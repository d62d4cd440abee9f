"""What to make of an examination: the files that stand out, and what to do about the folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from midigpt.doctor import DRUMS, Examination, File, FloatArray, Music, duplicates
from midigpt.files import make
from midigpt.general_midi import FAMILIES

STRANGEST = 20  # files to name at most
STRANGE = 3.5  # robust standard deviations from the median: Iglewicz and Hoaglin 1993
REASONS = 3  # for each file at most
REST = 1.0  # seconds; shorter silences are all alike


@dataclass(frozen=True)
class Feature:
    """A measure by which a file can stand out."""

    value: Callable[[Music], float]
    step: float  # the least spread to reckon with, in doublings if is_log: what is common counts as no fault
    high: str  # what to say of a file far above the others; {} is its value
    low: str  # ... or below; empty if that is nothing strange
    say: Callable[[float], str] = "{:,.0f}".format
    is_log: bool = True


@dataclass(frozen=True)
class Strange:
    path: str  # below raw_data
    distance: float  # robust standard deviations of what is strangest in it
    why: tuple[str, ...]  # strangest first


@dataclass(frozen=True)
class Advice:
    text: str
    rule: str  # when it is given


def say_time(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    number = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
    return f"{number} second" + ("" if number == "1" else "s")


def _count(noun: str) -> Callable[[float], str]:
    return lambda number: f"{number:,.0f} {noun}" + ("" if number == 1 else "s")


def percent(share: float) -> str:
    """A share for people: nothing rounds to 0 % or 100 % that is not."""
    if 0 < share < 0.005:
        return "less than 1 %"
    return f"{min(100 * share, 99) if share < 1 else 100:.0f} %"


def _velocity_spread(music: Music) -> float:
    velocity = np.arange(128)
    mean = np.average(velocity, weights=music.velocities)
    return float(np.sqrt(np.average((velocity - mean) ** 2, weights=music.velocities)))


def _pitch_range(music: Music) -> float:
    used = np.flatnonzero(music.pitches)
    return float(used[-1] - used[0]) if len(used) else np.nan


def _pitched(value: Callable[[Music], float]) -> Callable[[Music], float]:
    return lambda music: value(music) if music.pitches.any() else np.nan


def _say_rest(seconds: float) -> str:
    return "at most a second" if seconds <= REST else say_time(seconds)


def _say_range(semitones: float) -> str:
    return f"{semitones:.0f} semitones" if semitones else "a single key"


FEATURES = (
    Feature(lambda m: m.notes, 0.7, "{} in all", "{} in all", _count("note")),
    Feature(lambda m: m.seconds, 0.5, "lasts {}", "lasts {}", say_time),
    Feature(lambda m: m.notes / max(m.seconds, 1), 0.5, "{} notes a second", "{} notes a second", "{:,.3g}".format),
    Feature(_pitched(lambda m: m.longest_note), 0.7, "one note lasts {}", "no note is longer than {}", say_time),
    Feature(lambda m: max(m.longest_silence, REST), 0.7, "silent for {} on end", "", _say_rest),
    Feature(_pitch_range, 6, "spans {}", "spans {}", _say_range, is_log=False),
    Feature(_velocity_spread, 4, "loudness jumps about (±{})", "loudness hardly varies (±{})", is_log=False),
    Feature(
        _pitched(lambda m: m.short_share), 0.08, "{} of the notes are shorter than a 64th", "", percent, is_log=False
    ),
    Feature(
        _pitched(lambda m: m.mean_together),
        0.4,
        "{} notes sound together on average",
        "{} notes sound together on average",
        "{:.1f}".format,
    ),
    Feature(lambda m: m.tempo_bpm, 0.25, "tempo {}", "tempo {}", "{:,.0f} beats a minute".format),
    Feature(lambda m: m.tracks, 0.6, "{}", "{}", _count("track")),
)


def strangest(music: dict[str, Music]) -> list[Strange]:
    """The files that are far from the others in some feature, the strangest first."""
    names = list(music)
    distances = np.zeros((len(FEATURES), len(names)))  # signed
    values = np.zeros_like(distances)
    for row, feature in enumerate(FEATURES):
        values[row] = [feature.value(m) for m in music.values()]
        distances[row] = _distances(values[row], feature)
    found = []
    for column, name in enumerate(names):
        order = np.argsort(-np.abs(distances[:, column]), kind="stable")[:REASONS]
        rows = [row for row in order if abs(distances[row, column]) > STRANGE]
        if rows:
            why = tuple(_why(FEATURES[row], values[row], column) for row in rows)
            found.append(Strange(name, float(abs(distances[rows[0], column])), why))
    return sorted(found, key=lambda strange: -strange.distance)[:STRANGEST]


def _distances(values: FloatArray, feature: Feature) -> FloatArray:
    """Distance of each value from the median, over 1.4826 median absolute deviations or the feature's step."""
    known = np.isfinite(values)
    if not known.any():
        return np.zeros_like(values)
    scaled = np.log2(np.maximum(values, 1e-3)) if feature.is_log else values
    offset = np.where(known, scaled - np.median(scaled[known]), 0.0)
    distance = offset / max(1.4826 * float(np.median(np.abs(offset[known]))), feature.step)
    return distance if feature.low else np.maximum(distance, 0)


def _why(feature: Feature, values: FloatArray, column: int) -> str:
    usual = float(np.nanmedian(values))
    phrase = feature.high if values[column] > usual else feature.low
    return f"{phrase.format(feature.say(values[column]))} (here usually {feature.say(usual)})"


def family_shares(examination: Examination) -> FloatArray:
    """Shares of all measured notes, shape (17,): General MIDI's 16 families, then drums."""
    notes = examination.total("programs")
    return np.append(notes[:DRUMS].reshape(16, 8).sum(axis=1), notes[DRUMS]) / max(notes.sum(), 1)


Rule = tuple[bool, str, str]  # does it apply, the advice, when it is given


def advise(examination: Examination, root: Path) -> list[Advice]:
    """What to do, most urgent first."""
    rules = _about_files(examination, root) + _about_copies(examination)
    if examination.music:
        rules += _about_playing(list(examination.music.values())) + _about_instruments(family_shares(examination))
    return [Advice(text, rule) for applies, text, rule in rules if applies]


def _about_files(examination: Examination, root: Path) -> list[Rule]:
    new, refused, gone = (examination.by_state(state) for state in ("new", "refused", "removed"))
    rescued = [file for file in examination.converted if file.remark]
    return [
        (bool(new), f"{_files(new)} not converted yet; run: {make(root, 'dataset')}", "at least one new file"),
        (
            bool(gone),
            f"{_files(gone)} gone from raw_data/ while the documents remain; run: {make(root, 'dataset')}",
            "at least one such file",
        ),
        (
            bool(examination.lost),
            f"{len(examination.lost):,} of the converted files can't be measured: they changed, went or can't be read."
            f" Run: {make(root, 'index', 'dataset')}",
            "at least one such file",
        ),
        (
            bool(refused),
            f"{_files(refused)} refused. That costs nothing else; the reasons stand with the verdicts.",
            "at least one refused file",
        ),
        (
            bool(rescued),
            f"{_files(rescued)} damaged and rescued, perhaps not whole: listen to one before you trust them all.",
            "at least one rescued file",
        ),
    ]


def _files(files: list[File]) -> str:
    return f"{len(files):,} file is" if len(files) == 1 else f"{len(files):,} files are"


def _about_copies(examination: Examination) -> list[Rule]:
    converted = len(examination.converted)
    copies = sum(len(group) - 1 for group in duplicates(examination.converted))
    songs = converted - copies
    left_out = sum(file.duplicate_of is not None for file in examination.converted)
    return [
        (
            left_out > 0,
            f"{left_out:,} of {converted:,} converted files hold the music of another once more and are left out of"
            " training. Nothing to do; make dataset with --dedupe off would keep them.",
            "at least one duplicate",
        ),
        (
            copies > 0 and not left_out,
            f"{copies:,} of {converted:,} converted files repeat the music of another. What a model sees twice it"
            " learns by heart sooner; train with --dedupe music.",
            "at least one file that repeats another's music, and none left out",
        ),
        (
            0 < songs < 100,
            f"There are few songs ({songs}). Expect a model that quotes them rather than one that has learned their"
            " style: train it briefly (--max-steps 500), hold out more (--val-fraction 0.2), add music of the kind.",
            "fewer than 100 different songs",
        ),
    ]


def _about_playing(music: list[Music]) -> list[Rule]:
    def share(has: Callable[[Music], bool]) -> float:
        return sum(map(has, music)) / len(music)

    tiny = share(lambda m: m.notes == 1 or m.seconds < 5)
    flat = share(lambda m: np.count_nonzero(m.velocities) == 1)
    default = share(lambda m: round(m.tempo_bpm) == 120)
    free = share(lambda m: m.on_grid < 0.5)
    short = share(lambda m: m.short_share > 0.5)
    return [
        (
            tiny > 0,
            f"{round(tiny * len(music)):,} of {len(music):,} files measured are a single note or shorter than"
            " 5 seconds; they teach a model to stop early. Try --min-notes 50.",
            "at least one file of one note or under 5 seconds",
        ),
        (
            flat >= 0.9,
            f"This corpus has no velocity information: in {percent(flat)} of the files all notes are equally loud."
            " Those of a take will be, too.",
            "one velocity throughout in at least 90 % of the files",
        ),
        (
            0.25 <= flat < 0.9,
            f"In {percent(flat)} of the files all notes are equally loud; a model will learn both ways of playing.",
            "one velocity throughout in 25 to 90 % of the files",
        ),
        (
            default >= 0.9,
            f"The tempo is 120 in {percent(default)} of the files: probably the files' default, not the music's."
            " Hours and notes a second go by that clock.",
            "first tempo 120 in at least 90 % of the files",
        ),
        (
            free >= 0.5,
            f"{percent(free)} of the files are played freely, off the grid of the beats: these are a recorder's, not"
            " the music's. Such files cost more bits per note than written ones, and a take makes no readable score.",
            "in at least 50 % of the files, half of the onsets lie further than 1/48 beat from sixteenths and triplets",
        ),
        (
            short >= 0.1,
            f"In {percent(short)} of the files most notes are shorter than a 64th: mere triggers, whose true lengths"
            " are lost.",
            "most pitched notes shorter than 1/16 beat in at least 10 % of the files",
        ),
    ]


def _about_instruments(families: FloatArray) -> list[Rule]:
    drums, pitched = families[16], families[:16].sum()
    most = int(families[:16].argmax())
    share = float(families[most] / pitched) if pitched else 0.0
    return [
        (
            share >= 0.8,
            f"{percent(share)} of the pitched notes are {FAMILIES[most]}: a model learns that well"
            " and has little to go by for anything else.",
            "one General MIDI family has at least 80 % of the pitched notes",
        ),
        (drums == 0, "There are no drums, so the model learns none; a take has hardly any.", "no note on channel 10"),
        (pitched == 0, "There is nothing but drums, so a take will have no tune.", "all notes on channel 10"),
    ]
