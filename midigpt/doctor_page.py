"""The doctor's page: one HTML file that needs nothing else, for wide and narrow screens, light and dark."""

from dataclasses import dataclass
from html import escape

import numpy as np

from midigpt.doctor import Examination, File, duplicates, examples, kinds
from midigpt.doctor_advice import STRANGE, Advice, Strange, say_time
from midigpt.doctor_plots import draw
from midigpt.page import cards, figures, whole_page

GROUPS = 20  # of duplicates, at most
NAMES = 6  # files by name in a row of a table

STYLE = """
ol.advice { padding: 0; margin: 0; list-style: none; display: grid; gap: .6rem; }
ol.advice li { background: var(--card); border: 1px solid var(--line); border-left: .3rem solid var(--accent);
  border-radius: .4rem; padding: .6rem .9rem; }
ol.advice small { display: block; }
.verdicts td:first-child { overflow-wrap: normal; min-width: 8rem; }
td.detail { padding-left: 1.8rem; }
@media (max-width: 36rem) { td.detail { padding-left: 1rem; } }
"""


@dataclass(frozen=True)
class Verdict:
    name: str
    files: list[File]
    is_detail: bool = False  # of the verdict above
    is_named: bool = True  # whether to give examples


def render(examination: Examination, advice: list[Advice], strange: list[Strange], folder: str) -> str:
    """The page as text. `folder` is what was examined, for the title."""
    title = f"MIDI files in {folder}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(basis(examination))}</p>',
        _figures(examination),
        _advice(advice),
        _verdicts(examination),
        _plots(examination),
        _strange(strange, {file.path: file.shown for file in examination.files}) if examination.music else "",
        _duplicates(duplicates(examination.converted)),
    ]
    return whole_page(title, parts, STYLE)


def basis(examination: Examination) -> str:
    """On which files the figures of music rest."""
    converted, measured = len(examination.converted), len(examination.music)
    if not converted:
        return "No file is converted yet, so no music was measured."
    if examination.is_sample:
        return (
            f"Music was measured in a sample: {measured:,} of {converted:,} converted files, drawn by chance,"
            " the same ones every time. Files, documents and notes are counted in all; hours are scaled up."
        )
    if measured < converted:
        return f"Music was measured in {measured:,} of {converted:,} converted files; the rest can't be read any more."
    return f"Music was measured in all {converted:,} converted files." if converted > 1 else "One file was measured."


def headline(examination: Examination) -> list[tuple[str, str]]:
    """(figure, what it counts) of the whole folder."""
    converted = examination.converted
    tracks = [music.tracks for music in examination.music.values()]
    hours = examination.hours
    found = [
        (f"{len(examination.files):,}", "MIDI files"),
        (f"{len(converted):,}", "converted"),
        (f"{sum(file.documents for file in converted):,}", "documents"),
        (f"{sum(file.notes for file in converted):,}", "notes"),
    ]
    if examination.music:
        about = "about " if examination.is_sample else ""
        found += [
            (about + say_time(3600 * hours), "of music"),
            (f"{np.median(tracks):.3g}", "tracks in the median file"),
        ]
    return found


def verdicts(examination: Examination) -> list[Verdict]:
    """What became of the files, without empty rows; a verdict with details leaves the names to them."""
    converted, refused = examination.converted, examination.by_state("refused")
    rescued = [file for file in converted if file.remark]
    lost = [file for file in converted if file.path in examination.lost]
    rows = [
        Verdict("converted", [file for file in converted if not file.remark], is_named=False),
        *_detailed("converted after rescue", [(file, file.remark) for file in rescued]),
        *_detailed("refused", [(file, file.reason) for file in refused]),
        Verdict("not converted yet", examination.by_state("new")),
        Verdict("gone from raw_data/", examination.by_state("removed")),
        Verdict("left out as duplicates of others", [file for file in converted if file.duplicate_of]),
        *_detailed("left out by the filters", [(f, f.reason) for f in examination.by_state("filtered")]),
        *_detailed("converted, but can't be read any more", [(file, examination.lost[file.path]) for file in lost]),
    ]
    return [row for row in rows if row.files]


def _detailed(name: str, reasons: list[tuple[File, str | None]]) -> list[Verdict]:
    details = [Verdict(kind, files, is_detail=True) for kind, files in kinds(reasons).items()]
    return [Verdict(name, [file for file, _ in reasons], is_named=False), *details]


def _figures(examination: Examination) -> str:
    return figures(headline(examination))


def _advice(advice: list[Advice]) -> str:
    if not advice:
        return "<h2>What to do</h2>\n<p>Nothing stands out: go on with the tokenizer and training.</p>"
    items = "\n".join(f"<li>{escape(a.text)}<small>Rule: {escape(a.rule)}.</small></li>" for a in advice)
    return f'<h2>What to do</h2>\n<ol class="advice">\n{items}\n</ol>'


def _verdicts(examination: Examination) -> str:
    rows = "\n".join(
        f'<tr><td{" class=detail" if v.is_detail else ""}>{escape(v.name)}</td><td class="number">{len(v.files):,}</td>'
        f'<td class="quiet">{escape(examples(v.files, NAMES)) if v.is_named else ""}</td></tr>'
        for v in verdicts(examination)
    )
    head = "<tr><th>verdict<th class=number>files<th>for example</tr>"
    return f"<h2>Verdicts</h2>\n<table class=verdicts>\n{head}\n{rows}\n</table>"


def _plots(examination: Examination) -> str:
    plots = draw(examination)
    return f"<h2>The music</h2>\n{cards(plots)}" if plots else ""


def _strange(strange: list[Strange], shown: dict[str, str]) -> str:
    head = "<h2>The strangest files</h2>\n"
    rule = (
        f"Further than {STRANGE} robust standard deviations (by the median absolute deviation) from the median of"
        " this folder in some respect. Strange is not bad: listen first."
    )
    if not strange:
        return f"{head}<p>None stands out.</p>\n<p class=quiet>{rule}</p>"
    rows = "\n".join(
        f"<tr><td>{escape(shown[s.path])}</td><td>{'<br>'.join(map(escape, s.why))}</td></tr>" for s in strange
    )
    return f"{head}<p class=quiet>{rule}</p>\n<table>\n<tr><th>file<th>why</tr>\n{rows}\n</table>"


def _duplicates(groups: list[list[File]]) -> str:
    if not groups:
        return ""
    copies = sum(len(group) - 1 for group in groups)
    rows = "\n".join(
        f'<tr><td class="number">{len(group)}</td><td>{escape(examples(group, NAMES))}</td></tr>'
        for group in groups[:GROUPS]
    )
    more = f'<p class="quiet">The {GROUPS} largest of {len(groups):,} groups.</p>' if len(groups) > GROUPS else ""
    return (
        f"<h2>Duplicates</h2>\n<p>{copies:,} files repeat the music of another, all or a good part of it, in"
        f" {len(groups):,} group{'s' if len(groups) > 1 else ''}. A group is one song to the split.</p>\n{more}\n"
        f"<table>\n<tr><th class=number>files<th>names, the one that is kept first</tr>\n{rows}\n</table>"
    )
