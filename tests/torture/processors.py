"""Other processors: their kernels round otherwise, and what is left of that in labels and probabilities."""

import json
import os
import subprocess
import sys
from pathlib import Path

from torture.figure import Figure, World

OTHERS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE4": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
"""What a processor without the newer instructions would run: torch and its libraries keep to the older ones."""
NEAR = 0.001
"""Probabilities that lie closer are a tie, which rounding may decide."""
SCORE = """
import json, sys
import rxtone
classifier = rxtone.load("druglib-mini", precision=sys.argv[1] or None)
reviews = [review for part in ("train", "test") for review in rxtone.read_reviews(classifier, f"sample:{part}")]
predictions = classifier.predict(reviews[: int(sys.argv[2])])
print(json.dumps([list(prediction.probabilities.values()) for prediction in predictions]))
"""


def other_kernels(attempts: int, folder: Path, world: World) -> Figure:
    """The bundled adapter on the bundled reviews, by the kernels of this processor and of lesser ones.

    In fp32 a label may differ at a tie alone. In the run's own precision, which a processor without native bf16 does
    not have, it may differ more often; how often is reported.
    """
    figure = Figure()
    rows = -(-attempts // len(OTHERS))
    here, own = (_probabilities(precision, rows, folder, {}) for precision in ("fp32", ""))
    differences = {}
    for name, settings in OTHERS.items():
        there = _probabilities("fp32", rows, folder, settings)
        for row, (first, second) in enumerate(zip(here, there, strict=True)):
            one, other = (max(range(len(p)), key=p.__getitem__) for p in (first, second))
            figure.attempt(
                one == other or abs(first[one] - first[other]) < NEAR,
                f"review {row}: {first} here, {second} with {name}",
            )
        differences[name] = (there, _largest(here, there))
    there = differences["AVX2"][0]
    figure.details = {
        **{f"largest_difference_{name}": f"{found:.0e}" for name, (_, found) in differences.items()},
        "run_precision_labels_that_agree": round(_agreement(own, there), 4),
        "run_precision_largest_difference": round(_largest(own, there), 3),
    }
    return figure


def _probabilities(precision: str, rows: int, folder: Path, settings: dict[str, str]) -> list[list[float]]:
    environment = os.environ | settings | {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCORE, precision, str(rows)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == rows, f"expected {rows} reviews in the sample, found {len(found)}"
    return found


def _largest(first: list[list[float]], second: list[list[float]]) -> float:
    return max(abs(a - b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True))


def _agreement(first: list[list[float]], second: list[list[float]]) -> float:
    same = [one.index(max(one)) == other.index(max(other)) for one, other in zip(first, second, strict=True)]
    return sum(same) / len(same)
