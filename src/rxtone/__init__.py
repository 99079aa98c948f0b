"""LoRA-tuned T5 sentiment classifiers that can be trusted.

The public names load on first use (PEP 562), so importing rxtone is quick.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rxtone.api import evaluate as evaluate
    from rxtone.api import read_reviews as read_reviews
    from rxtone.api import train as train
    from rxtone.classifier import Classifier as Classifier
    from rxtone.classifier import Prediction as Prediction
    from rxtone.config import Recipe as Recipe
    from rxtone.config import load_recipe as load_recipe
    from rxtone.data.reviews import Review as Review
    from rxtone.errors import DataError as DataError
    from rxtone.errors import GateError as GateError
    from rxtone.errors import ModelError as ModelError
    from rxtone.errors import RecipeError as RecipeError
    from rxtone.errors import RunError as RunError
    from rxtone.errors import RxtoneError as RxtoneError
    from rxtone.evaluation.evaluate import Evaluation as Evaluation
    from rxtone.loading import load as load
    from rxtone.loading import zero_shot as zero_shot
    from rxtone.run import RunFolder as RunFolder

# No dependency reports home: each reads its switch when it is imported. A user's own setting stands.
for _switch, _off in (
    ("HF_HUB_DISABLE_TELEMETRY", "1"), ("DO_NOT_TRACK", "1"), ("GRADIO_ANALYTICS_ENABLED", "False"),
    ("RAY_USAGE_STATS_ENABLED", "0"), ("MLFLOW_DISABLE_TELEMETRY", "true"),
):  # fmt: skip
    os.environ.setdefault(_switch, _off)

_HOMES = {
    "api": ("evaluate", "read_reviews", "train"),
    "classifier": ("Classifier", "Prediction"),
    "loading": ("load", "zero_shot"),
    "config": ("Recipe", "load_recipe"),
    "data.reviews": ("Review",),
    "errors": ("DataError", "GateError", "ModelError", "RecipeError", "RunError", "RxtoneError"),
    "evaluation.evaluate": ("Evaluation",),
    "run": ("RunFolder",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: PLE0604, RUF100  # all are resolved by __getattr__
    "Classifier",
    "DataError",
    "Evaluation",
    "GateError",
    "ModelError",
    "Prediction",
    "Recipe",
    "RecipeError",
    "Review",
    "RunError",
    "RunFolder",
    "RxtoneError",
    "evaluate",
    "load",
    "load_recipe",
    "read_reviews",
    "train",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        msg = f"module 'rxtone' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"rxtone.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
