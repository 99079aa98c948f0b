"""An adapter or an export to the Hugging Face hub; a dry run shows what would go, and sends nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from rxtone import config as settings
from rxtone.errors import ModelError, RecipeError, RxtoneError
from rxtone.model.runtimes import EXPORT
from rxtone.run import CARD
from rxtone.spec import adapter_folder, read_spec

# The hub's rule: letters, digits, - _ . within; no -- or .. and none of these at an end.
_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
HUB_ID = re.compile(rf"(?:{_NAME}/)?{_NAME}")
SHOWN_REASON = 200


@dataclass(frozen=True)
class PushPlan:
    """What a push uploads.

    Attributes:
        repository: `org/name`.
        files: Name in the repository and path here, in order.
        bytes: Size of all files.
        card: The model card with its figures; None where the run was not evaluated.
        warnings: What the receivers will miss, in words.
    """

    repository: str
    files: tuple[tuple[str, Path], ...]
    bytes: int
    card: str | None
    warnings: tuple[str, ...]


def plan_push(run: str | Path, repository: str) -> PushPlan:
    """Find out what a push would upload, without any network.

    Args:
        run: A run folder, an adapter folder, an exported folder or a bundled name. Of a run only its adapter
            goes: nothing that holds reviews, and no checkpoint.
        repository: `org/name` on the hub.

    Returns:
        The plan.

    Raises:
        RecipeError: If the name is none that the hub accepts.
        ModelError: If there is nothing to push.
    """
    if REPOSITORY.fullmatch(repository) is None:
        msg = f"{repository}: expected org/name, of letters, digits, '-', '_' and '.'"
        raise RecipeError(msg)
    folder = Path(run) if (Path(run) / EXPORT).is_file() else adapter_folder(run)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    card = folder / CARD
    return PushPlan(
        repository,
        tuple((path.relative_to(folder).as_posix(), path) for path in paths),
        sum(path.stat().st_size for path in paths),
        card.read_text("utf-8") if card.is_file() else None,
        _warnings(folder),
    )


def push(
    plan: PushPlan,
    *,
    private: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a plan in one commit; the repository is made where it is missing.

    Args:
        plan: From `plan_push`.
        private: Whether a new repository is private; an existing one stays as it is.
        revision: An existing branch; None takes the main one.
        endpoint: Address of the hub; None takes the public one, or what its own settings say.
        token: Access token; None takes that of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        RxtoneError: If the hub refuses or does not answer.
    """
    if settings.offline():
        msg = f"push {plan.repository}: HF_HUB_OFFLINE is set; unset it to upload"
        raise RxtoneError(msg)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=endpoint, token=token, library_name="rxtone")
    try:
        api.create_repo(plan.repository, private=private, exist_ok=True)
        commit = api.create_commit(
            plan.repository,
            [CommitOperationAdd(name, str(path)) for name, path in plan.files],
            commit_message="Upload a classifier with rxtone",
            revision=revision,
        )
    except Exception as error:  # the library's own, its HTTP client's, and OSError
        raise RxtoneError(_push_message(plan.repository, error)) from None
    return str(commit.commit_url)


def _push_message(repository: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = " ".join(str(error).split())[:SHOWN_REASON] or type(error).__name__
    if status in {401, 403}:
        return f"push {repository}: the hub refused ({status}); log in with `hf auth login` as a member who may write"
    return f"push {repository}: the upload failed ({reason}); nothing was committed; check the connection and try again"


def _warnings(folder: Path) -> tuple[str, ...]:
    found = []
    if not (folder / CARD).is_file():
        found.append(f"there is no {CARD} with figures; evaluate the run first")
    if (folder / EXPORT).is_file():
        return tuple(found)
    try:
        base = str(json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        msg = f"{folder}: adapter_config.json names no base; copy the adapter folder again"
        raise ModelError(msg) from None
    if HUB_ID.fullmatch(base) is None or Path(base).exists() or base == "bundled":
        found.append(
            f"the base {base!r} is not on the hub, so others cannot load this adapter without it; push an export "
            "(`rxtone export --format merged`) instead"
        )
    try:
        read_spec(folder)
    except ModelError as error:
        found.append(str(error))
    return tuple(found)
