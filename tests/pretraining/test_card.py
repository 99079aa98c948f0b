"""The model card says what the logs say."""

import json
from pathlib import Path
from typing import Any

from pretraining.card import curve_rows, evaluation_text, write_card


def test_curve_rows_average_stretches_of_the_log() -> None:
    lines = [{"step": 20 * n, "loss": float(n), "pooled_cosine": 0.1 * n} for n in range(1, 5)]
    lines.insert(2, {"step": 40, "probe_imdb_accuracy": 0.7})
    assert curve_rows("distillation", lines, "loss", points=2) == [
        "| distillation | to 40 | 1.500 | 0.150 |  |",
        "| distillation | to 80 | 3.500 | 0.350 |  |",
    ]


def summary() -> dict[str, Any]:
    figures = {"accuracy": 0.8, "macro_f1": 0.6, "kappa": 0.5}
    everyone = ("tuned", "zero_shot", "tfidf", "majority")
    return {
        "rows": 3107,
        "folds": {"tuned": [{"macro_f1": 0.6}] * 5, "zero_shot": [{"macro_f1": 0.5}] * 4 + [{"macro_f1": 0.7}]},
        "mean_of_folds": dict.fromkeys(everyone, figures),
        "sd_of_folds": dict.fromkeys(everyone, dict.fromkeys(figures, 0.01)),
        "tuned_minus": {"tfidf": dict.fromkeys(figures, (0.03, -0.01, 0.07))},
    }


def test_evaluation_names_rows_folds_and_intervals() -> None:
    text = evaluation_text(summary(), " --folds 5", "Found by luck.")
    assert "in 4 of 5 folds.\n\nFound by luck." in text
    assert "DrugLib train, 3,107 out-of-fold reviews in 5 of the five folds" in text
    assert "`python -m pretraining.evaluate --folds 5`" in text
    assert "| this base, LoRA | 0.800 (0.010) | 0.600 (0.010) | 0.500 (0.010) |" in text
    difference = "+0.030 (-0.010 to +0.070)"
    assert f"| this base, LoRA | {difference} | {difference} | {difference} |" in text
    assert "alone" not in text


def test_an_ensemble_stands_beside_each_of_its_members() -> None:
    found = summary()
    for part in ("mean_of_folds", "sd_of_folds"):
        found[part] = {**found[part], **dict.fromkeys(("seed-0", "seed-1"), found[part]["tuned"])}
    own = dict.fromkeys(("accuracy", "macro_f1", "kappa"), (0.01, -0.02, 0.04))
    text = evaluation_text(found | {"alone_minus_tfidf": {"seed-0": own, "seed-1": own}}, "")
    assert "| this base, LoRA, 2 seeds averaged | 0.800 (0.010)" in text
    assert "| seed 1 alone | 0.800 (0.010) |" in text
    assert "| seed 1 alone | +0.010 (-0.020 to +0.040) |" in text


def test_card_is_written_from_the_logs(tmp_path: Path) -> None:
    probe = {f"zero_shot_{s}_{f}": 0.5 for s in ("imdb", "drugscom") for f in ("accuracy", "macro_f1", "kappa")}
    distilled = [{"step": n, "loss": 1.5, "pooled_cosine": 0.7} for n in (20, 40)]
    instructed = [{"step": 20, "answer_loss": 1.25, "answer_accuracy": 0.5, "seconds": 10.0, "tokens_per_second": 3e5}]
    for name, lines in (("distill", distilled), ("instruct", [*instructed, {"step": 20, **probe}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.json").write_text('{"step": 20}')
    (tmp_path / "model.safetensors").write_bytes(bytes(2_000_000))
    (tmp_path / "evaluation.json").write_text(json.dumps(summary()))
    write_card(tmp_path, tmp_path, tmp_path / "evaluation.json")
    card = (tmp_path / "README.md").read_text()
    assert "(1.0 million parameters, 2 MB in bfloat16)" in card
    assert "| distillation | to 20 | 1.500 | 0.700 |  |" in card
    assert "to 40" not in card
    assert "20 steps (3.0 million tokens)" in card
    assert "| instructions | to 20 | 1.250 |  | answers right 0.500 |" in card
    assert "| Drugs.com | 0.500 | 0.500 | 0.500 |" in card
    assert "No row of the DrugLib data was read" in card
    assert "{" not in card
