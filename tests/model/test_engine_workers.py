"""Batches side by side give what they give one after the other, and leave no trace in the process."""

import threading

import pytest
import torch

from rxtone.model.base import load_base
from rxtone.model.engine import Engine
from rxtone.model.engine.core import _token_batches, flatten
from rxtone.model.engine.workers import side_by_side, workers_for


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_scores_are_those_of_one_thread_in_the_reviews_own_order(tiny_base, two_threads):
    engine = Engine.plan(load_base(str(tiny_base), precision="fp32").model)
    prompts = [[3 + (7 * row + place) % 20 for place in range(3 + row % 9)] + [1] for row in range(23)]
    with torch.inference_mode():
        together = engine.label_scores(*flatten(prompts), [(5,), (6,), (7,)], with_eos=False)
        torch.set_num_threads(1)
        alone = engine.label_scores(*flatten(prompts), [(5,), (6,), (7,)], with_eos=False)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_each_task_has_its_share_of_the_threads_and_the_callers_mode(two_threads):
    def task():
        return torch.get_num_threads(), torch.is_inference_mode_enabled(), threading.current_thread().name

    with torch.inference_mode():
        found = side_by_side([task] * 4, 2)
    assert {one[:2] for one in found} == {(1, True)}
    assert {one[2] for one in found} == {"rxtone-score"}
    assert torch.get_num_threads() == 2
    fresh: list[int] = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [2]  # a thread that begins later has what it would have had


def test_results_come_in_order_and_the_first_error_is_raised(two_threads):
    assert side_by_side([lambda i=i: i * i for i in range(9)], 2) == [i * i for i in range(9)]
    done = []

    def fail():
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        side_by_side([fail, *[lambda: done.append(1)] * 50], 2)
    assert len(done) < 50  # what had not begun stays undone
    assert torch.get_num_threads() == 2


def test_one_review_one_thread_or_a_gpu_need_no_crew(two_threads):
    assert workers_for(torch.device("cpu"), 5) == 2
    assert workers_for(torch.device("cpu"), 1) == 1
    assert workers_for(torch.device("cuda"), 5) == 1
    torch.set_num_threads(1)
    assert workers_for(torch.device("cpu"), 5) == 1
    assert side_by_side([threading.current_thread], 1) == [threading.current_thread()]


def test_batches_have_about_equal_tokens_and_every_worker_has_its_share():
    lengths = [17 + (37 * i) % 240 for i in range(32)]
    order = sorted(range(32), key=lambda i: lengths[i])
    batches = _token_batches(order, lengths, 2, 2048)
    assert [review for batch in batches for review in batch] == order
    tokens = [sum(lengths[i] for i in batch) for batch in batches]
    assert len(batches) % 2 == 0
    assert max(tokens) - min(tokens) < 256  # a review is not cut
    assert max(tokens) < 2048 + 256
    assert _token_batches([0], [5000], 2, 2048) == [[0]]
    assert _token_batches([1, 0], [9, 3], 2, 2048) == [[1], [0]]
