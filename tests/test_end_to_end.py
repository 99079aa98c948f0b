"""The main job on the real DrugLib reviews, through the command line, in processes of its own."""

import json
import subprocess
import sys

import polars as pl
import pytest
from tiny import DRUGLIB, REFERENCE_BASE, needs_shared

pytestmark = needs_shared


def rxtone(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "rxtone", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A short run of the recommended recipe: 110 steps of 16 reviews, enough to see learning."""
    out = tmp_path_factory.mktemp("druglib") / "first"
    done = rxtone(
        "train", "druglib", "--set", f"model.base={REFERENCE_BASE}", "--set", f"data.train={DRUGLIB}",
        "--set", "data.test=null", "--set", "train.max_steps=110", "--set", "prompt.max_tokens=160",
        "--set", "prompt.text_share=0", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done


def test_it_learns_from_real_reviews(first):
    out, done = first
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    assert metrics["split"] == "test"
    assert metrics["macro_f1"] > metrics["baselines"]["majority"]["macro_f1"] + 0.08
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    assert "TF-IDF per field" in done.stdout


def test_the_record_of_the_data_is_the_known_one(first):
    record = json.loads((first[0] / "data.json").read_text())
    table = record["tables"]["train"]
    assert (table["rows"], table["sha256"][:8]) == (3107, "b55635b0")
    totals = {
        label: sum(part["labels"][label] for part in record["splits"].values())
        for label in ("positive", "neutral", "negative")
    }
    assert totals == {"positive": 2130, "neutral": 316, "negative": 661}
    assert record["repeated_training_rows"] >= 31


def test_a_fresh_process_predicts_every_row_in_order(first, tmp_path):
    lines = DRUGLIB.read_bytes().split(b"\r\n")
    table = tmp_path / "part.tsv"
    table.write_bytes(b"\r\n".join(lines[:60]) + b"\r\n")
    done = rxtone("predict", first[0], table, "-o", tmp_path / "out.parquet")
    assert done.returncode == 0, done.stderr
    frame = pl.read_parquet(tmp_path / "out.parquet")
    expected = pl.read_csv(table, separator="\t", infer_schema=False)["urlDrugName"].to_list()
    assert frame["urlDrugName"].to_list() == expected
    sums = frame.select(pl.sum_horizontal("p_positive", "p_neutral", "p_negative")).to_series()
    assert (sums - 1).abs().max() < 1e-9
    assert set(frame["label"]) <= {"positive", "neutral", "negative"}
