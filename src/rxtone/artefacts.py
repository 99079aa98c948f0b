"""What a run leaves behind: its evaluation as files, its model card, and the environment."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rxtone.evaluation.card import render_card
from rxtone.evaluation.evaluate import Evaluation
from rxtone.evaluation.plots import confusion_figure, to_png
from rxtone.evaluation.report import Example, confident_errors, render_report
from rxtone.explain import explain
from rxtone.run import (
    CARD,
    EvaluationFolder,
    RunFolder,
    atomic_path,
    read_json_lines,
    write_bytes,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from rxtone.classifier import Classifier
    from rxtone.config import Recipe
    from rxtone.model.base import Base
    from rxtone.model.lora import AdapterSummary
    from rxtone.preparation import Prepared

PACKAGES = ("rxtone", "torch", "transformers", "peft", "tokenizers", "safetensors", "polars", "numpy", "scikit-learn")

SHOWN_CHARS = 500
"""Characters of a suspect review that the report shows."""


def write_evaluation(
    run: RunFolder, classifier: Classifier, recipe: Recipe, prepared: Prepared, evaluation: Evaluation
) -> Path:
    """Write metrics.json, predictions.parquet, the picture, the report and the model card of a run.

    Args:
        run: The run folder.
        classifier: The judged classifier.
        recipe: Its recipe.
        prepared: Its reviews.
        evaluation: What was found.

    Returns:
        The path of the report.
    """
    folder = EvaluationFolder(run.evaluation)
    folder.path.mkdir(exist_ok=True)
    with atomic_path(folder.predictions) as temporary:
        evaluation.predictions.write_parquet(temporary)
    metrics = evaluation.metrics
    for normalised, name in ((False, "confusion-counts.png"), (True, "confusion-share.png")):
        figure = confusion_figure(metrics["confusion_matrix"], classifier.labels, normalised=normalised)
        write_bytes(folder.path / name, to_png(figure))
    record = json.loads(run.data.read_text("utf-8"))
    environment = json.loads(run.environment.read_text("utf-8"))
    write_text(folder.report, render_report({
        "title": run.path.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": metrics,
        "facts": _facts(recipe, record, environment),
        "history": read_json_lines(run.metrics_log),
        "cut_fields": record["truncation"].get("test", record["truncation"]["validation"])["cut_reviews_by_field"],
        "environment": {key: str(value) for key, value in (environment["packages"] | environment["machine"]).items()},
        "commands": [f"rxtone train {run.path.name}/config.yaml --out NEW_FOLDER"],
        "notes": _notes(metrics, record),
        "confident_errors": _errors(classifier, recipe, prepared, evaluation),
        "suspects": _suspects(recipe, prepared, metrics),
    }))  # fmt: skip
    card = render_card(
        base=str(classifier.spec.base["name"]), recipe=recipe.model_dump(mode="json"), record=record, metrics=metrics
    )
    write_text(run.adapter / CARD, card)
    write_json(folder.metrics, metrics)  # last: where it stands, all of the evaluation stands
    return folder.report


def environment_record(
    run: RunFolder, base: Base, summary: AdapterSummary, reload_check: dict[str, Any] | None
) -> dict[str, Any]:
    """What environment.json holds: versions, machine, precision, adapter, speed and memory of the run."""
    steps = [line for line in read_json_lines(run.metrics_log) if "loss" in line]
    seconds = sum(line["seconds"] for line in steps)
    return {
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": {
            "python": sys.version.split()[0],
            "system": f"{platform.system()} {platform.machine()}",
            "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "precision": base.precision,
        "base": base.identity.to_json(),
        "adapter": {
            "modules": list(summary.modules), "trainable": summary.trainable, "total": summary.total,
            "share": summary.share,
        },
        "training": {
            "steps": len(steps),
            "seconds": seconds,
            "reviews_per_second": sum(line["reviews"] for line in steps) / seconds if seconds else None,
            "peak_memory_bytes": max((line["peak_memory_bytes"] for line in steps), default=None),
        },
        "reload_check": reload_check,
    }  # fmt: skip


def _errors(classifier: Classifier, recipe: Recipe, prepared: Prepared, evaluation: Evaluation) -> list[Example]:
    """The most confident errors; with their words and the weight of each where the recipe shows texts."""
    found = confident_errors(evaluation.predictions)
    if not recipe.evaluation.texts:
        return found
    reviews = {review.row: review for review in prepared.held_out}
    shown = []
    for error in found:
        parts = explain(classifier, reviews[error["row"]], label=error["label"]).parts
        largest = max((abs(part.weight) for part in parts), default=0.0) or 1.0
        shown.append(Example(**error, words=[(part.text, part.weight / largest) for part in parts]))
    return shown


def _suspects(recipe: Recipe, prepared: Prepared, metrics: dict[str, Any]) -> list[Example]:
    reviews = {review.row: review for review in (*prepared.train, *prepared.validation)}
    shown = []
    for suspect in (metrics.get("suspect_labels") or {"most": []})["most"][:10]:
        example = Example(
            row=suspect["row"], true_label=suspect["label"], label=suspect["suggested"],
            score=suspect["suggested_probability"],
        )  # fmt: skip
        if recipe.evaluation.texts:
            review = reviews[suspect["row"]]
            text = "\n".join([*(f"{name}: {text}" for name, text in review.fields), review.text or ""]).strip()
            example["text"] = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS].rstrip() + " …"
        shown.append(example)
    return shown


def _facts(recipe: Recipe, record: dict[str, Any], environment: dict[str, Any]) -> dict[str, dict[str, str]]:
    splits, adapter, speed = record["splits"], environment["adapter"], environment["training"]
    table = record["tables"]["train"]
    data = {"training table": f"{table['source']} ({table['rows']} rows, sha256 {table['sha256'][:12]})"}
    for name, part in splits.items():
        shares = ", ".join(f"{label} {count}" for label, count in part["labels"].items())
        data[f"{name} reviews"] = f"{part['rows']} ({shares})"
    if record["dropped_test_rows"]:
        data["dropped test rows"] = f"{record['dropped_test_rows']}, which repeat a training text"
    lora, train = recipe.lora, recipe.train
    model = {
        "base": f"{recipe.model.base}" + (f" @ {recipe.model.revision}" if recipe.model.revision else ""),
        "precision": environment["precision"],
        "adapter": f"{lora.variant}, r={lora.r}, alpha={lora.lora_alpha:g}, dropout={lora.lora_dropout:g}",
        "adapted layers": f"{len(adapter['modules'])} ({', '.join(lora.target_modules)})",
        "trainable": f"{adapter['trainable']:,} of {adapter['total']:,} parameters ({adapter['share']:.2%})",
    }
    rate = speed["reviews_per_second"]
    training = {
        "objective": " + ".join([train.loss, *(f"{name} (auxiliary)" for name in recipe.auxiliary)]),
        "steps": f"{speed['steps']} at {train.learning_rate:g} ({train.lr_scheduler_type})",
        "seed": str(train.seed),
        "speed": f"{rate:.1f} reviews/s" if rate else "not measured",
        "peak memory": f"{speed['peak_memory_bytes'] / 2**30:.2f} GiB" if speed["peak_memory_bytes"] else "–",
        "prompt": f"at most {recipe.prompt.max_tokens} tokens, cut by {recipe.prompt.truncation}",
    }
    return {"Data": data, "Model": model, "Training": training}


def _notes(metrics: dict[str, Any], record: dict[str, Any]) -> list[str]:
    notes = []
    never = [label for label, row in metrics["per_class"].items() if not row["precision"] and row["support"]]
    if never:
        notes.append(f"No review was rightly called {', '.join(never)}.")
    if metrics.get("not_sliced_by"):
        notes.append(f"The table has no column {', '.join(metrics['not_sliced_by'])} to slice by.")
    if record["repeated_training_rows"]:
        count = record["repeated_training_rows"]
        notes.append(f"{count} rows of the training table repeat another row; repeats were kept on one side.")
    return notes
