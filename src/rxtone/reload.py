"""Proof that a saved adapter gives what was trained: a fresh process scores the same reviews.

`python -m rxtone.reload` reads a request from standard input and answers on standard output, both
JSON; `check_reload` makes the request and compares.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from rxtone.data.reviews import Review
from rxtone.errors import ModelError
from rxtone.loading import load
from rxtone.model.base import QUANTISED, quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 1e-2, "8bit": 2e-2, "4bit": 2e-2}
"""Largest probability change allowed between the trained model and its reloaded copy. The same code
runs on the same rows in the same batches, so the true change is near zero; the room is for kernels that differ by
thread count."""


def check_reload(
    adapter: Path, base: str, reviews: Sequence[Review], trained: np.ndarray, precision: str
) -> dict[str, Any]:
    """Reload an adapter in a fresh process and compare probabilities.

    Args:
        adapter: The saved folder.
        base: Where the base is.
        reviews: n canary reviews.
        trained: float64, shape (n, k): label log-probabilities of the model that was saved.
        precision: Precision of the base.

    Returns:
        Rows compared, the largest probability change of the adapter as saved and merged into the
        weights, and the labels that merging flips.

    Raises:
        ModelError: If the reloaded adapter does not give the trained probabilities.
    """
    request = {
        "adapter": str(adapter), "base": base, "precision": precision,
        "reviews": [{"fields": review.fields, "text": review.text} for review in reviews],
    }  # fmt: skip
    answer = subprocess.run(  # our own interpreter and module
        [sys.executable, "-m", "rxtone.reload"], input=json.dumps(request), capture_output=True,
        text=True, check=False, env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    if answer.returncode != 0:
        last = answer.stderr.strip().splitlines()[-1:] or ["no message"]
        msg = f"{adapter}: the saved adapter cannot be reloaded in a fresh process: {last[0]}"
        raise ModelError(msg)
    scores = json.loads(answer.stdout)
    wrapped, merged = np.exp(scores["wrapped"]), np.exp(scores["merged"])
    change = float(np.abs(wrapped - np.exp(trained)).max())
    if change > TOLERANCE[precision]:
        msg = (
            f"{adapter}: reloaded in a fresh process, the adapter changes a probability by {change:.4f} "
            f"(at most {TOLERANCE[precision]} is allowed); the saved files do not hold what was trained"
        )
        raise ModelError(msg)
    return {
        "rows": len(reviews),
        "max_probability_change": change,
        "merged_max_probability_change": float(np.abs(merged - np.exp(trained)).max()),
        "merged_flipped_labels": int((merged.argmax(1) != trained.argmax(1)).sum()),
    }


def main() -> None:
    """Answer one request (see the module's docstring)."""
    quiet_transformers()
    request = json.load(sys.stdin)
    reviews = [
        Review(fields=tuple((name, text) for name, text in item["fields"]), text=item["text"])
        for item in request["reviews"]
    ]
    scores = {}
    for name, merged in (("wrapped", False), ("merged", True)):
        precision = request["precision"]
        if precision in QUANTISED:
            # The run's own, which no option names. Merging goes through the base as it was: what that changes is
            # worth knowing.
            precision = "auto" if merged else None
        classifier = load(request["adapter"], base=request["base"], precision=precision, merged=merged)
        scores[name] = classifier.score(reviews).log_probs.tolist()
    json.dump(scores, sys.stdout)


if __name__ == "__main__":
    main()
