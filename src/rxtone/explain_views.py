"""An explanation for people: coloured text for a terminal, an HTML fragment for pages."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from rxtone.explain import Explanation, Part

LEVELS = 4
"""Steps of colour; the weakest is no colour at all."""
STRONGEST = 6
_FOR = ("", "on color(23)", "on color(30)", "bold white on color(31)", "bold white on color(25)")
_AGAINST = ("", "on color(94)", "on color(130)", "bold white on color(130)", "bold white on color(124)")

EXPLANATION_CSS = """
.rx-why { --rx-for: 42, 122, 184; --rx-against: 213, 121, 42; line-height: 1.75; overflow-wrap: anywhere; }
.rx-why p { margin: .5rem 0; }
.rx-why .rx-legend { font-size: .875rem; opacity: .85; line-height: 1.5; }
.rx-why mark { color: inherit; border-radius: .2rem; padding: .05rem .15rem; background: none; }
.rx-why .rx-f1 { background: rgba(var(--rx-for), .16); } .rx-why .rx-a1 { background: rgba(var(--rx-against), .16); }
.rx-why .rx-f2 { background: rgba(var(--rx-for), .3); } .rx-why .rx-a2 { background: rgba(var(--rx-against), .3); }
.rx-why .rx-f3 { background: rgba(var(--rx-for), .45); } .rx-why .rx-a3 { background: rgba(var(--rx-against), .45); }
.rx-why .rx-f4 { background: rgba(var(--rx-for), .6); font-weight: 600; }
.rx-why .rx-a4 { background: rgba(var(--rx-against), .6); font-weight: 600; }
.rx-why [class^="rx-a"] { text-decoration: underline dotted; text-underline-offset: .2em; }
.rx-why b { font-weight: 600; } .rx-why .rx-w { font-variant-numeric: tabular-nums; white-space: nowrap; }
"""
"""Styles of `explanation_html`; it takes the ink of the page around it, light or dark."""


def levels(weights: Sequence[float]) -> list[int]:
    """Put weights into steps of colour.

    Args:
        weights: n weights.

    Returns:
        n steps from -LEVELS to LEVELS, relative to the largest weight; weights below an eighth of it are 0.
    """
    largest = max((abs(weight) for weight in weights), default=0.0)
    if not largest:
        return [0] * len(weights)
    steps = [int(abs(weight) / largest * LEVELS + 0.5) for weight in weights]
    return [step if weight > 0 else -step for step, weight in zip(steps, weights, strict=True)]


def explanation_text(found: Explanation) -> RenderableType:
    """Lay an explanation out for a terminal.

    Args:
        found: The explanation.

    Returns:
        What rich prints; signs and words carry all that colours do.
    """
    lines: list[RenderableType] = [
        Text.assemble((found.label, "bold"), f"  probability {found.probability:.3f}"),
        Text(legend(found), style="dim"),
    ]
    width = max(map(len, (*found.fields, "")), default=0)
    for name, share in found.fields.items():
        lines.append(Text(f"  {name:{width}}  {share:+.2f}", style="cyan" if share > 0 else "yellow"))
    for field, items in _by_field(found):
        words = Text(f"{field}: " if found.fields else "")
        for part, step in items:
            words.append(part.text, style=_FOR[step] if step >= 0 else _AGAINST[-step])
            words.append(" ")
        lines.append(Padding(words, (1, 0, 0, 2)))
    lines.append(Text(f"\nstrongest: {_strongest(found)}"))
    lines += [Text(note, style="yellow") for note in notes(found)]
    return Group(*lines)


def explanation_html(found: Explanation) -> str:
    """Lay an explanation out as a fragment of a page; its styles are `EXPLANATION_CSS`.

    Args:
        found: The explanation.

    Returns:
        HTML without scripts, in which every foreign text is escaped.
    """
    shares = "".join(
        f"<li><b>{escape(name)}</b> <span class=rx-w>{_signed(share)}</span></li>"
        for name, share in found.fields.items()
    )
    paragraphs = []
    for field, items in _by_field(found):
        name = f"<b>{escape(field)}:</b> " if found.fields else ""
        words = " ".join(_mark(part, step) for part, step in items)
        paragraphs.append(f"<p>{name}{words}</p>")
    warnings = "".join(f"<p class=rx-legend>{escape(note)}</p>" for note in notes(found))
    return (
        f'<div class="rx-why"><p class="rx-legend">{escape(legend(found))}</p>'
        + (f"<ul class=rx-shares>{shares}</ul>" if shares else "")
        + f"{''.join(paragraphs)}<p class=rx-legend>Strongest: {escape(_strongest(found))}</p>{warnings}</div>"
    )


def legend(found: Explanation) -> str:
    """What the figures are, in one or two sentences."""
    what = "each field and each word" if found.fields else "each word"
    if found.words_per_part > 1:
        what = what.replace("each word", f"each run of {found.words_per_part} words")
    return (
        f"How much {what} moved the log-odds of {found.label}: + (blue) speaks for it, − (orange, dotted) against it."
        + (
            f" The fields together: {_signed(found.log_odds - found.without_review)}, from "
            f"{_signed(found.without_review)} without a review to {_signed(found.log_odds)}."
            if found.fields
            else ""
        )
    )


def notes(found: Explanation) -> list[str]:
    """What a reader should know about this explanation."""
    said = []
    if found.label != found.predicted:
        said.append(f"The answer is {found.predicted}; what is explained is {found.label}.")
    if found.cut:
        lost = ", ".join(f"{count} tokens of {name}" for name, count in found.cut.items())
        said.append(f"Too long for the prompt: {lost} were not read.")
    return said


def _by_field(found: Explanation) -> Iterable[tuple[str, list[tuple[Part, int]]]]:
    steps = levels([part.weight for part in found.parts])
    for field, items in groupby(zip(found.parts, steps, strict=True), key=lambda item: item[0].field):
        yield field, list(items)


def _strongest(found: Explanation) -> str:
    ranked = sorted(found.parts, key=lambda part: -abs(part.weight))[:STRONGEST]
    return ", ".join(f"“{part.text}” {_signed(part.weight)}" for part in ranked)


def _mark(part: Part, step: int) -> str:
    text = escape(part.text)
    if not step:
        return text
    kind = f"rx-f{step}" if step > 0 else f"rx-a{-step}"
    return f'<mark class="{kind}" title="{_signed(part.weight)}">{text}</mark>'


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
