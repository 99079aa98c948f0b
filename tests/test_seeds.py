"""Several seeds: one split, runs that differ, their spread, and an ensemble that is the mean of its members."""

import json
import shutil

import numpy as np
import pytest
from tiny import tiny_values

import rxtone
from rxtone import seeds
from rxtone.config import check_recipe
from rxtone.errors import ModelError, RecipeError, RunError
from rxtone.stats.significance import seed_gain_over


@pytest.fixture(scope="module")
def parent(tiny_base, tiny_table, tmp_path_factory):
    values = tiny_values(tiny_base, tiny_table)
    values["train"] |= {"num_train_epochs": 2, "seed": 7}
    out = tmp_path_factory.mktemp("seeds") / "three"
    events = list(seeds.train_seeds(check_recipe(values, "tiny"), out, 3))
    assert [event.seed for event in events if isinstance(event, seeds.SeedStarted)] == [7, 8, 9]
    assert isinstance(events[-1], seeds.SeedsDone)
    return out


def test_all_seeds_share_the_split_and_differ_in_weights(parent):
    records = [json.loads((parent / f"seed-{seed}" / "data.json").read_text()) for seed in (7, 8, 9)]
    assert records[0]["splits"] == records[1]["splits"] == records[2]["splits"]
    weights = {(parent / f"seed-{seed}" / "adapter" / "adapter_model.safetensors").read_bytes() for seed in (7, 8, 9)}
    assert len(weights) == 3


def test_seeds_json_holds_mean_sd_and_gains(parent):
    summary = json.loads((parent / "seeds.json").read_text())
    values = [
        json.loads((parent / f"seed-{seed}" / "evaluation" / "metrics.json").read_text())["macro_f1"]
        for seed in (7, 8, 9)
    ]
    row = summary["metrics"]["macro_f1"]
    assert row["values"] == values
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["sd"] == pytest.approx(np.std(values, ddof=1))
    gain = summary["gains"]["majority"]["macro_f1"]
    assert gain["gain"] == pytest.approx(np.mean(values) - json.loads(
        (parent / "evaluation" / "metrics.json").read_text())["baselines"]["majority"]["macro_f1"])  # fmt: skip
    assert gain["exceeds_noise"] == (gain["interval"][0] > 0 or gain["interval"][1] < 0)
    assert set(summary["gains"]) == {"majority", "tfidf_fields", "tfidf_text", "zero_shot"}
    page = (parent / "seeds.html").read_text()
    assert "Over seeds" in page
    assert "seed noise" in page
    assert "<script" not in page


def test_the_ensemble_is_the_mean_of_its_members_on_one_base(parent, tiny_table):
    ensemble = rxtone.load(parent)
    reviews = rxtone.read_reviews(ensemble, tiny_table)[:20]
    members = [rxtone.load(parent / f"seed-{seed}").score(reviews).log_probs for seed in (7, 8, 9)]
    assert np.abs(np.exp(ensemble.score(reviews).log_probs) - np.exp(members).mean(0)).max() < 1e-5
    assert np.abs(np.exp(members[0]) - np.exp(members[1])).max() > 1e-3
    base = sum(p.numel() for p in rxtone.load(parent / "seed-7").model.parameters())
    assert sum(p.numel() for name, p in ensemble.model.named_parameters() if "lora_" not in name) == base


def test_its_policy_is_fitted_on_the_mean_of_the_validation_rows(parent):
    kept = [np.array(json.loads((parent / f"seed-{s}" / "adapter" / "validation.json").read_text())["log_probs"])
            for s in (7, 8, 9)]  # fmt: skip
    own = rxtone.load(parent).validation
    assert np.abs(np.exp(own.log_probs) - np.exp(kept).mean(0)).max() < 1e-5


def test_the_parent_is_a_run_for_evaluate_predict_and_drift(call, parent, tiny_table):
    code, out, _ = call("evaluate", parent, tiny_table, "--json")
    metrics = json.loads(out)
    assert (code, metrics["training_rows"]) == (0, 204)
    assert "macro_f1" in metrics["baselines"]["majority"]
    assert call("predict", parent, "--text", "great", "--coverage", "0.9")[0] == 0
    assert call("drift", parent, tiny_table)[0] == 0
    assert call("explain", parent, "--field", "Benefits=awful")[0] == 0
    code, _, err = call("export", parent, "-o", parent / "x")
    assert (code, "name one of its seeds" in err) == (2, True)


def test_the_command_line_prints_the_spread(call, parent, tiny_base, tiny_table, tmp_path):
    import yaml

    values = tiny_values(tiny_base, tiny_table)
    values["train"] |= {"num_train_epochs": 2, "seed": 7}
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(values))
    code, out, _ = call("train", recipe, "--seeds", "3", "--out", parent, "--resume")  # all is finished: only judged
    assert code == 0
    assert "3 seeds, 36 reviews (test)" in out
    assert "macro-F1 over 3 seeds:" in out
    assert "seed noise" in out


def test_a_missing_or_foreign_member_is_refused(parent, tmp_path):
    copy = shutil.copytree(parent, tmp_path / "copy")
    shutil.rmtree(copy / "seed-9")
    with pytest.raises(ModelError, match="seed-9/adapter is missing; keep the seeds together"):
        rxtone.load(copy)
    copy = shutil.copytree(parent, tmp_path / "other")
    spec = copy / "seed-8" / "adapter" / "classifier.json"
    spec.write_text(spec.read_text().replace('"max_tokens": 48', '"max_tokens": 40'))
    with pytest.raises(ModelError, match="not those of the ensemble"):
        rxtone.load(copy)
    listed = copy / "ensemble" / "ensemble.json"
    listed.write_text(listed.read_text().replace("../seed-8", str(parent / "seed-8")))
    with pytest.raises(ModelError, match="its members lie outside of"):
        rxtone.load(copy)


def test_seeds_need_a_number_an_evaluation_and_room(tiny_recipe, parent, tmp_path):
    with pytest.raises(RecipeError, match="expected 2 or more"):
        next(seeds.train_seeds(tiny_recipe, tmp_path, 1))
    with pytest.raises(RunError, match="expected an empty or new folder for the seeds"):
        next(seeds.train_seeds(tiny_recipe, parent, 2))


def test_a_gain_over_a_fixed_figure_is_a_one_sample_t_test():
    """Values 1..5 against 2: mean 3, sd 1.5811, t 1.4142 on 4 degrees of freedom, p 0.2302 (t table)."""
    found = seed_gain_over([1.0, 2.0, 3.0, 4.0, 5.0], 2.0)
    assert found.gain == 1.0
    assert found.p_value == pytest.approx(0.23020, abs=1e-5)
    assert found.interval == pytest.approx(
        (1 - 2.776445 * 1.581139 / 5**0.5, 1 + 2.776445 * 1.581139 / 5**0.5), abs=1e-4
    )
    assert not found.exceeds_noise
    assert seed_gain_over([1.0], 0.5).interval is None
    assert seed_gain_over([1.0, 1.0], 0.5).exceeds_noise
