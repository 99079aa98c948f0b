import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from rxtone.model.batches import ReviewDataset, collate, epoch_batches, scoring_batches

DATASET = ReviewDataset([[5, 6, 1], [7, 1], [8, 9, 10, 1]], [[3, 1], [4, 5, 1], [3, 1]])


def test_prompts_are_padded_and_labels_get_minus_100():
    batch = DATASET.batch([0, 1], pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 1], [7, 1, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[3, 1, -100], [4, 5, 1]]
    assert batch.rows.tolist() == [0, 1]


def test_a_pad_id_inside_a_review_is_not_masked():
    batch = ReviewDataset([[5, 0, 1], [6, 1]]).batch([0, 1], pad_token_id=0)
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels is None


def test_the_dataset_works_with_a_data_loader():
    loader = DataLoader(DATASET, batch_size=2, collate_fn=lambda items: collate(items, 0))
    assert [batch.rows.tolist() for batch in loader] == [[0, 1], [2]]


def test_no_budget_gives_fixed_batches_in_a_seeded_order():
    batches = epoch_batches(np.ones(10), batch_size=4, tokens_per_batch=None, seed=3, epoch=0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    again = epoch_batches(np.ones(10), batch_size=4, tokens_per_batch=None, seed=3, epoch=0)
    other = epoch_batches(np.ones(10), batch_size=4, tokens_per_batch=None, seed=3, epoch=1)
    assert np.concatenate(batches).tolist() == np.concatenate(again).tolist()
    assert np.concatenate(batches).tolist() != np.concatenate(other).tolist()


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=200),
    st.integers(1, 16),
    st.integers(1, 2000),
    st.integers(0, 2**32 - 1),
    st.integers(0, 9),
)
def test_every_review_comes_once_and_the_budget_holds(lengths, size, budget, seed, epoch):
    lengths = np.array(lengths)
    for batches in (
        epoch_batches(lengths, batch_size=size, tokens_per_batch=budget, seed=seed, epoch=epoch),
        scoring_batches(lengths, batch_size=size, tokens_per_batch=budget),
    ):
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        assert all(len(b) == 1 or lengths[b].max() * len(b) <= budget for b in batches)
    assert max(len(b) for b in scoring_batches(lengths, batch_size=size)) <= size


def test_scoring_starts_with_the_longest():
    batches = scoring_batches(np.array([3, 9, 1, 7]), batch_size=2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [0, 2]]


def test_similar_lengths_share_a_batch():
    lengths = np.array([10, 200] * 50)
    batches = epoch_batches(lengths, batch_size=8, tokens_per_batch=800, seed=0, epoch=0)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded <= 1.1 * lengths.sum()
    assert torch.tensor([len(batch) for batch in batches]).max() <= 32
