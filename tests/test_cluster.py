"""Trials as Ray tasks on a real cluster of two node processes, one of which is killed in mid-study."""

import polars as pl
import pytest
import torch
from tiny import tiny_values

from rxtone.config import check_recipe
from rxtone.errors import RecipeError
from rxtone.model.base import load_base
from rxtone.space import Space
from rxtone.sweep import sweep
from rxtone.sweep_events import FoldDone, SweepDone, TrialEnded, TrialStarted, TrialStep

ray = pytest.importorskip("ray", reason="needs ray: install rxtone[cluster]")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{name}")
    for name in ("ResourceWarning", "DeprecationWarning", "FutureWarning", "pytest.PytestUnraisableExceptionWarning")
]


def test_a_packed_base_is_the_base_and_shares_its_memory(tiny_base):
    from rxtone.model.packed import pack_base, unpack_base

    for precision in ("fp32", "bf16"):
        base = load_base(str(tiny_base), precision=precision)
        packed = pack_base(base)
        for array in packed.weights.arrays.values():
            array.flags.writeable = False  # as in the object store
        found = unpack_base(packed)
        state = found.model.state_dict()
        assert list(state) == list(base.model.state_dict())
        assert all(torch.equal(state[name], tensor) for name, tensor in base.model.state_dict().items())
        assert {str(tensor.dtype) for tensor in state.values()} == {str(next(base.model.parameters()).dtype)}
        weight = packed.weights.arrays["encoder.block.0.layer.0.SelfAttention.q.weight"]
        own = found.model.encoder.block[0].layer[0].SelfAttention.q.weight
        assert weight.ctypes.data == own.data_ptr()
        ids = torch.arange(3, 13)[None]
        with torch.inference_mode():
            logits = [m(input_ids=ids, decoder_input_ids=ids[:, :2]).logits for m in (base.model, found.model)]
        assert torch.equal(*logits)
        assert found.tokenizer.encode("great pill").ids == base.tokenizer.encode("great pill").ids


def test_a_study_survives_the_loss_of_a_node(tiny_base, tiny_table, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's workers are nicer than the tests beside them: 15
    from ray.cluster_utils import Cluster

    from rxtone.cluster import ray_runner

    values = tiny_values(tiny_base, tiny_table)
    values["train"] |= {"num_train_epochs": 2}
    values["lora"] |= {"target_modules": ["q", "v"]}
    recipe = check_recipe(values, "tiny")
    space = Space.model_validate({
        "recipe": "tiny", "sampler": "grid", "pruner": "none", "confirm": {"top": 1, "folds": 2, "seeds": 1},
        "parameters": {"lora.r": [1, 2, 3, 4]},
    })  # fmt: skip
    memory = 80 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory,
                                                            "include_dashboard": False})  # fmt: skip
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    try:
        events, lost = [], False
        with ray_runner(address=cluster.address) as runner:
            for event in sweep(space, recipe, tmp_path / "study", runner=runner):
                events.append(event)
                if isinstance(event, TrialStep) and event.number == 1 and event.step.step == 3 and not lost:
                    cluster.remove_node(nodes[0], allow_graceful=False)
                    lost = True
    finally:
        cluster.shutdown()
    assert lost
    assert len([event for event in events if isinstance(event, TrialStarted)]) == 4
    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert sorted(event.number for event in ended) == [0, 1, 2, 3]
    assert {event.state for event in ended} == {"complete"}
    assert max(event.facts["attempts"] for event in ended) == 2  # the trial of the lost node
    assert len([event for event in events if isinstance(event, FoldDone)]) == 2
    assert isinstance(events[-1], SweepDone)

    list(sweep(space.model_copy(update={"confirm": None}), recipe, tmp_path / "local"))
    columns = ["lora.r", "macro_f1", "epochs", "state"]
    tables = [pl.read_parquet(tmp_path / name / "trials.parquet").select(columns).sort("lora.r")
              for name in ("study", "local")]  # fmt: skip
    assert tables[0].equals(tables[1])


def test_a_cluster_that_is_not_there_is_told():
    from rxtone.cluster import ray_runner

    with (
        pytest.raises(RecipeError, match=r"--address nonsense: the cluster cannot be reached"),
        ray_runner(address="nonsense"),
    ):
        pass
