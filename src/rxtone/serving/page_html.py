"""What the page shows of a prediction, as HTML in which every foreign text is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from rxtone.explain_views import EXPLANATION_CSS, explanation_html

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rxtone.classifier import Prediction
    from rxtone.data.prompts import Prompt
    from rxtone.explain import Explanation

CSS = (
    EXPLANATION_CSS
    + """
.gradio-container { max-width: min(1080px, 100vw) !important; min-width: 0; margin: 0 auto !important;
  --rx-quiet: #475569; --rx-strong: #0f766e; --rx-plain: #64748b; --rx-warn: #b45309; --rx-bad: #b91c1c; }
.dark .gradio-container { --rx-quiet: #a3b1c6; --rx-strong: #2dd4bf; --rx-plain: #94a3b8; --rx-warn: #fbbf24;
  --rx-bad: #f87171; }
.gradio-container .tab-wrapper, .gradio-container .tabs, .gradio-container main, .gradio-container .app {
  min-width: 0; max-width: 100%; }
.gradio-container .app { overflow-x: clip; }
.gradio-container.gradio-container.gradio-container { /* thrice: stronger than Gradio's rules for prose */
  button[role=tab].selected { color: var(--rx-strong); }
  .html-container .prose { padding: 0; }
  .rx-head h1 { font-size: 1.7rem; font-weight: 700; margin: 0 0 .25rem; letter-spacing: -.01em; line-height: 1.25; }
  .rx-head p, .rx-hint, .rx-card h2 + p, .rx-card h3 { color: var(--rx-quiet); }
  .rx-head p, .rx-hint { margin: 0; line-height: 1.5; }
  .rx-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 18px 20px;
    background: var(--background-fill-primary); color: var(--body-text-color); }
  .rx-card h2 { font-size: 1.45rem; font-weight: 700; margin: 0 0 2px; overflow-wrap: anywhere; }
  .rx-card h2 + p { margin: 0 0 14px; }
  .rx-card h3 { font-size: .9rem; font-weight: 500; margin: 0 0 8px; overflow-wrap: anywhere; }
  .rx-card ul { list-style: none; margin: 0; padding: 0; display: grid; gap: 10px; }
  .rx-card li { display: grid; grid-template-columns: minmax(5.5rem, auto) 1fr 4.2rem; gap: 12px;
    align-items: center; margin: 0; padding: 0; }
  .rx-card li.rx-top { font-weight: 600; }
  .rx-card li span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
  .rx-track { height: 12px; border-radius: 6px; background: var(--border-color-primary); overflow: hidden; }
  .rx-fill { height: 100%; border-radius: 6px; background: var(--rx-plain); }
  .rx-top .rx-fill { background: var(--rx-strong); }
  .rx-unsure .rx-top .rx-fill { background: var(--rx-warn); }
  .rx-note { margin: 14px 0 0; padding: 10px 14px; border-left: 4px solid var(--rx-warn); border-radius: 4px;
    background: var(--background-fill-secondary); line-height: 1.5; }
  .rx-error { border-left: 4px solid var(--rx-bad); }
  .rx-error p, .rx-done p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5; }
  .rx-card .rx-why p { margin: .6rem 0 0; }
  .rx-card .rx-why ul { gap: 2px; margin: .6rem 0 0; }
  .rx-card .rx-why li { grid-template-columns: minmax(7.5rem, 30%) 1fr; }
  .rx-card .rx-why li span:last-child { text-align: left; }
  .rx-card details { margin-top: 14px; }
  .rx-card summary { cursor: pointer; color: var(--body-text-color); }
  .rx-card pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .86rem; line-height: 1.55;
    margin: 8px 0 0; padding: 10px 12px; border-radius: 8px; background: var(--background-fill-secondary);
    color: var(--body-text-color); max-height: 18rem; overflow-y: auto; }
  .rx-compare { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); gap: 14px; }
  .rx-hint { padding: 18px 20px; border: 1px dashed var(--border-color-primary); border-radius: 10px; }
  .rx-card summary:focus-visible, .rx-card pre:focus-visible { outline: 2px solid var(--rx-strong);
    outline-offset: 2px; }
  @media (max-width: 480px) {
    main, .app { padding: 8px; }
    .wrap:has(> main) { min-width: 0; max-width: 100%; padding: 0; }
    .column { min-width: 0 !important; flex-basis: 100% !important; }
    .rx-card { padding: 14px; }
    .rx-card li { grid-template-columns: 1fr 4.2rem; row-gap: 3px; }
    .rx-card li .rx-track { grid-column: 1 / -1; grid-row: 2; }
  }
}
"""
)
HINT = '<p class="rx-hint">The answer appears here: the label, how probable each label is, and what the model read.</p>'


def head(runs: Sequence[str], labels: Sequence[str]) -> str:
    """The title of the page.

    Args:
        runs: Names of the runs.
        labels: Labels of the first.

    Returns:
        HTML.
    """
    which = f"the run <strong>{escape(runs[0])}</strong>" if len(runs) == 1 else f"{len(runs)} runs"
    return (
        f'<header class="rx-head"><h1>What does this review say?</h1><p>Answers by {which}: '
        f"{escape(', '.join(labels))}. It reads words, knows no medicine, and is no medical advice.</p></header>"
    )


def card(prediction: Prediction, prompt: Prompt, read: str, *, title: str | None = None) -> str:
    """One prediction.

    Args:
        prediction: Label and probabilities.
        prompt: What was built for the model.
        read: The prompt's text as the model got it.
        title: Shown above, for comparisons.

    Returns:
        HTML.
    """
    score = prediction.probabilities[prediction.label]
    unsure = " rx-unsure" if prediction.abstained else ""
    heading, line = escape(prediction.label), f"with a probability of {percent(score)}"
    if prediction.abstained:
        heading, line = "Not sure", f"the nearest label is {escape(prediction.label)}, at only {percent(score)}"
    likeliest = max(prediction.probabilities, key=lambda label: prediction.probabilities[label])
    if likeliest != prediction.label:  # a tuned operating point weighs a rare label's probability higher
        line += f"; {escape(likeliest)} is likelier, but this run was tuned to find rarer labels too"
    above = f"<h3>{escape(title)}</h3>" if title is not None else ""
    return (
        f'<section class="rx-card{unsure}" role="status" aria-label="Answer">{above}<h2>{heading}</h2><p>{line}</p>'
        f"{_bars(prediction.probabilities, prediction.label)}{_cut(prompt)}"
        f"<details><summary>What the model read ({len(prompt.ids)} tokens)</summary>"
        f'<pre tabindex="0">{escape(read)}</pre></details></section>'
    )


def why(found: Explanation) -> str:
    """What drove an answer.

    Args:
        found: The explanation.

    Returns:
        HTML.
    """
    return (
        f'<section class="rx-card" role="status" aria-label="Explanation"><h3>Why {escape(found.predicted)}</h3>'
        f"{explanation_html(found)}</section>"
    )


def comparison(cards: Sequence[str]) -> str:
    """Cards side by side."""
    return f'<div class="rx-compare">{"".join(cards)}</div>'


def error(message: str) -> str:
    """A refusal, announced to screen readers."""
    return f'<section class="rx-card rx-error" role="alert"><p>{escape(message)}</p></section>'


def done(message: str) -> str:
    """Something went well."""
    return f'<section class="rx-card rx-done" role="status"><p>{escape(message)}</p></section>'


def summary(predictions: Sequence[Prediction], labels: Sequence[str]) -> str:
    """Shares of labels in a table.

    Args:
        predictions: One per row, at least one.
        labels: In the recipe's order.

    Returns:
        HTML.
    """
    n = len(predictions)
    shares = {label: sum(one.label == label for one in predictions) / n for label in labels}
    truncated = sum(one.truncated for one in predictions)
    unsure = sum(one.abstained for one in predictions)
    notes = [f"{truncated} were too long for the prompt and were cut"] * bool(truncated)
    notes += [f"{unsure} are not sure"] * bool(unsure)
    note = f'<p class="rx-note">Of these, {escape("; ".join(notes))}.</p>' if notes else ""
    return (
        f'<section class="rx-card" role="status" aria-label="Summary"><h2>{n} reviews read</h2>'
        f"<p>share of each label</p>{_bars(shares, max(shares, key=shares.__getitem__))}{note}</section>"
    )


def percent(share: float) -> str:
    """A share for people: 91.4 %, but never 100.0 % or 0.0 % for what is not."""
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{share:.1%}".replace("%", " %")


def _bars(shares: Mapping[str, float], chosen: str) -> str:
    rows = [
        f"<li{' class=rx-top' if label == chosen else ''}><span>{escape(label)}</span>"
        f'<div class="rx-track" aria-hidden="true"><div class="rx-fill" style="width:{share:.1%}"></div></div>'
        f"<span>{escape(percent(share))}</span></li>"
        for label, share in shares.items()
    ]
    return f"<ul>{''.join(rows)}</ul>"


def _cut(prompt: Prompt) -> str:
    if not prompt.cut:
        return ""
    lost = ", ".join(f"{count} tokens of {escape(name)}" for name, count in prompt.cut.items())
    return (
        f'<p class="rx-note">Too long for the prompt: {lost} were not read. The whole review has '
        f"{prompt.n_tokens_full} tokens, the prompt holds {len(prompt.ids)}.</p>"
    )
