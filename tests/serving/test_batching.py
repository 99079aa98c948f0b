import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from rxtone.classifier import Prediction
from rxtone.data.reviews import Review
from rxtone.serving.batching import Batcher, Job
from rxtone.serving.limits import Limits, RequestError


class Recorder:
    """A predictor that answers with the text, notes its batches, and waits for a gate."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.entered = threading.Event()

    def predict(self, reviews: Sequence[Review]) -> list[Prediction]:
        self.batches.append([str(review.text) for review in reviews])
        self.entered.set()
        assert self.gate.wait(10)
        if any(review.text == "poison" for review in reviews):
            raise FloatingPointError
        return [Prediction(str(review.text), {}, False) for review in reviews]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    batcher = Batcher(Limits(queue_texts=10, batch_tokens=40, batch_texts=4))
    yield batcher
    batcher.close(10)


def submit(batcher: Batcher, model: Recorder, texts: str, tokens: int = 10) -> Job:
    words = texts.split()
    return batcher.submit(model, [Review((), text=word) for word in words], [tokens] * len(words))


def labels(job: Job) -> str:
    return " ".join(prediction.label for prediction in job.future.result(10))


def occupy(batcher: Batcher, recorder: Recorder) -> Job:
    """Keep the thread busy, so that what comes now forms batches."""
    job = submit(batcher, recorder, "first")
    assert recorder.entered.wait(10)
    return job


def test_what_waits_becomes_one_batch_and_jobs_take_turns(batcher: Batcher, recorder: Recorder) -> None:
    jobs = [occupy(batcher, recorder), submit(batcher, recorder, "a1 a2 a3 a4 a5"), submit(batcher, recorder, "b1 b2")]
    recorder.gate.set()
    assert [labels(job) for job in jobs] == ["first", "a1 a2 a3 a4 a5", "b1 b2"]
    assert recorder.batches == [["first"], ["a1", "b1", "a2", "b2"], ["a3", "a4", "a5"]]


def test_a_late_small_job_goes_before_the_rest_of_a_large_one(batcher: Batcher, recorder: Recorder) -> None:
    big, small = submit(batcher, recorder, "a1 a2 a3 a4 a5 a6"), None
    assert recorder.entered.wait(10)
    small = submit(batcher, recorder, "b1")
    recorder.gate.set()
    assert (labels(big), labels(small)) == ("a1 a2 a3 a4 a5 a6", "b1")
    assert sorted(recorder.batches[1]) == ["a5", "a6", "b1"]


def test_the_token_budget_counts_padding(batcher: Batcher, recorder: Recorder) -> None:
    jobs = [occupy(batcher, recorder), submit(batcher, recorder, "a", 5), submit(batcher, recorder, "b", 21),
            submit(batcher, recorder, "c", 500)]  # fmt: skip
    recorder.gate.set()
    assert [labels(job) for job in jobs] == ["first", "a", "b", "c"]
    # 2 x 21 padded tokens are more than 40; c alone is more too, and goes alone.
    assert recorder.batches == [["first"], ["a"], ["b"], ["c"]]


def test_models_are_never_mixed(batcher: Batcher, recorder: Recorder) -> None:
    other = Recorder()
    other.gate.set()
    jobs = [
        occupy(batcher, recorder),
        submit(batcher, recorder, "a"),
        submit(batcher, other, "x"),
        submit(batcher, recorder, "b"),
    ]
    recorder.gate.set()
    assert [labels(job) for job in jobs] == ["first", "a", "x", "b"]
    assert (recorder.batches, other.batches) == ([["first"], ["a", "b"]], [["x"]])


def test_work_of_gone_clients_is_not_computed(batcher: Batcher, recorder: Recorder) -> None:
    first = occupy(batcher, recorder)
    gone, stays = submit(batcher, recorder, "gone1 gone2"), submit(batcher, recorder, "stays")
    assert batcher.waiting() == 3
    assert gone.future.cancel()
    assert batcher.waiting() == 1
    recorder.gate.set()
    assert (labels(first), labels(stays)) == ("first", "stays")
    assert recorder.batches == [["first"], ["stays"]]


def test_one_bad_review_takes_no_others_with_it(batcher: Batcher, recorder: Recorder) -> None:
    jobs = [
        occupy(batcher, recorder),
        submit(batcher, recorder, "good"),
        submit(batcher, recorder, "poison"),
        submit(batcher, recorder, "fine"),
    ]
    recorder.gate.set()
    assert [labels(jobs[i]) for i in (0, 1, 3)] == ["first", "good", "fine"]
    with pytest.raises(FloatingPointError):
        jobs[2].future.result(10)
    assert labels(submit(batcher, recorder, "after")) == "after"


def test_a_full_queue_refuses_with_the_time_to_wait(batcher: Batcher, recorder: Recorder) -> None:
    jobs = [occupy(batcher, recorder), submit(batcher, recorder, "a b c d e f g h")]
    batcher.check_room()
    jobs.append(submit(batcher, recorder, "x y z"))  # eight wait, fewer than ten
    for refused in (batcher.check_room, lambda: submit(batcher, recorder, "last")):
        with pytest.raises(RequestError) as caught:
            refused()
        assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "busy", 1)
    recorder.gate.set()
    assert [labels(job) for job in jobs[1:]] == ["a b c d e f g h", "x y z"]


def test_a_request_larger_than_the_queue_is_served_when_nothing_waits(batcher: Batcher, recorder: Recorder) -> None:
    recorder.gate.set()
    assert labels(submit(batcher, recorder, " ".join("abcdefghijklmn"))) == "a b c d e f g h i j k l m n"


def test_the_expected_wait_is_learnt_from_past_batches() -> None:
    recorder = Recorder()
    batcher = Batcher(Limits(queue_seconds=0.5, batch_texts=1))
    job = occupy(batcher, recorder)
    time.sleep(0.2)  # 10 tokens take 0.2 s
    recorder.gate.set()
    labels(job)
    recorder.gate.clear()
    recorder.entered.clear()
    jobs = [submit(batcher, recorder, "a")]
    assert recorder.entered.wait(10)
    jobs.append(submit(batcher, recorder, "b", 100))
    with pytest.raises(RequestError) as caught:
        submit(batcher, recorder, "c")
    assert caught.value.status == 429
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 2  # 100 tokens at 0.02 s
    recorder.gate.set()
    batcher.close(10)


def test_closing_finishes_what_was_admitted_and_takes_no_more(batcher: Batcher, recorder: Recorder) -> None:
    jobs = [occupy(batcher, recorder), submit(batcher, recorder, "a b c d e")]
    closer = threading.Thread(target=batcher.close)
    closer.start()
    while batcher.alive():
        time.sleep(0.001)
    with pytest.raises(RequestError) as caught:
        submit(batcher, recorder, "late")
    assert (caught.value.status, caught.value.code) == (503, "closing")
    recorder.gate.set()
    closer.join(10)
    assert [labels(job) for job in jobs] == ["first", "a b c d e"]


def test_every_batch_is_observed() -> None:
    seen: list[tuple[int, int]] = []
    recorder = Recorder()
    recorder.gate.set()
    batcher = Batcher(Limits(), lambda reviews, tokens, seconds: seen.append((reviews, tokens)))
    labels(submit(batcher, recorder, "a b c"))
    batcher.close(10)
    assert seen == [(3, 30)]
