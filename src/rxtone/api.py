"""The Python interface: the same work as the command line, without printing."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rxtone import pipeline
from rxtone.config import Recipe, cache_dir, load_recipe
from rxtone.data.reviews import Review, parse_rule
from rxtone.data.reviews import read_reviews as read_review_rows
from rxtone.data.tables import read_table
from rxtone.evaluation.evaluate import Evaluation
from rxtone.evaluation.evaluate import evaluate as evaluate_reviews
from rxtone.preparation import TEST
from rxtone.run import RunFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rxtone.classifier import Classifier


def train(
    recipe: Recipe | str | Path,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
) -> RunFolder:
    """Run a recipe: train, save, reload, evaluate.

    Args:
        recipe: A `Recipe`, a shipped name, or the path of a YAML file.
        out: Folder of the run; None makes `runs/<name>-<time>`.
        overrides: `group.key=value` texts, applied to a named recipe.
        resume: Continue what is in `out`.

    Returns:
        The finished run folder; `rxtone.load` takes it.

    Raises:
        RxtoneError: With the branch that says what was wrong.
    """
    name = "run" if isinstance(recipe, Recipe) else Path(recipe).stem
    resolved = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    folder = Path(out) if out is not None else default_out(name)
    for _ in pipeline.train(resolved, folder, resume=resume):
        pass
    return RunFolder(folder)


def default_out(name: str) -> Path:
    """A new folder under `runs/`, named after the recipe and the local time; no name leads out of `runs/`."""
    plain = re.sub(r"[^\w.-]+", "-", name.encode("ascii", "ignore").decode()).strip(".-")[:80] or "run"
    return Path("runs") / f"{plain}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"


def evaluate(classifier: Classifier, reviews: Sequence[Review]) -> Evaluation:
    """Judge a classifier on labelled reviews.

    Args:
        classifier: From `rxtone.load`.
        reviews: Reviews with labels, such as `read_reviews` gives.

    Returns:
        Metrics and one row per review.
    """
    return evaluate_reviews(classifier, reviews, split_name=TEST, policy=classifier.policy, ordinal=classifier.ordered)


def read_reviews(classifier: Classifier, table: str | Path, *, labelled: bool = True) -> list[Review]:
    """Read a table the way a classifier was trained to see it.

    Args:
        classifier: From `rxtone.load`; its spec names the columns and the label rule.
        table: A path or a named source.
        labelled: Whether the label column is read.

    Returns:
        One review per row.

    Raises:
        DataError: If the table does not fit.
    """
    spec = classifier.spec
    rule = parse_rule(spec.label_rule) if labelled else None
    column = spec.label_column if labelled else None
    return read_review_rows(read_table(table, cache_dir()), spec.text_fields, column, rule, every_label=False)
