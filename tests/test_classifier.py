import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny import tiny_values, write_tiny_base
from transformers import T5ForConditionalGeneration

import rxtone
from rxtone.cli_options import print_metrics
from rxtone.config import check_recipe
from rxtone.data.reviews import Review
from rxtone.errors import DataError, ModelError
from rxtone.loading import cast, load, zero_shot
from rxtone.model.base import load_base
from rxtone.spec import adapter_folder, in_order, read_spec

GOOD = {"benefits": "great relief for me", "effects": "none"}
BAD = {"Benefits": "useless pill", "Side Effects": "awful pain and worse sleep"}


@pytest.fixture(scope="module")
def classifier(tiny_run):
    return load(tiny_run)


@pytest.fixture
def copied(tiny_run, tmp_path):
    return shutil.copytree(tiny_run / "adapter", tmp_path / "adapter")


def test_it_tells_good_from_bad_by_column_or_prompt_name(classifier):
    good, bad = classifier.predict([GOOD, BAD])
    assert (good.label, bad.label) == ("positive", "negative")
    assert list(good.probabilities) == ["positive", "neutral", "negative"]
    assert sum(good.probabilities.values()) == pytest.approx(1, abs=1e-12)
    assert good.probabilities["positive"] == max(good.probabilities.values())
    assert (good.truncated, good.abstained) == (False, False)


def test_the_public_names_lead_here(tiny_run):
    assert rxtone.load is load
    assert rxtone.load(rxtone.RunFolder(tiny_run)).labels == ("positive", "neutral", "negative")


def test_free_text_has_its_own_prompt(classifier):
    (prediction,) = classifier.predict(["great relief wonderful"])
    assert prediction.label == "positive"
    assert classifier.as_review("x") == Review(text="x")


def test_a_long_review_is_marked_as_cut(classifier):
    (prediction,) = classifier.predict([{"benefits": "great " * 100}])
    assert prediction.truncated


def test_order_and_batch_size_do_not_matter(classifier):
    reviews = [GOOD, BAD, {"benefits": "some relief then pain"}, {"effects": "the pill was average"}] * 3
    one = classifier.predict(reviews, batch_size=1)
    many = classifier.predict(reviews, batch_size=12)
    for first, second in zip(one, many, strict=True):
        assert first.probabilities == pytest.approx(second.probabilities, abs=1e-5)


def test_no_reviews_give_no_predictions(classifier):
    assert classifier.predict([]) == []


@pytest.mark.parametrize("review", [{"benefit": "great"}, {}])
def test_an_unknown_field_is_refused(classifier, review):
    with pytest.raises(DataError, match="expected a review with fields among Benefits, Side Effects, got"):
        classifier.predict([review])


def test_merged_equals_wrapped_and_plain_peft(tiny_run, tiny_base, classifier):
    review = [classifier.as_review(GOOD)]
    wrapped = load(tiny_run, merged=False).score(review).log_probs
    np.testing.assert_allclose(classifier.score(review).log_probs, wrapped, atol=1e-5)
    plain = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(tiny_base), tiny_run / "adapter")
    ids = torch.tensor([classifier.prompts.build(review[0]).ids])
    logits = plain.eval()(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
    scores = logits[[tokens[0] for tokens in classifier.label_tokens.ids]].log_softmax(-1)
    np.testing.assert_allclose(wrapped[0], scores.detach().numpy(), atol=1e-5)


def test_generation_is_there_for_comparison(classifier):
    assert classifier.generate([classifier.as_review(GOOD), classifier.as_review(BAD)]) == ["positive", "negative"]


def test_zero_shot_is_the_bare_base(tiny_base, tiny_table, classifier):
    bare = zero_shot(check_recipe(tiny_values(tiny_base, tiny_table), "tiny"))
    assert not np.allclose(
        bare.score([bare.as_review(GOOD)]).log_probs, classifier.score([bare.as_review(GOOD)]).log_probs
    )


def test_classifier_json_holds_all_that_a_bare_adapter_lacks(copied):
    spec = json.loads((copied / "classifier.json").read_text())
    assert spec["labels"] == ["positive", "neutral", "negative"]
    assert spec["label_rule"] == {"positive": ">=7", "neutral": "5..6", "negative": "<=4"}
    assert spec["text_fields"] == {"Benefits": "benefits", "Side Effects": "effects"}
    assert spec["prompt"]["template"] == "Classify the sentiment of this review as {labels}:\n{fields}"
    assert set(spec["base"]) == {"name", "revision", "config_sha256", "weights_sha256"}
    assert spec["versions"]["torch"] == torch.__version__


def test_a_bare_adapter_folder_is_enough(copied, classifier):
    assert load(copied).predict([GOOD])[0].probabilities == classifier.predict([GOOD])[0].probabilities


def test_a_plain_peft_folder_needs_a_recipe(copied, tiny_base, tiny_table, classifier):
    (copied / "classifier.json").unlink()
    with pytest.raises(ModelError, match=r"a plain PEFT folder, without classifier\.json; say how .* --recipe"):
        load(copied)
    recipe = check_recipe(tiny_values(tiny_base, tiny_table), "tiny")
    assert load(copied, recipe=recipe).predict([GOOD])[0].label == "positive"


def test_a_wrong_base_is_refused_before_its_weights_load(copied, tmp_path, monkeypatch):
    monkeypatch.setattr("rxtone.loading.load_base", lambda *_, **__: pytest.fail("weights were loaded"))
    other = write_tiny_base(tmp_path / "other", seed=5)
    with pytest.raises(ModelError, match="pass the original base with --base"):
        load(copied, base=str(other))


def test_a_moved_base_is_named_with_base(copied, tiny_base, tmp_path):
    spec = json.loads((copied / "classifier.json").read_text())
    spec["base"]["name"] = str(tmp_path / "gone" / "away" / "base")
    (copied / "classifier.json").write_text(json.dumps(spec))
    with pytest.raises(ModelError, match="there is none at this path"):
        load(copied)
    assert load(copied, base=str(tiny_base)).predict([GOOD])[0].label == "positive"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": ["a", "b"]}, "its labels, label_rule and base do not fit together"),
        ({"base": {}}, "its labels, label_rule and base do not fit together"),
        ({"format": 99}, "format 99, this rxtone reads 1; upgrade rxtone"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"prompt": {"template": "no"}}, "must contain"),
    ],
)
def test_a_wrong_classifier_json_is_refused(copied, change, reason):
    spec = json.loads((copied / "classifier.json").read_text())
    (copied / "classifier.json").write_text(json.dumps(spec | change))
    with pytest.raises(ModelError, match=reason):
        read_spec(copied)


def test_a_classifier_json_that_is_no_json_is_refused(copied):
    (copied / "classifier.json").write_text("{")
    with pytest.raises(ModelError, match=r"classifier\.json: the file: Invalid JSON"):
        read_spec(copied)


def test_nothing_there_says_what_was_expected(tmp_path):
    with pytest.raises(ModelError, match="expected a run folder, an adapter folder"):
        adapter_folder(tmp_path)
    (tmp_path / "config.yaml").write_text("x")
    with pytest.raises(ModelError, match="this run has no adapter yet; finish it with"):
        adapter_folder(tmp_path)


def test_fp16_keeps_wo_in_fp32(tiny_base):
    model = cast(load_base(str(tiny_base), precision="fp32").model, "fp16")
    kinds = {name.rpartition(".")[0].rpartition(".")[2]: p.dtype for name, p in model.named_parameters()}
    assert kinds["wo"] == torch.float32
    assert kinds["q"] == torch.float16


@pytest.mark.parametrize(
    ("rule", "ordered", "expected"),
    [
        ({"good": ">=3", "bad": "<=2"}, None, True),
        ({"refund": "refund", "delivery": ["delivery", "shipping"]}, None, False),
        ({"high": "Highly Effective", "low": "Ineffective"}, True, True),
        ({"a": "1", "b": "2"}, False, False),
    ],
)
def test_labels_stand_in_order_where_numbers_are_compared_or_the_recipe_says_so(rule, ordered, expected):
    assert in_order(rule, ordered=ordered) is expected


def test_a_quadratic_kappa_is_for_labels_in_order(copied, capsys):
    reviews = [Review(text=text, label=label) for text, label in (("great", "positive"), ("awful", "negative"))] * 3
    written = json.loads((copied / "classifier.json").read_text())
    for ordered, there in ((None, True), (False, False)):
        (copied / "classifier.json").write_text(json.dumps(written | {"ordered": ordered}))
        metrics = rxtone.evaluate(load(copied), reviews).metrics
        assert (metrics["quadratic_kappa"] is not None) == there
        print_metrics(metrics)
        assert ("quadratic_kappa" in capsys.readouterr().out) == there
    del written["ordered"]  # as older folders have it
    (copied / "classifier.json").write_text(json.dumps(written))
    assert load(copied).ordered
