import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer, write_tiny_base

from rxtone.errors import RecipeError
from rxtone.model.base import load_base
from rxtone.model.batches import ReviewDataset
from rxtone.model.scoring import (
    LabelTokens,
    label_token_ids,
    log_probabilities,
    plan_scorer,
    score_dataset,
    score_labels,
    shift_right,
    target_log_probs,
)

PROMPTS = [[5, 6, 7, 1], [8, 9, 1], [10, 1]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_base(str(write_tiny_base(tmp_path_factory.mktemp("b"))), precision="fp32").model


def test_labels_of_equal_length_are_scored_without_eos():
    tokens = label_token_ids(tiny_tokenizer(), ["positive", "negative"], eos=1)
    assert (tokens.with_eos, [len(ids) for ids in tokens.scored()]) == (False, [1, 1])
    assert [ids[-1] for ids in tokens.targets()] == [1, 1]


def test_labels_of_different_length_are_scored_with_eos():
    tokens = label_token_ids(tiny_tokenizer(), ["positive", "very positive"], eos=1)
    assert tokens.with_eos
    assert [ids[-1] for ids in tokens.scored()] == [1, 1]


def test_unknown_and_equal_labels_are_refused():
    with pytest.raises(RecipeError, match="label 'superb': this base's tokenizer has no tokens for it"):
        label_token_ids(tiny_tokenizer(), ["positive", "superb"], eos=1)
    with pytest.raises(RecipeError, match="labels 'positive' and 'positive ' are the same tokens"):
        label_token_ids(tiny_tokenizer(), ["positive", "positive "], eos=1)


def reference_scores(model, prompts, sequences):
    """One review and one label at a time, through transformers' own loss-free forward."""
    rows = []
    for prompt in prompts:
        row = []
        for sequence in sequences:
            logits = model(
                input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *sequence[:-1]]])
            ).logits[0]
            row.append(sum(logits.log_softmax(-1)[i, token].item() for i, token in enumerate(sequence)))
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize(
    "tokens",
    [
        LabelTokens(((10,), (11,), (12,)), with_eos=False, eos=1),
        LabelTokens(((10, 11), (12, 13)), with_eos=False, eos=1),
        LabelTokens(((10,), (10, 11), (12, 13, 14)), with_eos=True, eos=1),
    ],
    ids=["one token", "two tokens", "a label that begins another"],
)
def test_scores_equal_the_reference_one_by_one(model, tokens):
    batch = ReviewDataset(PROMPTS).batch([0, 1, 2], pad_token_id=0)
    with torch.no_grad():
        scores = score_labels(model, batch, tokens)
        expected = reference_scores(model, PROMPTS, tokens.scored())
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_a_dataset_is_scored_in_its_own_order_and_padding_changes_nothing(model):
    tokens = LabelTokens(((10,), (11,)), with_eos=False, eos=1)
    together = score_dataset(model, ReviewDataset(PROMPTS), tokens, batch_size=3, pad_token_id=0)
    alone = [score_dataset(model, ReviewDataset([p]), tokens, batch_size=1, pad_token_id=0)[0] for p in PROMPTS]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_scoring_leaves_the_mode_as_it_was(model):
    tokens = LabelTokens(((10,), (11,)), with_eos=False, eos=1)
    model.train()
    score_dataset(model, ReviewDataset(PROMPTS), tokens, batch_size=3, pad_token_id=0)
    assert model.training
    model.eval()


def test_log_probabilities_are_the_softmax():
    np.testing.assert_allclose(
        np.exp(log_probabilities(np.log([[1.0, 2.0, 5.0]]) - 1000)), [[0.125, 0.25, 0.625]], rtol=1e-9
    )


def test_targets_shift_right_and_padding_counts_nothing():
    targets = torch.tensor([[5, 6, 1], [7, 1, -100]])
    assert shift_right(targets, 0).tolist() == [[0, 5, 6], [0, 7, 1]]
    log_probs = target_log_probs(torch.zeros(2, 3, 8), targets)
    torch.testing.assert_close(log_probs, -torch.tensor([[8.0, 8, 8], [8, 8, 1]]).log())


@pytest.mark.parametrize(
    "tokens",
    [LabelTokens(((10,), (11,)), with_eos=False, eos=1), LabelTokens(((10,), (10, 11)), with_eos=True, eos=1)],
    ids=["one token", "two tokens"],
)
def test_both_engines_give_the_same_probabilities(model, tokens):
    fast, notice = plan_scorer(model, "fast")
    assert (notice, fast is model) == (None, False)
    assert plan_scorer(model, "reference") == (model, None)
    both = [
        log_probabilities(score_dataset(scorer, ReviewDataset(PROMPTS), tokens, batch_size=3, pad_token_id=0))
        for scorer in (fast, model)
    ]
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)
