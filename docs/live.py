"""The parts of the reference that are written by the code itself, as Markdown.

A page holds a line `<!-- from the code: NAME -->`; `expand` puts the text of that name in its place, when the site
is built and when the tests read the page. So a command, a key or an exit code stands in one place only.
"""

from __future__ import annotations

import inspect
import json
import re
from typing import TYPE_CHECKING, Any

import typer

import rxtone
from rxtone import errors
from rxtone.cli import app
from rxtone.config import Recipe
from rxtone.spec import ClassifierSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = re.compile(r"^<!-- from the code: ([a-z-]+) -->$", re.MULTILINE)


def expand(page: str) -> str:
    """A page with every mark replaced by what the code says."""
    return MARK.sub(lambda found: PARTS[found[1]](), page)


def commands(command: Any = None, words: tuple[str, ...] = ("rxtone",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the app with the words that call it, groups left out."""
    command = typer.main.get_command(app) if command is None else command
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*words, name))


def cli() -> str:
    """A section per command: its purpose, how it is called, its arguments and options."""
    parts = []
    for words, command in sorted(commands(), key=lambda item: item[0]):
        call = " ".join(words)
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option"]
        rows = [f"| `{_argument(one)}` | {_cell(one.help)} |" for one in arguments]
        rows += [f"| {_option(one)} | {_cell(one.help)}{_default(one)} |" for one in options]
        usage = " ".join([call, *map(_argument, arguments), *["[OPTIONS]"] * bool(options)])
        parts.append(f"## {call}\n\n{command.help}\n\n```text\n{usage}\n```\n")
        if rows:
            parts.append("| argument or option | meaning |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def recipe_keys() -> str:
    """A section per group of a recipe and below it one per key: values, default, meaning."""
    schema = Recipe.model_json_schema()
    parts: list[str] = []
    for name, group in schema["properties"].items():
        own, many = group.get("description", ""), group.get("type") == "object"
        definition = schema["$defs"][re.findall(r'"#/\$defs/(\w+)"', json.dumps(group))[0]]
        parts.append(f"## {name}\n\n{_flat(definition['description'])}" + (f" {_flat(own)}" if own else "") + "\n")
        parts += _keys(schema, definition, f"{name}.NAME" if many else name)
    return "\n".join(parts)


def _keys(schema: dict[str, Any], definition: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in definition["properties"].items():
        inner = schema["$defs"].get(value.get("$ref", "").rpartition("/")[2])
        if inner is not None:
            yield from _keys(schema, inner, f"{prefix}.{key}")
            continue
        default = f"default `{json.dumps(value['default'])}`" if "default" in value else "required"
        yield f"### {prefix}.{key}\n\n{_kind(value)}; {default}\n\n{_flat(value['description'])}\n"


def _kind(value: dict[str, Any]) -> str:
    """The values that a key takes, in words."""
    if "anyOf" in value:
        return " or ".join(_kind(one) for one in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    bounds = [
        f"{sign} {value[key]:g}"
        for key, sign in (
            ("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")
        )
        if key in value
    ]  # fmt: skip
    kind = value.get("type", "any")
    if kind == "array":
        return f"a list of {value['items']['type']}s"
    if kind == "object":
        inner = value["additionalProperties"]
        return "a mapping" + (f" to {inner['type']}s" if isinstance(inner, dict) and "type" in inner else "")
    return {"null": "`null`", "boolean": "`true` or `false`"}.get(kind, kind) + (f" {', '.join(bounds)}" * bool(bounds))


def exit_codes() -> str:
    """The branches of the exception tree with their exit codes."""
    found = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, errors.RxtoneError)]
    rows = [
        f"| {one.exit_code} | `{one.__name__}` | {_cell(inspect.getdoc(one))} |"
        for one in sorted(found, key=lambda one: (one.exit_code, one.__name__))
    ]
    return "| code | error | meaning |\n|---:|---|---|\n" + "\n".join(rows) + "\n"


def classifier_json() -> str:
    """The keys of classifier.json, from the docstring of the model that reads it."""
    text = (inspect.getdoc(ClassifierSpec) or "").partition("Attributes:\n")[2]
    rows = []
    for line in re.sub(r"\n {8,}", " ", text).splitlines():
        key, _, meaning = line.strip().partition(": ")
        rows.append(f"| `{key}` | {_cell(meaning)} |")
    return "| key | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"


def python_api() -> str:
    """A directive of autodoc for each public name."""
    names = {name: getattr(rxtone, name) for name in rxtone.__all__}
    functions = [name for name, value in names.items() if inspect.isfunction(value)]
    faults = [name for name, value in names.items() if inspect.isclass(value) and issubclass(value, Exception)]
    classes = [name for name in names if name not in functions and name not in faults]
    parts = []
    for title, group, directive, options in (
        ("Functions", functions, "autofunction", ""),
        ("Classes", classes, "autoclass", "   :members:\n"),
        ("Errors", faults, "autoexception", ""),
    ):
        parts.append(f"## {title}\n")
        for name in group:
            shown = "" if name == "Recipe" else options  # its fields have a page of their own
            parts.append(f"### {name}\n\n```{{eval-rst}}\n.. {directive}:: rxtone.{name}\n{shown}```\n")
    return "\n".join(parts)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    dots = "" if parameter.nargs == 1 or name.endswith("...") else "..."
    return f"{name}{dots}" if parameter.required else f"[{name}{dots}]"


def _option(parameter: Any) -> str:
    if parameter.is_flag:
        return ", ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))
    value = parameter.metavar or parameter.name.upper()
    return ", ".join(f"`{one}`" for one in parameter.opts) + f" `{value}`"


def _default(parameter: Any) -> str:
    if parameter.required:
        return " Required."
    if parameter.multiple:
        return " May be repeated."
    if parameter.default is None or (parameter.is_flag and not parameter.secondary_opts):
        return ""
    value = parameter.opts[0] if parameter.is_flag and parameter.default else parameter.default
    return f" Default: `{value}`."


def _cell(text: str | None) -> str:
    return _flat(text or "").replace("|", "\\|")


def _flat(text: str) -> str:
    """One line; what looks like a tag outside of code is text."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if odd % 2 else part.replace("<", "\\<") for odd, part in enumerate(parts))


PARTS = {
    "cli": cli,
    "recipe": recipe_keys,
    "exit-codes": exit_codes,
    "classifier": classifier_json,
    "python": python_api,
}
