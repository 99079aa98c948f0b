import math

import numpy as np
import pytest
import torch
from tiny import write_tiny_base

from rxtone.errors import RecipeError
from rxtone.model.base import load_base
from rxtone.model.batches import ReviewDataset
from rxtone.model.scoring import LabelTokens
from rxtone.training.objective import Objective, class_weight_vector, label_losses, loss_sum

TOKENS = LabelTokens(((10,), (11,), (12, 13)), with_eos=True, eos=1)
DATASET = ReviewDataset([[5, 6, 7, 1], [8, 9, 1], [10, 1]], [[10, 1], [11, 1], [12, 13, 1]])
CLASSES = torch.tensor([0, 1, 2])
ONES = torch.ones(3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_base(str(write_tiny_base(tmp_path_factory.mktemp("b"))), precision="fp32").model


def test_token_ce_is_the_loss_of_transformers(model):
    batch = DATASET.batch([0, 1, 2], 0)
    total, weight = loss_sum(model, batch, CLASSES, TOKENS, objective=Objective("token_ce"), class_weights=ONES)
    expected = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    torch.testing.assert_close(total / weight, expected)
    assert weight == 7.0  # 2 + 2 + 3 label tokens, </s> included


@pytest.mark.parametrize("loss", ["token_ce", "label_ce", "focal", "ordinal", "cumulative"])
def test_a_batch_is_the_sum_of_its_parts(model, loss):
    whole = loss_sum(model, DATASET.batch([0, 1, 2], 0), CLASSES, TOKENS, objective=Objective(loss), class_weights=ONES)
    parts = [
        loss_sum(model, DATASET.batch(rows, 0), CLASSES[rows], TOKENS, objective=Objective(loss), class_weights=ONES)
        for rows in ([0, 1], [2])
    ]
    torch.testing.assert_close(whole[0], parts[0][0] + parts[1][0])
    assert whole[1] == parts[0][1] + parts[1][1]


def test_class_weights_multiply_their_reviews(model):
    batch, weights = DATASET.batch([0], 0), torch.tensor([3.0, 1.0, 1.0])
    plain = loss_sum(model, batch, CLASSES[:1], TOKENS, objective=Objective("label_ce"), class_weights=ONES)
    heavy = loss_sum(model, batch, CLASSES[:1], TOKENS, objective=Objective("label_ce"), class_weights=weights)
    torch.testing.assert_close(heavy[0], 3 * plain[0])
    assert heavy[1] == 3.0


def test_an_unknown_loss_is_refused(model):
    with pytest.raises(RecipeError, match="expected token_ce, label_ce, focal, ordinal or cumulative, got 'mse'"):
        loss_sum(model, DATASET.batch([0], 0), CLASSES[:1], TOKENS, objective=Objective("mse"), class_weights=ONES)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    classes = np.array([0] * 6 + [1] * 3 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=classes)
    np.testing.assert_allclose(class_weight_vector("balanced", classes, ["a", "b", "c"]), expected, rtol=1e-6)


def test_a_class_without_reviews_weighs_nothing():
    assert class_weight_vector("balanced", np.array([0, 0, 2]), ["a", "b", "c"]).tolist() == [0.5, 0.0, 1.0]


def test_given_weights_stand_in_the_order_of_the_labels():
    labels = ["a", "b"]
    assert class_weight_vector({"b": 2.0, "a": 1.0}, np.array([0]), labels).tolist() == [1.0, 2.0]
    assert class_weight_vector(None, np.array([0]), labels).tolist() == [1.0, 1.0]


# Probabilities 0.5, 0.3, 0.2 over three labels in order; each value below is worked out by hand.
SCORES = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("objective", "label", "expected"),
    [
        (Objective("label_ce"), 1, -math.log(0.3)),
        (
            Objective("label_ce", label_smoothing=0.3),
            1,
            -0.7 * math.log(0.3) - 0.1 * (math.log(0.5) + math.log(0.3) + math.log(0.2)),
        ),
        (Objective("focal"), 0, -(0.5**2) * math.log(0.5)),
        (Objective("focal", focal_gamma=0.0), 2, -math.log(0.2)),
        (Objective("ordinal"), 0, -math.log(0.7) - 2 * math.log(0.8)),
        (Objective("ordinal"), 1, -math.log(0.5) - math.log(0.8)),
        (Objective("ordinal", ordinal_power=2.0), 2, -4 * math.log(0.5) - math.log(0.7)),
        (Objective("cumulative"), 0, -math.log(0.5) - math.log(0.8)),
        (Objective("cumulative"), 1, -math.log(0.5) - math.log(0.8)),
        (Objective("cumulative"), 2, -math.log(0.5) - math.log(0.2)),
    ],
)
def test_losses_over_labels(objective, label, expected):
    found = label_losses(SCORES, torch.tensor([label]), objective)
    assert found.tolist() == pytest.approx([expected])
    shifted = label_losses(SCORES + 5.0, torch.tensor([label]), objective)
    assert shifted.tolist() == pytest.approx([expected])  # scores count up to a constant


@pytest.mark.parametrize("loss", ["label_ce", "focal", "ordinal", "cumulative"])
def test_losses_stay_finite_where_the_model_is_sure_and_wrong(loss):
    scores = torch.tensor([[80.0, 0.0, -80.0]], requires_grad=True)
    (found,) = label_losses(scores, torch.tensor([2]), Objective(loss))
    found.backward()
    assert math.isfinite(found.item())
    assert found.item() > 50
    assert torch.isfinite(scores.grad).all()


def test_label_ce_matches_a_distribution():
    targets = torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64)
    found = label_losses(SCORES, torch.tensor([0]), Objective("label_ce"), targets)
    assert found.tolist() == pytest.approx([-0.6 * math.log(0.5) - 0.4 * math.log(0.3)])
    sure = torch.eye(3, dtype=torch.float64)[[1]]
    plain = label_losses(SCORES, torch.tensor([1]), Objective("label_ce"))
    assert torch.equal(label_losses(SCORES, torch.tensor([1]), Objective("label_ce"), sure), plain)
