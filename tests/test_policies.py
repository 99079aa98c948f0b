"""Bounds and label sets chosen after training, from the scores kept beside the adapter, and judged on new rows."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from tiny import write_tiny_table

import rxtone
from rxtone.errors import ModelError
from rxtone.stats.abstention import precision_threshold


@pytest.fixture(scope="module")
def classifier(tiny_run) -> rxtone.Classifier:
    return rxtone.load(tiny_run)


@pytest.fixture(scope="module")
def new_table(tmp_path_factory):
    return write_tiny_table(tmp_path_factory.mktemp("new") / "new.csv", n=60, seed=44)


def test_the_kept_scores_are_those_of_the_validation_rows(classifier, tiny_run, tiny_table):
    rows = json.loads((tiny_run / "data.json").read_text())["splits"]["validation"]["row_numbers"]
    reviews = {review.row: review for review in rxtone.read_reviews(classifier, tiny_table)}
    kept = classifier.validation
    assert kept is not None
    scores = classifier.score([reviews[row] for row in rows])
    assert np.abs(scores.log_probs - kept.log_probs).max() < 1e-4
    assert [classifier.labels[i] for i in kept.classes] == [reviews[row].label for row in rows]
    assert "great" not in (tiny_run / "adapter" / "validation.json").read_text()


def test_a_target_precision_is_reached_on_the_validation_rows(classifier):
    tuned, found = classifier.with_target_precision(0.9)
    assert found is not None
    known = classifier.validation
    answers = tuned.policy.decide(known.log_probs)
    right = answers.predicted[~answers.abstained] == known.classes[~answers.abstained]
    assert right.mean() == pytest.approx(found.precision)
    assert found.precision >= 0.9
    assert (~answers.abstained).mean() == pytest.approx(found.coverage)
    expected = precision_threshold(answers.confidence, answers.predicted == known.classes, 0.9) or precision_threshold(
        answers.confidence, answers.predicted == known.classes, 0.9, certify=False
    )
    assert found == expected


def test_label_sets_are_named_and_grow_with_the_coverage(classifier):
    reviews = ["the pill was great", "none", "awful"]
    assert all(prediction.label_set is None for prediction in classifier.predict(reviews))
    sizes = []
    for level in (0.5, 0.99):
        predictions = classifier.with_coverage(level).predict(reviews)
        assert all(prediction.label in prediction.label_set for prediction in predictions)
        sizes.append(sum(len(prediction.label_set) for prediction in predictions))
    assert sizes[0] <= sizes[1]
    assert classifier.with_coverage(1.0).predict(["none"])[0].label_set == classifier.labels


def test_without_the_scores_there_is_one_clear_error(tiny_run, tmp_path):
    bare = shutil.copytree(tiny_run / "adapter", tmp_path / "bare")
    (bare / "validation.json").unlink()
    loaded = rxtone.load(bare)
    for ask in (lambda: loaded.with_target_precision(0.9), lambda: loaded.with_coverage(0.9)):
        with pytest.raises(ModelError, match=r"no validation\.json beside this adapter.*--min-confidence"):
            ask()
    (bare / "validation.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"validation\.json: cannot be used"):
        rxtone.load(bare)


def test_predict_marks_and_names(call, tiny_run, new_table, tmp_path):
    code, out, err = call("predict", tiny_run, "--text", "great relief", "--coverage", "1", "--json")
    assert (code, json.loads(out)[0]["label_set"], err) == (0, ["positive", "neutral", "negative"], "")
    assert "label_set" not in json.loads(call("predict", tiny_run, "--text", "great", "--json")[1])[0]
    _, out, err = call("predict", tiny_run, "--text", "none", "--target-precision", "0.95", "--coverage", "0.9")
    assert "of the validation rows are answered" in err
    assert "\tamong " in out
    output = tmp_path / "out.parquet"
    code, _, _ = call("predict", tiny_run, new_table, "-o", output, "--coverage", "0.9", "--target-precision", "0.9")
    frame = pl.read_parquet(output)
    assert code == 0
    assert frame.columns[-1] == "label_set"
    assert all(label in names.split("|") for label, names in frame.select("label", "label_set").iter_rows())


def test_a_job_with_sets_is_another_job_than_one_without(call, tiny_run, new_table, tmp_path):
    call("predict", tiny_run, new_table, "-o", tmp_path / "a.csv")
    call("predict", tiny_run, new_table, "-o", tmp_path / "b.csv", "--coverage", "0.9")
    columns = [pl.read_csv(tmp_path / name).columns for name in ("a.csv", "b.csv")]
    assert columns[1] == [*columns[0], "label_set"]


def test_evaluate_counts_and_judges_what_is_withheld(call, tiny_run, new_table):
    arguments = ("evaluate", tiny_run, new_table, "--target-precision", "0.99", "--coverage", "0.8")
    code, out, err = call(*arguments, "--json")
    metrics = json.loads(out)
    held = metrics["abstention"]
    assert code == 0
    assert held["n_answered"] + held["n_abstained"] == 60
    assert held["precision"] is None or held["precision_ci"][0] <= held["precision"] <= held["precision_ci"][1]
    assert metrics["conformal"]["level"] == 0.8
    assert "validation rows" in err
    _, out, _ = call(*arguments)
    assert f"{held['n_abstained']} withheld" in out
    assert "label sets that promise 80%: hold the true label" in out


def test_a_target_out_of_reach_withholds_everything(classifier):
    from dataclasses import replace

    wrong = replace(classifier.validation, classes=(classifier.validation.classes + 1) % 3)
    tuned, found = replace(classifier, validation=wrong).with_target_precision(1.0)
    assert found is None
    assert all(prediction.abstained for prediction in tuned.predict(["great", "awful"]))


def test_two_bounds_are_one_too_many(call, tiny_run):
    code, _, err = call("predict", tiny_run, "--text", "x", "--min-confidence", "0.5", "--target-precision", "0.9")
    assert code == 2
    assert "give either --min-confidence or --target-precision" in err


def test_an_export_carries_the_scores(call, tiny_run, tiny_table, tmp_path):
    call("export", tiny_run, "--format", "merged", "-o", tmp_path / "merged", "--canaries", tiny_table)
    before, after = (rxtone.load(path).with_target_precision(0.9)[1] for path in (tiny_run, tmp_path / "merged"))
    assert before == after
