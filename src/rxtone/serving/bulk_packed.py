"""A loaded classifier as it travels to the processes of a cluster: weights as shared arrays, the rest beside them.

What travels is what the driver loaded, merged and cast, so a node needs neither the run folder nor the base, and
cannot come to other weights than its neighbour.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import T5ForConditionalGeneration

from rxtone.classifier import Classifier
from rxtone.errors import RecipeError
from rxtone.loading import make_classifier
from rxtone.model.base import QUANTISED
from rxtone.model.engine import Engine
from rxtone.model.ensemble import Ensemble
from rxtone.model.packed import PackedWeights, empty_t5, pack_weights, unpack_weights

if TYPE_CHECKING:
    from rxtone.spec import ClassifierSpec
    from rxtone.stats.policy import Policy


@dataclass(frozen=True)
class PackedClassifier:
    """A classifier as the object store keeps it.

    Attributes:
        config: The T5 config.
        weights: Of the model, with its adapters where they are not merged.
        adapters: Of an ensemble: name -> PEFT's config, in order; empty for a merged model.
        tokenizer: The tokenizer's JSON.
        spec: What classifier.json holds.
        policy: How scores become answers.
        label_sets: Whether predictions name label sets.
        engine: `fast` or `reference`.
        int8: Whether it scores with 8-bit linear maps.
    """

    config: dict[str, Any]
    weights: PackedWeights
    adapters: dict[str, Any]
    tokenizer: str
    spec: ClassifierSpec
    policy: Policy
    label_sets: bool
    engine: str
    int8: bool


def pack_classifier(classifier: Classifier) -> PackedClassifier:
    """Pack a classifier.

    Args:
        classifier: The loaded classifier.

    Returns:
        All that `predict` needs.

    Raises:
        RecipeError: If its weights are no plain tensors: those of another runtime, or quantised ones.
    """
    model, scorer = classifier.model, classifier.scorer
    inner: Any  # a T5, or PEFT around one
    if isinstance(model, Ensemble):
        inner, adapters = model.model, {name: model.model.peft_config[name] for name in model.adapters}
        engine = model.engine
    else:
        inner, adapters = model, {}
        engine = "fast" if isinstance(scorer, Engine) else "reference"
    plain = classifier.spec.precision not in QUANTISED if adapters else isinstance(model, T5ForConditionalGeneration)
    if not plain:
        msg = (
            "--engine ray: takes a run whose adapter is merged, an ensemble or an export of the format merged; this "
            "one is quantised or for another runtime: use --engine local"
        )
        raise RecipeError(msg)
    return PackedClassifier(
        inner.config.to_dict(), pack_weights(inner), adapters, classifier.tokenizer.to_str(), classifier.spec,
        classifier.policy, classifier.label_sets, engine, isinstance(scorer, Engine) and scorer.is_int8,
    )  # fmt: skip


def unpack_classifier(packed: PackedClassifier) -> Classifier:
    """The classifier again, on this node's device.

    Args:
        packed: What `pack_classifier` gave, perhaps read from the object store.

    Returns:
        A classifier with the same answers; it has no validation scores.
    """
    t5 = empty_t5(packed.config)
    model: torch.nn.Module = t5
    if packed.adapters:
        adapted = _with_adapters(t5, packed.adapters)
        unpack_weights(packed.weights, adapted, t5)
        model = adapted
    else:
        unpack_weights(packed.weights, t5, t5)
    tokenizer = Tokenizer.from_str(packed.tokenizer)
    made = make_classifier(model, tokenizer, packed.spec, packed.engine, int8=packed.int8)
    if packed.adapters:
        ensemble = Ensemble(model, tuple(packed.adapters), made.label_tokens, packed.engine)  # type: ignore[arg-type]
        made = replace(made, model=ensemble, scorer=ensemble)
    return replace(made, policy=packed.policy, label_sets=packed.label_sets)


def _with_adapters(t5: T5ForConditionalGeneration, adapters: dict[str, Any]) -> PeftModel:
    """Adapters of a T5 without memory, to be filled with weights."""
    first, *others = adapters
    with torch.device("meta"):
        adapted = PeftModel(t5, _as_found(adapters[first]), adapter_name=first)
        for name in others:
            adapted.add_adapter(name, _as_found(adapters[name]))
    return adapted


def _as_found(config: Any) -> Any:
    """PEFT's config without its own start values: PiSSA's would ask for the base's weights."""
    config = copy.deepcopy(config)
    config.init_lora_weights = False
    return config
