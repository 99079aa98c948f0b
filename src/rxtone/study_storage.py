"""Opening a study: its Optuna storage, what a killed process left in it, and the queue."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

import yaml

from rxtone.config import dump_recipe, load_recipe
from rxtone.errors import RecipeError, RunError
from rxtone.run import write_text
from rxtone.space import grid, spelt
from rxtone.study import Study, StudyFolder

if TYPE_CHECKING:
    from pathlib import Path

    import optuna

    from rxtone.config import Recipe
    from rxtone.space import Space

LOST_SECONDS = 600.0
"""A trial on another machine that was silent for so long is taken for lost."""


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
    stored = space.model_dump(mode="json") | {"recipe": str(folder.recipe)}  # with the overrides: it can be run again
    write_text(folder.recipe, dump_recipe(recipe))
    write_text(folder.space, yaml.safe_dump(stored, sort_keys=False))  # last: where it stands, both stand
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    store = _store(folder, storage, space, recipe)
    worker = f"{socket.gethostname()}:{folder.path.resolve()}"
    study = Study(folder, space, recipe, store, trials or space.trials, worker)
    _requeue_lost(study)
    known = [
        trial.system_attrs.get("fixed_params", trial.params) for trial in store.get_trials(deepcopy=False)
    ]  # fmt: skip
    _enqueue_to_beat(study, known)
    if space.sampler == "grid":
        _enqueue_grid(study, known)
    return study


def _check_same(folder: StudyFolder, space: Space, recipe: Recipe) -> None:
    if not folder.space.is_file():
        if any(path.name != folder.recipe.name and path.name[0] != "." for path in folder.path.iterdir()):
            msg = f"{folder.path}: expected a new folder or a study, found other files; choose another --out"
            raise RunError(msg)
        return
    search = {"trials", "confirm", "recipe"}  # more trials and another confirmation are no other study
    before = {k: v for k, v in yaml.safe_load(folder.space.read_text("utf-8")).items() if k not in search}
    now = {k: v for k, v in json.loads(space.model_dump_json()).items() if k not in search}
    changed = [key for key in now if before.get(key) != now[key]]
    old, new = load_recipe(folder.recipe).model_dump(mode="json"), recipe.model_dump(mode="json")
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


def _enqueue_to_beat(study: Study, known: list[dict[str, Any]]) -> None:
    """The setting that all others are compared with comes first, so that no number of trials leaves it out."""
    confirm = study.space.confirm
    if confirm is None or confirm.against is None:
        return
    against = {key: spelt(value) for key, value in confirm.against.items()}  # as the grid and the study have it
    if any(against.items() <= settings.items() for settings in known):
        return
    first = dict(against)
    if study.space.sampler == "grid":
        points = [point for point in grid(study.space, study.recipe) if against.items() <= point.items()]
        if not points:
            wanted = ", ".join(f"{key}={value}" for key, value in against.items())
            msg = (
                f"{study.folder.path}: confirm.against: expected a point of the grid, got {wanted}; name its own values"
            )
            raise RecipeError(msg)
        first = points[0]
    study.store.enqueue_trial(first)
    known.append(first)


def _enqueue_grid(study: Study, known: list[dict[str, Any]]) -> None:
    import numpy as np

    points = grid(study.space, study.recipe)
    order = np.random.default_rng(study.space.seed).permutation(len(points))
    for index in order:
        if points[int(index)] not in known:
            study.store.enqueue_trial(points[int(index)])
