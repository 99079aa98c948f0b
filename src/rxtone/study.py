"""A study on disk: its folder, its Optuna storage, and the life of its trials.

Optuna proposes settings and keeps what came of them. The rules here keep the study whole: one process owns a
study folder at a time, a trial that was running when its process died is put back into the queue with the
same settings, a finished one is never done again, and settings that were tried already are answered from memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml

from rxtone.config import Recipe, dump_recipe
from rxtone.errors import RecipeError, RunError
from rxtone.run import atomic_path, write_text
from rxtone.space import Space, applies, apply_settings, drawn_name, grid, settings_of, spelt

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna

HEARTBEAT_SECONDS = 15.0
LOST_SECONDS = 600.0
"""A trial on another machine that was silent for so long is taken for lost."""
REPEATS = 40
"""Proposals in a row that were tried before, after which the space counts as exhausted."""


@dataclass(frozen=True)
class StudyFolder:
    """Paths inside one study."""

    path: Path

    @property
    def lock(self) -> Path:
        """Held by the process that works on this folder."""
        return self.path / ".lock"

    @property
    def journal(self) -> Path:
        """The study, where no other storage is named."""
        return self.path / "study.journal"

    @property
    def space(self) -> Path:
        """The resolved space."""
        return self.path / "space.yaml"

    @property
    def recipe(self) -> Path:
        """The recipe that the space varies."""
        return self.path / "recipe.yaml"

    @property
    def trials(self) -> Path:
        """Folder of one folder per trial: config.yaml, metrics.jsonl."""
        return self.path / "trials"

    @property
    def confirmation(self) -> Path:
        """Folder of one file per confirming run."""
        return self.path / "confirmation"

    @property
    def ranking(self) -> Path:
        """What the confirmation found."""
        return self.path / "confirmation.json"

    @property
    def best(self) -> Path:
        """The winner, a recipe."""
        return self.path / "best.yaml"

    @property
    def table(self) -> Path:
        """One row per trial."""
        return self.path / "trials.parquet"

    @property
    def page(self) -> Path:
        """The self-contained page."""
        return self.path / "study.html"

    def trial(self, number: int) -> Path:
        """Folder of one trial."""
        return self.trials / f"{number:04d}"


@dataclass(frozen=True)
class Study:
    """An open study.

    Attributes:
        folder: Where its files are.
        space: What is searched.
        recipe: What is varied.
        store: The Optuna study.
        wanted: Settings to try; None tries the whole grid.
        worker: Name of this machine and folder, to know its own lost trials.
    """

    folder: StudyFolder
    space: Space
    recipe: Recipe
    store: optuna.Study
    wanted: int | None
    worker: str

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that count: no repeats, and not those that were put back into the queue."""
        return [
            trial
            for trial in self.store.get_trials(deepcopy=False)
            if not {"requeued", "repeats"} & trial.user_attrs.keys()
        ]

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that ended: complete, pruned or failed."""
        return [trial for trial in self.trials() if trial.state.is_finished()]


@dataclass(frozen=True)
class Job:
    """One setting to train.

    Attributes:
        trial: Optuna's side of it.
        settings: Recipe key -> value.
        recipe: The recipe with these settings.
    """

    trial: optuna.Trial
    settings: dict[str, Any]
    recipe: Recipe

    @property
    def number(self) -> int:
        """Number of the trial in its study."""
        return self.trial.number


@contextlib.contextmanager
def owned(folder: StudyFolder) -> Iterator[None]:
    """Hold a study folder, so that no second process on this machine works in it.

    Args:
        folder: The study's folder, which must exist.

    Yields:
        Nothing; the lock ends with the block or with the process, however it dies.

    Raises:
        RunError: If another process holds it.
    """
    with folder.lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            msg = f"{folder.path}: another process works on this study; wait for it, or choose another --out"
            raise RunError(msg) from None
        yield


def open_study(
    folder: StudyFolder, space: Space, recipe: Recipe, *, storage: str | None = None, trials: int | None = None
) -> Study:
    """Make a study, or go on with the one that is there.

    Args:
        folder: Its folder, owned by this process.
        space: What to search.
        recipe: What it varies.
        storage: An Optuna storage URL shared by several machines; None keeps a journal file in the folder.
        trials: Settings to try; None takes the space's number.

    Returns:
        The study. Trials of this folder that were running when their process died wait in the queue again.

    Raises:
        RunError: If the folder holds a study of another space or recipe.
        RecipeError: If the storage cannot be opened.
    """
    _check_same(folder, space, recipe)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    store = _store(folder, storage, space, recipe)
    worker = f"{socket.gethostname()}:{folder.path.resolve()}"
    study = Study(folder, space, recipe, store, trials or space.trials, worker)
    _requeue_lost(study)
    if space.sampler == "grid":
        _enqueue_grid(study)
    stored = space.model_dump(mode="json") | {"recipe": str(folder.recipe)}  # with the overrides: it can be run again
    write_text(folder.space, yaml.safe_dump(stored, sort_keys=False))
    write_text(folder.recipe, dump_recipe(recipe))
    return study


def next_job(study: Study) -> Job | None:
    """The next setting to train.

    Args:
        study: The study.

    Returns:
        A running trial; None when the study has what it wanted, or its space holds nothing new.
    """
    import optuna

    states = optuna.trial.TrialState
    for _ in range(REPEATS):
        trials = study.trials()
        waiting = any(trial.state == states.WAITING for trial in trials)
        taken = sum(trial.state != states.WAITING for trial in trials)
        if study.wanted is not None and taken >= study.wanted:
            return None
        if study.space.sampler == "grid" and not waiting:
            return None
        trial = study.store.ask()
        trial.set_user_attr("worker", study.worker)
        trial.set_user_attr("heartbeat", time.time())
        settings = _draw(study, trial)
        before = next(
            (t for t in study.finished() if t.number != trial.number and t.params == trial.params), None
        )  # fmt: skip
        if before is None:
            recipe = apply_settings(study.recipe, settings, f"trial {trial.number}")
            trial.set_user_attr("settings", {key: spelt(value) for key, value in settings.items()})
            return Job(trial, settings, recipe)
        trial.set_user_attr("repeats", before.number)
        if before.state == states.COMPLETE:
            study.store.tell(trial, values=before.value)
        else:
            study.store.tell(trial, state=before.state)
    return None


def report(job: Job, validation: int, macro_f1: float) -> bool:
    """Tell the study how a trial stands after a validation.

    Args:
        job: The trial.
        validation: Which validation, from 1.
        macro_f1: Its macro-F1.

    Returns:
        Whether the trial is hopeless and should be stopped.
    """
    beat(job)
    job.trial.report(macro_f1, validation)
    return bool(job.trial.should_prune())


def beat(job: Job) -> None:
    """Say that a trial lives, at most every few seconds."""
    if time.time() - job.trial.user_attrs["heartbeat"] > HEARTBEAT_SECONDS:
        job.trial.set_user_attr("heartbeat", time.time())


def finish(study: Study, job: Job, *, facts: dict[str, Any], value: float | None, reason: str | None) -> str:
    """End a trial: facts first, the state last, so that a finished trial has all its facts.

    Args:
        study: The study.
        job: The trial.
        facts: What else is known of it, for the table.
        value: Its best validation macro-F1; None where it failed or was pruned.
        reason: Why it failed; None otherwise.

    Returns:
        The state: `complete`, `pruned` or `failed`.
    """
    import optuna

    states = optuna.trial.TrialState
    for name, fact in facts.items():
        job.trial.set_user_attr(name, fact)
    if reason is not None:
        job.trial.set_user_attr("reason", reason[:1000])
        study.store.tell(job.trial, state=states.FAIL)
        return "failed"
    if value is None:
        study.store.tell(job.trial, state=states.PRUNED)
        return "pruned"
    study.store.tell(job.trial, values=value)
    return "complete"


def trial_table(study: Study) -> pl.DataFrame:
    """One row per trial that ended.

    Args:
        study: The study.

    Returns:
        `number, state, macro_f1, reason`, a column per varied recipe key (as text where its values are lists or
        mappings), `epochs` (macro-F1 after each), per-class F1, trainable parameters, seconds, peak memory,
        `together` (settings that shared the forward).
    """
    keys = list(study.space.parameters)
    rows = []
    for trial in study.finished():
        attrs = trial.user_attrs
        settings = attrs.get("settings", {})
        row: dict[str, Any] = {
            "number": trial.number,
            "state": {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed"),
            "macro_f1": trial.value if trial.state.name == "COMPLETE" else None,
            "reason": attrs.get("reason"),
            **{key: settings.get(key) for key in keys},
            "epochs": [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)],
            "trainable": attrs.get("trainable"),
            "seconds": attrs.get("seconds"),
            "reviews_per_second": attrs.get("reviews_per_second"),
            "peak_memory_bytes": attrs.get("peak_memory_bytes"),
            "steps": attrs.get("steps"),
            "together": attrs.get("together"),
        }
        row |= {f"f1_{label}": attrs.get("per_class_f1", {}).get(label) for label in study.recipe.data.label.rule}
        rows.append(row)
    columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else {"number": 0})}
    return pl.DataFrame({key: _column(key, values) for key, values in columns.items()})


def write_table(study: Study) -> pl.DataFrame:
    """Write trials.parquet, and return what it holds."""
    table = trial_table(study)
    with atomic_path(study.folder.table) as temporary:
        table.write_parquet(temporary)
    return table


def _column(name: str, values: list[Any]) -> pl.Series:
    if name == "epochs":
        return pl.Series(values, dtype=pl.List(pl.Float64))
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and not kinds <= {int, float}:
        values = [None if value is None else str(value) for value in values]  # one setting is a word, another a number
    return pl.Series(values, strict=False)


def _check_same(folder: StudyFolder, space: Space, recipe: Recipe) -> None:
    if not folder.space.is_file():
        if any(path.name != folder.lock.name for path in folder.path.iterdir()):
            msg = f"{folder.path}: expected a new folder or a study, found other files; choose another --out"
            raise RunError(msg)
        return
    search = {"trials", "confirm", "recipe"}  # more trials and another confirmation are no other study
    before = {k: v for k, v in yaml.safe_load(folder.space.read_text("utf-8")).items() if k not in search}
    now = {k: v for k, v in json.loads(space.model_dump_json()).items() if k not in search}
    changed = [key for key in now if before.get(key) != now[key]]
    old, new = yaml.safe_load(folder.recipe.read_text("utf-8")), recipe.model_dump(mode="json")
    changed += [f"{group}.{key}" for group in new for key in new[group] if old[group].get(key) != new[group][key]]
    if changed:
        msg = (
            f"{folder.path}: holds a study of another space or recipe (differs in {', '.join(changed)}); "
            "repeat its command to go on with it, or choose another --out"
        )
        raise RunError(msg)


def _store(folder: StudyFolder, url: str | None, space: Space, recipe: Recipe) -> optuna.Study:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    if url is None:
        _mend_journal(folder.journal)
        storage: Any = optuna.storages.JournalStorage(JournalFileBackend(str(folder.journal)))
    else:
        storage = url
    samplers, pruners = optuna.samplers, optuna.pruners
    epochs = max(1, int(recipe.train.num_train_epochs))
    pruner: optuna.pruners.BasePruner = {
        "none": pruners.NopPruner(),
        "median": pruners.MedianPruner(n_startup_trials=4),
        "hyperband": pruners.HyperbandPruner(min_resource=1, max_resource=epochs),
    }[space.pruner]
    try:
        store = optuna.create_study(
            storage=storage, study_name=folder.path.name, direction="maximize", load_if_exists=True, pruner=pruner
        )
    except Exception as error:  # SQLAlchemy's and drivers' own types
        reason = " ".join(str(error).split())[:300]
        msg = f"--storage {url}: cannot be opened: {reason}; expected an Optuna URL such as sqlite:///study.db"
        raise RecipeError(msg) from None
    # A resumed search must not draw the numbers again that it started with.
    seed = space.seed + len(store.get_trials(deepcopy=False))
    if space.sampler == "tpe":
        store.sampler = samplers.TPESampler(seed=seed, constant_liar=True)
    else:
        store.sampler = samplers.RandomSampler(seed=seed)
    return store


def _mend_journal(journal: Path) -> None:
    """Undo what a killed writer may leave: half a line at the end, a lock that nobody holds."""
    for leftover in journal.parent.glob(journal.name + ".lock*"):
        leftover.unlink(missing_ok=True)
    if journal.is_file():
        content = journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with journal.open("r+b") as stream:
                stream.truncate(len(whole))


def _requeue_lost(study: Study) -> None:
    import optuna

    states = optuna.trial.TrialState
    for trial in study.store.get_trials(states=(states.RUNNING,)):
        silent = time.time() - trial.user_attrs.get("heartbeat", 0.0)
        if trial.user_attrs.get("worker", study.worker) != study.worker and silent < LOST_SECONDS:
            continue  # another machine's, and alive
        handle = optuna.Trial(study.store, trial._trial_id)
        handle.set_user_attr("requeued", True)
        handle.set_user_attr("reason", "its process ended while it ran; put back into the queue")
        drawn = trial.system_attrs.get("fixed_params") or trial.params
        if drawn:
            study.store.enqueue_trial(dict(drawn), user_attrs={"again": trial.number})
        study.store.tell(trial.number, state=states.FAIL)


def _enqueue_grid(study: Study) -> None:
    import numpy as np

    points = grid(study.space, study.recipe)
    order = np.random.default_rng(study.space.seed).permutation(len(points))
    known = [
        trial.system_attrs.get("fixed_params", trial.params) for trial in study.store.get_trials(deepcopy=False)
    ]  # fmt: skip
    for index in order:
        if points[int(index)] not in known:
            study.store.enqueue_trial(points[int(index)])


def _draw(study: Study, trial: optuna.Trial) -> dict[str, Any]:
    for key, parameter in study.space.parameters.items():
        drawn = settings_of(study.space, study.recipe, trial.params)
        if not applies(parameter, drawn, study.recipe):
            continue
        name = drawn_name(key, parameter)
        if parameter.choice is not None:
            trial.suggest_categorical(name, [spelt(choice) for choice in parameter.choice])
        elif parameter.integer is not None:
            low, high = parameter.integer
            trial.suggest_int(name, low, high, step=parameter.step or 1)
        else:
            low_number, high_number = parameter.uniform or parameter.log_uniform or (0.0, 0.0)
            trial.suggest_float(name, low_number, high_number, log=parameter.log_uniform is not None)
    return settings_of(study.space, study.recipe, trial.params)


def clear_trial(folder: StudyFolder, number: int) -> Path:
    """An empty folder for a trial; what a lost attempt left in it is dropped."""
    path = folder.trial(number)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
