from pathlib import Path

import pytest
import torch
from serving_tools import altered_run

import rxtone
from rxtone.model.engine import Engine
from rxtone.serving.limits import RequestError
from rxtone.serving.models import ModelPool, Served, run_names, share_weights

TEXT = "the pill was great for me"


def answer(served: Served) -> list[rxtone.Prediction]:
    """To one review, from its prompt, as the queue asks for it."""
    classifier = served.classifier
    return served.predict(classifier.prompts.build_many([classifier.as_review(TEXT)]))


def test_names() -> None:
    assert run_names(["runs/a", "runs/b/adapter", "bundled"]) == ["a", "b", "bundled"]
    assert run_names(["x/a", "y/a"]) == ["x/a", "y/a"]
    assert run_names(["a", "a"]) == ["a", "a#2"]


def test_runs_answer_as_when_loaded_alone_and_share_what_is_equal(tiny_run: Path, second_run: Path) -> None:
    pool = ModelPool([str(tiny_run), str(second_run)], rxtone.load)
    for run, name in ((tiny_run, "tiny"), (second_run, "other")):
        assert answer(pool.get(name)) == rxtone.load(run).predict([TEXT])
    first, second = (pool.get(name).classifier.model for name in pool.names())
    assert isinstance(first, torch.nn.Module)
    assert isinstance(second, torch.nn.Module)
    own = dict(first.named_parameters())
    differing = {name for name, value in second.named_parameters() if value.data_ptr() != own[name].data_ptr()}
    # altered_run scales the decoder's query adapters and nothing else
    assert differing == {
        "decoder.block.0.layer.0.SelfAttention.q.weight",
        "decoder.block.0.layer.1.EncDecAttention.q.weight",
    }
    total = sum(value.numel() * 4 for value in second.parameters())
    changed = sum(own[name].numel() * 4 for name in differing)
    assert (pool.get("tiny").shared_bytes, pool.get("other").shared_bytes) == (0, total - changed)
    # and what computes uses the shared tensors, not a copy of its own
    engines = [pool.get(name).classifier.scorer for name in pool.names()]
    assert all(isinstance(engine, Engine) for engine in engines)
    assert engines[0].weights.embedding.data_ptr() == engines[1].weights.embedding.data_ptr()
    assert pool.get() is pool.get("tiny")
    with pytest.raises(RequestError, match="run: expected one of tiny, other; see /info"):
        pool.get("third")


def test_other_types_and_shapes_are_not_shared() -> None:
    one, half = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).to(torch.bfloat16)
    assert share_weights(one, [half, torch.nn.Linear(3, 3), object()]) == 0
    assert share_weights(object(), [one]) == 0


def test_a_changed_folder_is_reloaded_when_it_is_still(tiny_run: Path, tmp_path: Path) -> None:
    run = altered_run(tiny_run, tmp_path / "live", scale=1.0)
    pool = ModelPool([str(run)], rxtone.load)
    before = pool.get()
    pool.refresh()
    assert pool.get() is before
    (altered_run(tiny_run, tmp_path / "next", scale=-3.0) / "adapter").rename(run / "gone")
    (run / "adapter").rename(run / "old")
    pool.refresh()  # no folder at this moment
    assert pool.get() is before
    (run / "gone").rename(run / "adapter")
    pool.refresh()  # it changed just now; it may change still
    assert pool.get() is before
    pool.refresh()
    after = pool.get()
    assert after is not before
    assert pool.reloads == 1
    assert answer(after) == rxtone.load(run).predict([TEXT])
    assert answer(after) != answer(before)


def test_a_broken_change_leaves_the_old_one_in_service(
    tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = altered_run(tiny_run, tmp_path / "live", scale=1.0)
    pool = ModelPool([str(run)], rxtone.load)
    before = answer(pool.get())
    weights = run / "adapter" / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(b"no tensors")
    for _ in range(4):
        pool.refresh()
    assert (pool.reloads, pool.failed_reloads) == (0, 1)  # tried once, not for ever
    assert "run live changed but cannot be loaded, the old one is served on" in caplog.text
    assert answer(pool.get()) == before
    weights.write_bytes(good)
    for _ in range(2):
        pool.refresh()
    assert (pool.reloads, pool.failed_reloads) == (1, 1)


def test_the_watcher_looks_by_itself(tiny_run: Path, tmp_path: Path) -> None:
    run = altered_run(tiny_run, tmp_path / "live", scale=1.0)
    loads: list[str] = []

    def load(source: str) -> rxtone.Classifier:
        loads.append(source)
        return rxtone.load(source)

    pool = ModelPool([str(run)], load)
    pool.watch(0.02)
    (run / "adapter" / "README.md").write_text("another card")  # no part of the classifier
    path = run / "adapter" / "classifier.json"
    path.write_bytes(path.read_bytes() + b"\n")
    for _ in range(500):
        if pool.reloads:
            break
        torch.zeros(1).sum()
        pool._stop.wait(0.02)
    pool.close()
    assert (pool.reloads, loads) == (1, [str(run)] * 2)


def test_below_the_least_confidence_it_holds_back(tiny_run: Path) -> None:
    certain = ModelPool([str(tiny_run)], rxtone.load).get()
    score = max(answer(certain)[0].probabilities.values())
    for least, abstained in ((score - 1e-6, False), (score + 1e-6, True)):
        served = ModelPool([str(tiny_run)], rxtone.load, min_confidence=least).get()
        assert answer(served)[0].abstained is abstained
