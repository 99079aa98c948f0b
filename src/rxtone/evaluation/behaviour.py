"""The behavioural suite: what a sentiment classifier must be able to do, one thing at a time.

After CheckList (Ribeiro et al. 2020): cases with a known answer, and changes that must not change the answer. The
cases stand in behaviour.yaml; none of them comes from a data set, so no training table holds them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import yaml

from rxtone.classifier import Classifier
from rxtone.config import SENTIMENT
from rxtone.data.reviews import Review
from rxtone.spec import prompt_builder
from rxtone.stats.intervals import LEVEL, wilson_interval

FIELDS = ("Benefits", "Side Effects", "Comments")
"""The fields of the cases; a classifier that knows other fields reads them as one free text."""
_EXAMPLES = 5


@dataclass(frozen=True)
class Case:
    """One question to a classifier.

    Attributes:
        text: The review: Benefits, Side Effects, Comments.
        expected: The right label; None where the answer must equal that for `reference`.
        reference: The unchanged review; None where `expected` is set.
        template: Another instruction to ask with; None for the classifier's own.
        change: What was changed, for people.
    """

    text: tuple[str, ...]
    expected: str | None = None
    reference: tuple[str, ...] | None = None
    template: str | None = None
    change: str | None = None


@dataclass(frozen=True)
class Capability:
    """What one part of the suite asks for.

    Attributes:
        name: Its key in metrics.json.
        title: What it is, for people.
        cases: Its questions.
    """

    name: str
    title: str
    cases: tuple[Case, ...]


def is_sentiment(labels: Sequence[str]) -> bool:
    """Whether labels are a sentiment scale that the suite can judge."""
    return {"positive", "negative"} <= set(labels) <= SENTIMENT


def load_suite() -> tuple[Capability, ...]:
    """Read the cases that come with the package."""
    text = (resources.files("rxtone.evaluation") / "behaviour.yaml").read_text("utf-8")
    return tuple(
        Capability(part["name"], part["title"], tuple(_cases(part))) for part in yaml.safe_load(text)["capabilities"]
    )


def judge_behaviour(classifier: Classifier, *, batch_size: int = 32) -> dict[str, Any]:
    """Ask a classifier every question of the suite.

    Args:
        classifier: One whose labels are a sentiment scale.
        batch_size: Reviews per batch.

    Returns:
        `capabilities`: name -> `title, n, passed, pass_rate, pass_rate_ci` (Wilson; the changed cases of one
        review are related, so they say a little less than so many independent ones) and `failures`, up to 5 with
        `text, change, expected, label, score`; `n`, `passed`, `pass_rate`. A case whose right label the classifier
        does not know is left out.
    """
    suite = load_suite()
    templates = {case.template for part in suite for case in part.cases}
    asked: dict[tuple[str | None, tuple[str, ...]], tuple[str, float]] = {}
    for template in templates:
        own = classifier if template is None else _with_template(classifier, template)
        texts = {case.text for part in suite for case in part.cases if case.template == template}
        if template is None:
            texts |= {case.reference for part in suite for case in part.cases if case.reference is not None}
        ordered = sorted(texts)
        answers = own.predict([_review(own, text) for text in ordered], batch_size=batch_size)
        for text, answer in zip(ordered, answers, strict=True):
            asked[template, text] = (answer.label, answer.probabilities[answer.label])
    found = {part.name: _judged(part, classifier.labels, lambda t, x: asked[t, x]) for part in suite}
    n, passed = (sum(part[key] for part in found.values()) for key in ("n", "passed"))
    return {"capabilities": found, "n": n, "passed": passed, "pass_rate": passed / n, "level": LEVEL}


def _judged(
    part: Capability,
    labels: Sequence[str],
    answer: Callable[[str | None, tuple[str, ...]], tuple[str, float]],
) -> dict[str, Any]:
    n, failures = 0, list[dict[str, Any]]()
    for case in part.cases:
        expected = case.expected if case.reference is None else answer(None, case.reference)[0]
        if expected is None or expected not in labels:
            continue
        n += 1
        label, score = answer(case.template, case.text)
        if label != expected:
            text = " / ".join(piece for piece in case.text if piece)
            failures.append({"text": text, "change": case.change, "expected": expected, "label": label, "score": score})
    passed = n - len(failures)
    worst = sorted(failures, key=lambda failure: -failure["score"])[:_EXAMPLES]
    return {
        "title": part.title,
        "n": n,
        "passed": passed,
        "pass_rate": passed / n if n else None,
        "pass_rate_ci": wilson_interval(passed, n),
        "failures": worst,
    }


def _cases(part: Mapping[str, Any]) -> Iterator[Case]:
    for item in part["cases"]:
        if part["kind"] == "label":
            label, *text = item
            yield Case(tuple(text), expected=label)
            continue
        review = tuple(item["of"])
        for changed in item.get("as", ()):
            yield Case(tuple(changed), reference=review, change="typed with errors")
        for template in part.get("templates", ()):
            yield Case(review, reference=review, template=template, change=template.partition("\n")[0])
        for sentence in part.get("append", ()):
            yield Case((*review[:-1], f"{review[-1]} {sentence}"), reference=review, change=f"with “{sentence}”")
        for slot, words in part.get("swap", {}).items():
            first, *others = (tuple(text.replace(f"{{{slot}}}", word) for text in review) for word in words)
            yield from (
                Case(other, reference=first, change=f"{words[0]} became {word}")
                for word, other in zip(words[1:], others, strict=True)
            )


def _review(classifier: Classifier, text: Sequence[str]) -> Review:
    fields = tuple(zip(FIELDS, text, strict=True))
    if set(classifier.spec.text_fields) == set(FIELDS):
        return Review(fields=fields)
    return Review(text=" ".join(piece for piece in text if piece))


def _with_template(classifier: Classifier, template: str) -> Classifier:
    words = {"template": template, "text_template": template.replace("{fields}", "{text}")}
    prompt = classifier.spec.prompt.model_copy(update=words)
    return replace(classifier, prompts=prompt_builder(classifier.tokenizer, prompt, classifier.labels))
