import numpy as np
import pytest
import torch
from tiny import write_tiny_base

from rxtone.errors import RecipeError
from rxtone.model.base import load_base
from rxtone.model.batches import ReviewDataset
from rxtone.model.scoring import LabelTokens
from rxtone.training.objective import class_weight_vector, loss_sum

TOKENS = LabelTokens(((10,), (11,), (12, 13)), with_eos=True, eos=1)
DATASET = ReviewDataset([[5, 6, 7, 1], [8, 9, 1], [10, 1]], [[10, 1], [11, 1], [12, 13, 1]])
CLASSES = torch.tensor([0, 1, 2])
ONES = torch.ones(3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_base(str(write_tiny_base(tmp_path_factory.mktemp("b"))), precision="fp32").model


def test_token_ce_is_the_loss_of_transformers(model):
    batch = DATASET.batch([0, 1, 2], 0)
    total, weight = loss_sum(model, batch, CLASSES, TOKENS, loss="token_ce", class_weights=ONES)
    expected = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    torch.testing.assert_close(total / weight, expected)
    assert weight == 7.0  # 2 + 2 + 3 label tokens, </s> included


@pytest.mark.parametrize("loss", ["token_ce", "label_ce"])
def test_a_batch_is_the_sum_of_its_parts(model, loss):
    whole = loss_sum(model, DATASET.batch([0, 1, 2], 0), CLASSES, TOKENS, loss=loss, class_weights=ONES)
    parts = [
        loss_sum(model, DATASET.batch(rows, 0), CLASSES[rows], TOKENS, loss=loss, class_weights=ONES)
        for rows in ([0, 1], [2])
    ]
    torch.testing.assert_close(whole[0], parts[0][0] + parts[1][0])
    assert whole[1] == parts[0][1] + parts[1][1]


def test_class_weights_multiply_their_reviews(model):
    batch, weights = DATASET.batch([0], 0), torch.tensor([3.0, 1.0, 1.0])
    plain = loss_sum(model, batch, CLASSES[:1], TOKENS, loss="label_ce", class_weights=ONES)
    heavy = loss_sum(model, batch, CLASSES[:1], TOKENS, loss="label_ce", class_weights=weights)
    torch.testing.assert_close(heavy[0], 3 * plain[0])
    assert heavy[1] == 3.0


def test_an_unknown_loss_is_refused(model):
    with pytest.raises(RecipeError, match="expected token_ce or label_ce, got 'mse'"):
        loss_sum(model, DATASET.batch([0], 0), CLASSES[:1], TOKENS, loss="mse", class_weights=ONES)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    classes = np.array([0] * 6 + [1] * 3 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=classes)
    np.testing.assert_allclose(class_weight_vector("balanced", classes, ["a", "b", "c"]), expected, rtol=1e-6)


def test_given_weights_stand_in_the_order_of_the_labels():
    labels = ["a", "b"]
    assert class_weight_vector({"b": 2.0, "a": 1.0}, np.array([0]), labels).tolist() == [1.0, 2.0]
    assert class_weight_vector(None, np.array([0]), labels).tolist() == [1.0, 1.0]
