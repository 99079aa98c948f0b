"""From a folder or a name to a classifier: checks first, then the base, the adapter, the policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rxtone.classifier import Classifier
from rxtone.config import Recipe
from rxtone.errors import ModelError, RecipeError
from rxtone.model.adapter_files import read_adapter
from rxtone.model.base import (
    DTYPES,
    QUANTISED,
    check_foreign_base,
    check_identity,
    default_device,
    identify,
    load_base,
    load_tokenizer,
    native_bf16,
    resolve_precision,
    token_id,
)
from rxtone.model.ensemble import Ensemble
from rxtone.model.lora import load_adapter, load_adapters, merge
from rxtone.model.runtimes import EXPORT, open_exported, read_export
from rxtone.model.scoring import label_token_ids, plan_scorer
from rxtone.paths import given_path
from rxtone.run import ENSEMBLE
from rxtone.spec import (
    ClassifierSpec,
    adapter_folder,
    make_spec,
    prompt_builder,
    read_spec,
    read_validation,
    spec_policy,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


def load(
    path: str | Path,
    *,
    base: str | None = None,
    recipe: Recipe | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    merged: bool = True,
    engine: str = "fast",
) -> Classifier:
    """Load a tuned classifier.

    Args:
        path: A run folder, an adapter folder, an exported folder, or the name of a bundled adapter.
        base: Where the base is now, if not where it was in training; its identity is checked.
        recipe: Prompt, labels and base for a plain PEFT folder without classifier.json.
        precision: `fp32`, `bf16`, `fp16`, `auto`, or `int8`: 8-bit linear maps on a CPU, the rest in the best
            precision there; answers may differ near ties. None takes that of the training where the device
            has it.
        device: Where to compute; None chooses.
        merged: Fold the adapter into the weights, in fp32, before any cast: faster, same labels. Quantised
            weights stay as they are, with the adapter beside.
        engine: `fast`, where it covers the model, or `reference`: transformers' own forward.

    Returns:
        The classifier.

    Raises:
        ModelError: If anything is missing, damaged, or does not belong together.
        RecipeError: If an exported folder is to take another base, recipe or precision, or the precision
            cannot be had here.
    """
    if precision not in (None, *PRECISIONS):
        msg = f"precision {precision}: expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        raise RecipeError(msg)
    if (given_path(path, ModelError) / EXPORT).is_file():
        if base is not None or recipe is not None or precision is not None:
            msg = f"{path}: an exported folder is complete; leave out --base, --recipe and the precision"
            raise RecipeError(msg)
        return load_exported(Path(path), device=device, engine=engine)
    folder = adapter_folder(path)
    if (folder / ENSEMBLE).is_file():
        return load_ensemble(folder, base=base, precision=precision, device=device, engine=engine)
    read_adapter(folder)
    spec = read_spec(folder, recipe)
    place = torch.device(device) if device is not None else default_device()
    name, revision = _base_of(spec, base, folder)
    int8 = precision == "int8"
    if int8 and not merged:
        msg = "precision int8: only a merged adapter is quantised; leave out merged=False"
        raise RecipeError(msg)
    precision = resolve_precision("auto" if int8 else precision or _precision_here(spec.precision, place), place)
    if precision in QUANTISED:
        merged = False  # the adapter was tuned for the quantised weights, and they cannot take it in
    loaded = load_base(name, revision=revision, precision="fp32" if merged else precision, device=place)
    model: torch.nn.Module = load_adapter(loaded.model, folder)
    if merged:
        model = cast(merge(model), precision)  # type: ignore[arg-type]  # a PeftModel
    tokenizer = load_tokenizer(str(folder)) if (folder / "tokenizer.json").is_file() else loaded.tokenizer
    return replace(make_classifier(model, tokenizer, spec, engine, int8=int8), validation=read_validation(folder, spec))


def load_ensemble(
    folder: Path,
    *,
    base: str | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    engine: str = "fast",
) -> Classifier:
    """Load the ensemble that `rxtone train --seeds` wrote: several adapters on one base.

    Args:
        folder: A folder with ensemble.json.
        base: Where the base is now (see `load`).
        precision: Precision of the base; None takes that of the training where the device has it.
        device: Where to compute; None chooses.
        engine: The forward (see `load`).

    Returns:
        The classifier; its probabilities are the mean of its members'.

    Raises:
        ModelError: If a member is missing, damaged, or was trained for something else.
    """
    members = _members(folder)
    spec = read_spec(folder)
    for member in members:
        read_adapter(member)
        theirs = read_spec(member)
        same = (theirs.labels, theirs.prompt, theirs.text_fields, theirs.base)
        if same != (spec.labels, spec.prompt, spec.text_fields, spec.base):
            msg = f"{member}: its labels, prompt or base are not those of the ensemble {folder}; train the seeds again"
            raise ModelError(msg)
    place = torch.device(device) if device is not None else default_device()
    name, revision = _base_of(spec, base, folder)
    chosen = resolve_precision(precision or _precision_here(spec.precision, place), place)
    loaded = load_base(name, revision=revision, precision=chosen, device=place)
    adapted, names = load_adapters(loaded.model, members)
    tokens = label_token_ids(loaded.tokenizer, spec.labels, token_id(loaded.model, "eos_token_id"))
    made = make_classifier(Ensemble(adapted, names, tokens, engine), loaded.tokenizer, spec, "reference")
    return replace(made, validation=read_validation(folder, spec))


def _base_of(spec: ClassifierSpec, base: str | None, folder: Path) -> tuple[str, str | None]:
    """Name and revision of the base, which must be the one that the adapter was tuned on; no weights are read."""
    if base is None:
        check_foreign_base(str(spec.base["name"]), folder)
    name = base or str(spec.base["name"])
    revision = spec.base.get("revision") if base is None else None
    check_identity(spec.base, identify(name, revision))
    return name, revision


def _members(folder: Path) -> list[Path]:
    try:
        listed = json.loads((folder / ENSEMBLE).read_text("utf-8"))["members"]
        members = [(folder / str(member)).resolve() for member in listed]
    except (ValueError, KeyError, TypeError, OSError) as error:
        msg = f"{folder / ENSEMBLE}: cannot be used: {error}; train the seeds again"
        raise ModelError(msg) from None
    outside = [member for member in members if not member.is_relative_to(folder.resolve().parent)]
    if outside:
        msg = f"{folder / ENSEMBLE}: its members lie outside of {folder.resolve().parent}; nothing there is read"
        raise ModelError(msg)
    missing = [member for member in members if not member.is_dir()]
    if missing or not members:
        msg = (
            f"{folder / ENSEMBLE}: its member {missing[0] if missing else '(none)'} is missing; keep the seeds together"
        )
        raise ModelError(msg)
    return members


def load_exported(folder: Path, *, device: str | torch.device | None = None, engine: str = "fast") -> Classifier:
    """Load what `rxtone export` wrote.

    Args:
        folder: A folder with export.json.
        device: Where to compute a `merged` one; None chooses. The other runtimes use the CPU.
        engine: The forward of a `merged` one (see `load`).

    Returns:
        The classifier.

    Raises:
        ModelError: If the folder is damaged, or its runtime is not installed.
    """
    record, spec, tokenizer = read_export(folder), read_spec(folder), load_tokenizer(str(folder))
    place = torch.device(device) if device is not None else default_device()
    tokens = label_token_ids(tokenizer, spec.labels, record.eos)
    model = open_exported(folder, record, tokenizer, tokens, place)
    return replace(make_classifier(model, tokenizer, spec, engine), validation=read_validation(folder, spec))


def zero_shot(recipe: Recipe, *, device: str | torch.device | None = None) -> Classifier:
    """The recipe's base without any adapter, asked with the same prompt."""
    place = torch.device(device) if device is not None else default_device()
    base = load_base(recipe.model.base, revision=recipe.model.revision, precision=recipe.model.weights, device=place)
    return make_classifier(base.model, base.tokenizer, make_spec(recipe, base.identity.to_json(), base.precision))


def make_classifier(
    model: torch.nn.Module, tokenizer: Tokenizer, spec: ClassifierSpec, engine: str = "fast", *, int8: bool = False
) -> Classifier:
    """A classifier of a model at hand; the model is put into evaluation mode."""
    model.eval()
    tokens = label_token_ids(tokenizer, spec.labels, token_id(model, "eos_token_id"))
    scorer, _ = plan_scorer(model, engine, int8=int8)
    builder = prompt_builder(tokenizer, spec.prompt, spec.labels)
    return Classifier(model, scorer, tokenizer, spec, builder, tokens, spec_policy(spec))


def cast(model: torch.nn.Module, precision: str) -> torch.nn.Module:
    """Cast a merged model; under fp16 T5's `wo` stays fp32, without which it overflows."""
    model.to(DTYPES[precision])
    if precision == "fp16":
        for name, module in model.named_modules():
            if name.rpartition(".")[2] == "wo":
                module.float()
    return model


def _precision_here(trained: str, device: torch.device) -> str:
    # What the device would only emulate (fp16 on a CPU, bf16 on one without AVX512-BF16 or on a T4) costs several times
    # the time for no better answers: the device's own best takes its place.
    emulated = device.type == "cpu" if trained == "fp16" else trained == "bf16" and not native_bf16(device)
    return "auto" if emulated else trained
