"""YAML that users write or that ships with the package: recipes and search spaces, read the same way."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rxtone.errors import RecipeError
from rxtone.paths import given_path


def shipped_names(folder: str) -> list[str]:
    """Names of the YAML files in a folder of the package, sorted, without their ending.

    Args:
        folder: `recipes` or `spaces`.

    Returns:
        The names.
    """
    entries = (resources.files("rxtone") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def read_yaml(kind: str, given: str | Path, holds: str) -> dict[str, Any]:
    """Read one mapping.

    Args:
        kind: `recipe` or `space`, for the messages; its plural is the folder of the shipped ones.
        given: A shipped name or the path of a YAML file.
        holds: What stands at its top, for the message where something else does.

    Returns:
        Plain values, unchecked.

    Raises:
        RecipeError: If it cannot be found or is no mapping in UTF-8.
    """
    path, shipped = given_path(given, RecipeError), shipped_names(f"{kind}s")
    if str(given) in shipped:
        text = (resources.files("rxtone") / f"{kind}s" / f"{given}.yaml").read_text("utf-8")
    elif path.is_file():
        try:
            text = path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            msg = f"{kind} {given}: expected UTF-8, got byte {error.object[error.start]:#04x} at {error.start}"
            raise RecipeError(msg) from None
    else:
        close = difflib.get_close_matches(str(given), shipped, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        msg = (
            f"{kind} {given}: expected a shipped {kind} ({', '.join(shipped)}) or a YAML file; there is neither.{hint}"
        )
        raise RecipeError(msg)
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        detail = " ".join(str(error).split())
        msg = f"{kind} {given}: not valid YAML: {detail}"
        raise RecipeError(msg) from None
    except RecursionError:
        msg = f"{kind} {given}: not valid YAML: nested too deeply"
        raise RecipeError(msg) from None
    if not isinstance(values, dict):
        msg = f"{kind} {given}: expected {holds}, got {type(values).__name__}"
        raise RecipeError(msg)
    return values
