"""The whole story: table -> reviews -> splits -> prompts -> adapter -> run folder -> evaluation.

Start reading here. Each stage is one call into the room that owns it; `train` yields what happened
and nobody is called back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rxtone.artefacts import environment_record, write_evaluation
from rxtone.config import Recipe, aspect_recipe, dump_recipe, load_recipe
from rxtone.data.rules import parse_rule
from rxtone.data.soft_labels import soft_labels
from rxtone.errors import ModelError, RecipeError, RunError
from rxtone.judging import judge
from rxtone.loading import load
from rxtone.model.base import Base, default_device, load_base, token_id
from rxtone.model.batches import ReviewDataset
from rxtone.model.lora import AdapterSummary, add_adapter, peft_state, save_adapter
from rxtone.model.scoring import Scorer, label_token_ids, log_probabilities, plan_scorer, score_dataset
from rxtone.paths import given_path
from rxtone.preparation import Prepared, label_indexes, prepare, truncation_record, with_free_text
from rxtone.reload import check_reload
from rxtone.run import RunFolder, atomic_folder, create_run, truncate_log, write_json, write_text
from rxtone.run_lock import hold_run
from rxtone.spec import make_spec, prompt_builder, write_spec, write_validation
from rxtone.stats.policy import fit_policy
from rxtone.stats.validation import ValidationScores
from rxtone.stopping import Stop
from rxtone.tracking import check_trackers, open_trackers
from rxtone.training.checkpoint import newest_checkpoint, read_progress
from rxtone.training.data import Auxiliary, TrainingData
from rxtone.training.events import Event
from rxtone.training.loop import fit
from rxtone.training.processes import join_processes, leave_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import PeftModel

    from rxtone.evaluation.evaluate import Evaluation
    from rxtone.spec import ClassifierSpec
    from rxtone.training.processes import Processes

CANARIES = 16
SCORING_BATCH = 32


@dataclass(frozen=True)
class DataReady:
    """The reviews are read and split; `record` is what data.json holds."""

    record: dict[str, Any]


@dataclass(frozen=True)
class AdapterReady:
    """The adapter is on the base.

    Attributes:
        summary: What was adapted.
        precision: Precision of the base's weights.
        device: Where it computes.
        engine: `fast` or `reference`.
        engine_notice: Why the reference computes although the fast engine was asked for; None otherwise.
        resumed_step: Optimiser steps that an earlier process did.
    """

    summary: AdapterSummary
    precision: str
    device: str
    engine: str
    engine_notice: str | None
    resumed_step: int


@dataclass(frozen=True)
class Reloaded:
    """The saved adapter gave the trained probabilities in a fresh process."""

    check: dict[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """The held-out reviews are judged and the report is written."""

    evaluation: Evaluation
    report: Path


@dataclass(frozen=True)
class AspectStarted:
    """The main task is done; the adapter of an aspect begins."""

    name: str


StoryEvent = Event | AspectStarted | DataReady | AdapterReady | Reloaded | Evaluated


def train(recipe: Recipe, out: Path, *, resume: bool = False, stop: Stop | None = None) -> Iterator[StoryEvent]:
    """Run a recipe into a run folder.

    Args:
        recipe: The whole experiment.
        out: Folder of the run.
        resume: Continue what is there; a finished run is left as it is.
        stop: A wish to stop, looked at between two steps; then all is saved and the iterator ends.

    Yields:
        What happened, in order: data, adapter, steps, validations, checkpoints, reload, evaluation; then the same
        for each aspect.

    Raises:
        RxtoneError: With the branch that says what was wrong; what was saved before stays usable.
    """
    stop = stop or Stop()
    check_trackers(recipe)
    team = join_processes()
    if team.world > 1 and recipe.aspects:
        msg = f"aspects: {', '.join(recipe.aspects)} need a process of their own each; train in one process"
        raise RecipeError(msg)
    if not team.first:
        _follow(recipe, RunFolder(out), team, stop)
        return
    with hold_run(out, resume=resume) as run:
        yield from _train_run(recipe, run, team, stop, resume=resume)
        for name in recipe.aspects:
            if stop.wanted():
                return
            yield AspectStarted(name)
            aspect = run.aspect(name)
            create_run(aspect.path, resume=resume)
            yield from _train_run(aspect_recipe(recipe, name), aspect, team, stop, resume=resume)


def _train_run(recipe: Recipe, run: RunFolder, team: Processes, stop: Stop, *, resume: bool) -> Iterator[StoryEvent]:
    if resume:
        _check_same_recipe(run, recipe)
    if not run.finished():
        yield from _train_adapter(recipe, run, team, stop)
    if stop.wanted():
        return
    if recipe.evaluation.enabled and not (run.evaluation / "metrics.json").is_file():
        prepared = prepare(recipe.data, recipe.train.seed)
        classifier = load(run.adapter, base=_local_base(recipe))
        evaluation = judge(classifier, recipe, prepared)
        yield Evaluated(evaluation, write_evaluation(run, classifier, recipe, prepared, evaluation))


def _follow(recipe: Recipe, run: RunFolder, team: Processes, stop: Stop) -> None:
    """The part of every process but the first: compute a share of each step, write nothing."""
    if run.finished():
        return
    prepared = prepare(recipe.data, recipe.train.seed, recipe.auxiliary)
    base = load_base(recipe.model.base, revision=recipe.model.revision, precision=recipe.model.weights)
    data, _ = tokenise(recipe, base, prepared)
    model, _ = add_adapter(base.model, recipe.lora, recipe.train.seed)
    scorer, _ = scorer_for(model, recipe)
    checkpoint = newest_checkpoint(run.checkpoints)
    for _ in fit(scorer, data, recipe.train, run.checkpoints, resume_from=checkpoint, stop=stop, processes=team):
        pass
    leave_processes()


def _train_adapter(recipe: Recipe, run: RunFolder, team: Processes, stop: Stop) -> Iterator[StoryEvent]:
    prepared = prepare(recipe.data, recipe.train.seed, recipe.auxiliary)
    device = default_device()
    base = load_base(recipe.model.base, revision=recipe.model.revision, precision=recipe.model.weights, device=device)
    _check_aspects(recipe, base)
    spec = make_spec(recipe, base.identity.to_json(), base.precision)
    data, truncation = tokenise(recipe, base, prepared)
    model, summary = add_adapter(base.model, recipe.lora, recipe.train.seed)
    pissa_start = peft_state(model) if recipe.lora.variant == "pissa" else None
    checkpoint = newest_checkpoint(run.checkpoints)
    resumed = read_progress(checkpoint).step if checkpoint else 0
    truncate_log(run.metrics_log, resumed)
    write_text(run.config, dump_recipe(_pinned(recipe, base)))
    write_json(run.data, prepared.record | {"truncation": truncation})
    yield DataReady(prepared.record | {"truncation": truncation})
    scorer, notice = scorer_for(model, recipe)
    engine = "reference" if scorer is model else "fast"
    yield AdapterReady(summary, base.precision, str(device), engine, notice, resumed)
    trackers = open_trackers(run, recipe)
    with stop.after_the_step():
        for event in fit(
            scorer, data, recipe.train, run.checkpoints, resume_from=checkpoint, stop=stop, processes=team
        ):
            for track in trackers:
                track(event)
            yield event
    leave_processes()
    if stop.wanted():
        return
    log_probs = log_probabilities(validation_scores(scorer, data))
    fitted = fit_policy(
        log_probs, data.validation_classes, operating_point=recipe.evaluation.operating_point, seed=recipe.train.seed
    )
    known = ValidationScores(log_probs, data.validation_classes)
    _save(run, model, base, spec.model_copy(update={"policy": fitted.policy.to_dict()}), known, pissa_start)
    check = None
    if recipe.evaluation.reload_check:
        canaries = prepared.validation[:CANARIES]
        # By themselves, as the fresh process scores them: in bf16 a review's scores depend on those beside it.
        alone = replace(data, validation=data.validation.part(np.arange(len(canaries))))
        trained = log_probabilities(validation_scores(scorer, alone))
        check = check_reload(run.adapter, recipe.model.base, canaries, trained, base.precision)
        yield Reloaded(check)
    write_json(run.environment, environment_record(run, base, summary, check) | {"policy": fitted.to_dict()})


def scorer_for(model: PeftModel, recipe: Recipe) -> tuple[Scorer, str | None]:
    """What computes for a recipe, and why the fast engine does not where it was asked for."""
    if recipe.train.engine == "fast" and recipe.train.gradient_checkpointing:
        return model, "gradient_checkpointing is transformers' own"
    return plan_scorer(model, recipe.train.engine)


def validation_scores(scorer: Scorer, data: TrainingData) -> np.ndarray:
    """Label scores of the validation reviews: float64, shape (n, k)."""
    return score_dataset(
        scorer, data.validation, data.label_tokens, batch_size=SCORING_BATCH, pad_token_id=data.pad_token_id
    )


def tokenise(recipe: Recipe, base: Base, prepared: Prepared) -> tuple[TrainingData, dict[str, Any]]:
    """Reviews to tokens.

    Args:
        recipe: Its prompt group and seed are read.
        base: Whose tokens.
        prepared: The split reviews.

    Returns:
        What the loop learns from and selects by, and per split what was cut.
    """
    builder = prompt_builder(base.tokenizer, recipe.prompt, prepared.labels)
    eos, pad = token_id(base.model, "eos_token_id"), token_id(base.model, "pad_token_id")
    tokens = label_token_ids(base.tokenizer, prepared.labels, eos)
    shown = with_free_text(prepared.train, recipe.prompt.text_share, recipe.train.seed)
    parts, truncation = [], {}
    for name, reviews in (("train", shown), ("validation", prepared.validation), ("test", prepared.held_out)):
        prompts = builder.build_many(reviews)
        truncation[name] = truncation_record(prompts)
        classes = label_indexes(reviews, prepared.labels)
        targets = [tokens.targets()[index] for index in classes]
        parts.append((ReviewDataset([prompt.ids for prompt in prompts], targets), classes))
    if prepared.held_out is prepared.validation:
        del truncation["test"]
    (train_set, train_classes), (validation, validation_classes), _ = parts
    soft, noise = None, recipe.train.rating_noise
    if noise is not None:
        ratings = [prepared.ratings[review.row] for review in prepared.train]
        soft = soft_labels(parse_rule(recipe.data.label.rule), ratings, noise)
    data = TrainingData(
        train_set, train_classes, validation, validation_classes, prepared.labels, tokens, pad,
        tuple(_auxiliary(recipe, base, prepared, task, eos) for task in prepared.auxiliary), soft,
    )  # fmt: skip
    return data, truncation


def _auxiliary(recipe: Recipe, base: Base, prepared: Prepared, task: str, eos: int) -> Auxiliary:
    settings, (labels, by_row) = recipe.auxiliary[task], prepared.auxiliary[task]
    reviews = [by_row[review.row] for review in prepared.train]
    prompt = recipe.prompt.model_copy(update={"template": settings.template})
    tokens, classes = label_token_ids(base.tokenizer, labels, eos), label_indexes(reviews, labels)
    prompts = prompt_builder(base.tokenizer, prompt, labels).build_many(reviews)
    targets = [tokens.targets()[index] for index in classes]
    dataset = ReviewDataset([shown.ids for shown in prompts], targets)
    return Auxiliary(dataset, classes, tokens, settings.weight, settings.share)


def _save(
    run: RunFolder,
    model: PeftModel,
    base: Base,
    spec: ClassifierSpec,
    known: ValidationScores,
    pissa_start: dict[str, Any] | None,
) -> None:
    """Write the adapter folder whole: PEFT files, tokenizer, classifier.json, the scores of validation rows."""
    with atomic_folder(run.adapter) as folder:
        save_adapter(model, folder, base.identity.name, pissa_start)
        base.tokenizer.save(str(folder / "tokenizer.json"))
        write_spec(folder, spec)
        write_validation(folder, known)


def _check_aspects(recipe: Recipe, base: Base) -> None:
    """What is missing in a table or cannot be spelt by the base is told now, not after the main task's training."""
    for name in recipe.aspects:
        own = aspect_recipe(recipe, name)
        labels = prepare(own.data, own.train.seed).labels
        try:
            label_token_ids(base.tokenizer, labels, token_id(base.model, "eos_token_id"))
        except RecipeError as error:
            msg = f"aspects.{name}: {error}"
            raise RecipeError(msg) from None


def _pinned(recipe: Recipe, base: Base) -> Recipe:
    model = recipe.model.model_copy(update={"revision": base.identity.revision})
    return recipe.model_copy(update={"model": model})


def _local_base(recipe: Recipe) -> str | None:
    return recipe.model.base if given_path(recipe.model.base, ModelError).is_dir() else None


def _check_same_recipe(run: RunFolder, recipe: Recipe) -> None:
    if not run.config.is_file():
        return
    before = load_recipe(run.config).model_dump(mode="json")
    now = recipe.model_dump(mode="json")
    if now["model"]["revision"] is None:
        now["model"]["revision"] = before["model"]["revision"]
    changed = [
        f"{group}.{key} was {before[group][key]!r}, is {value!r}"
        for group in now
        for key, value in now[group].items()
        if before[group].get(key) != value and group not in {"evaluation", "track"}
    ]
    if changed:
        listed = "; ".join(changed)
        msg = f"{run.path}: cannot resume with another recipe ({listed}); start a new run with another --out"
        raise RunError(msg)
