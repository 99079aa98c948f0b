"""The model card of the bundled base, written from the logs and figures of its run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TEMPLATE = Path(__file__).with_name("card.md")

_EVALUATION = """\
DrugLib train, {rows:,} out-of-fold reviews in {folds} of the five folds of a cross-validation; repeated
reviews kept together, checkpoints chosen inside folds
(`python -m pretraining.evaluate{options}`). Mean over folds (standard deviation):

| | accuracy | macro-F1 | kappa |
|---|---|---|---|
{table}

Paired difference from the linear baseline over all out-of-fold rows, with the 95% bootstrap interval:

| | accuracy | macro-F1 | kappa |
|---|---|---|---|
{ahead}

Ahead of the base without adapter in macro-F1 in {wins} of {folds} folds.

{note}
"""

_FIGURES = ("accuracy", "macro_f1", "kappa")
_NAMES = {
    "tuned": "this base, LoRA",
    "tuned_argmax": "the same adapter, most probable label",
    "zero_shot": "this base, zero-shot",
    "tfidf": "TF-IDF per field, balanced logistic regression",
    "majority": "majority label",
}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def curve_rows(stage: str, lines: Sequence[Mapping[str, Any]], loss: str, points: int = 5) -> list[str]:
    """Table rows of a training log: the mean of each of `points` stretches of equal length.

    Args:
        stage: Name of the stage.
        lines: The log.
        loss: Key of the loss.
        points: Number of rows.

    Returns:
        Markdown rows.
    """
    own = [line for line in lines if loss in line]
    size = -(-len(own) // points)
    rows = []
    for start in range(0, len(own), size):
        part = own[start : start + size]
        mean = {
            key: sum(line.get(key, 0.0) for line in part) / len(part)
            for key in (loss, "pooled_cosine", "answer_accuracy")
        }
        cosine = f"{mean['pooled_cosine']:.3f}" if "pooled_cosine" in part[0] else ""
        answers = f"answers right {mean['answer_accuracy']:.3f}" if "answer_accuracy" in part[0] else ""
        rows.append(f"| {stage} | to {part[-1]['step']:,} | {mean[loss]:.3f} | {cosine} | {answers} |")
    return rows


def evaluation_text(summary: Mapping[str, Any], options: str, note: str = "") -> str:
    """The section on DrugLib train from what `pretraining.evaluate` wrote, and a note on how its recipe was found."""
    alone = summary.get("alone_minus_tfidf", {})
    names = dict(_NAMES)
    if alone:
        names["tuned"] += f", {len(alone)} seeds averaged"
        names["tuned_argmax"] = names["tuned_argmax"].replace("adapter", "adapters")
        names |= {name: f"{name.replace('-', ' ')} alone" for name in alone}
    table = []
    for key, name in names.items():
        if key not in summary["mean_of_folds"]:
            continue
        mean, deviation = summary["mean_of_folds"][key], summary["sd_of_folds"][key]
        cells = " | ".join(f"{mean[f]:.3f} ({deviation[f]:.3f})" for f in _FIGURES)
        table.append(f"| {name} | {cells} |")
    ahead = [
        f"| {names[key]} | "
        + " | ".join(f"{found[f][0]:+.3f} ({found[f][1]:+.3f} to {found[f][2]:+.3f})" for f in _FIGURES)
        + " |"
        for key, found in {"tuned": summary["tuned_minus"]["tfidf"], **alone}.items()
    ]
    by_fold = summary["folds"]
    wins = sum(
        tuned["macro_f1"] > bare["macro_f1"] for tuned, bare in zip(by_fold["tuned"], by_fold["zero_shot"], strict=True)
    )
    return _EVALUATION.format(
        rows=summary["rows"], folds=len(by_fold["tuned"]), options=options, table="\n".join(table),
        ahead="\n".join(ahead), wins=wins, note=note,
    )  # fmt: skip


def write_card(run: Path, folder: Path, evaluation: Path | None, options: str = "", note: str = "") -> None:
    """Writes `README.md` into the model folder.

    Args:
        run: Working folder of the build, with its logs.
        folder: The exported model.
        evaluation: `evaluation.json` of `pretraining.evaluate`, or None before there is one.
        options: Options that the evaluation ran with, for its command in the card.
        note: How the recipe of the evaluation was found.
    """
    distilled, instructed = _lines(run / "distill.jsonl"), _lines(run / "instruct.jsonl")
    done = json.loads((run / "state" / "state.json").read_text(encoding="utf-8"))["step"]
    distilled = [line for line in distilled if line["step"] <= done]
    probe = [line for line in instructed if "zero_shot_imdb_accuracy" in line][-1]
    size = (folder / "model.safetensors").stat().st_size
    instruct_tokens = sum(line.get("seconds", 0.0) * line.get("tokens_per_second", 0.0) for line in instructed)
    speeds = [line["tokens_per_second"] for line in (*distilled, *instructed) if "tokens_per_second" in line]
    speed = sum(speeds) / len(speeds)
    probes = [
        f"| {title} | " + " | ".join(f"{probe[f'zero_shot_{key}_{f}']:.3f}" for f in _FIGURES) + " |"
        for key, title in (("imdb", "IMDB (two labels occur)"), ("drugscom", "Drugs.com"))
    ]
    text = _TEMPLATE.read_text(encoding="utf-8").format(
        parameters=size / 2e6,
        megabytes=size / 1e6,
        distill_steps=done,
        distill_tokens=done * 1800 / 1e6,
        instruct_steps=max(line["step"] for line in instructed),
        instruct_tokens=instruct_tokens / 1e6,
        minutes=(done * 1800 + instruct_tokens) / speed / 60,
        speed=round(speed, -1),
        curve="\n".join(
            [*curve_rows("distillation", distilled, "loss"), *curve_rows("instructions", instructed, "answer_loss")]
        ),
        probe_step=probe["step"],
        probes="\n".join(probes),
        evaluation=""
        if evaluation is None
        else evaluation_text(json.loads(evaluation.read_text("utf-8")), options, note),
    )
    (folder / "README.md").write_text(text.rstrip() + "\n", encoding="utf-8")
