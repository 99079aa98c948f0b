"""Files, names and texts from elsewhere: mutated, crafted, hostile."""

import copy
import csv
import io
import json
import os
import pickle
import random
import re
import shutil
import socket
import string
import sys
import warnings
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import polars as pl
import yaml

from rxtone.api import default_out
from rxtone.config import check_recipe, dump_recipe, load_recipe
from rxtone.data.reviews import parse_rule, read_reviews
from rxtone.data.tables import read_table
from rxtone.errors import RunError, RxtoneError
from rxtone.evaluation.report import render_report
from rxtone.loading import load
from rxtone.run import create_run, file_sha256
from rxtone.serving.bulk_rows import delimited
from rxtone.training.checkpoint import newest_checkpoint, read_progress
from torture.figure import Figure, World

ATOMS = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3.5,
    10**9,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../x",
    "/dev/zero",
    "os",
    "os.system",
    "torture_canary",
    "http://127.0.0.1:9/x",
    "(a+)+$",
    "x" * 300,
    "\x00",
    "\ud800",
    [],
    {},
    ["q"],
    ["q", "v"],
    {"q": 4},
    {"auto": {"parent_library": "torture_canary"}},
    [[0, 10**7]],
]


@contextmanager
def _no_calls(folder: Path):
    """A module that tells when it is imported, and sockets that count instead of connecting."""
    canary = folder / "executed"
    (folder / "torture_canary.py").write_text(f"open({str(canary)!r}, 'a').write('imported')\n", "utf-8")
    calls = []

    def connect(_, address):
        calls.append(address)
        raise OSError(101, "Network is unreachable")

    with mock.patch.object(socket.socket, "connect", connect), mock.patch.object(sys, "path", [str(folder), *sys.path]):
        yield canary, calls
    sys.modules.pop("torture_canary", None)


def adapter_configs(attempts: int, folder: Path, world: World) -> Figure:
    """Mutated adapter_config.json and classifier.json: refused in one message or read as what they were."""
    figure, generator = Figure(), random.Random(6)
    adapter = shutil.copytree(world.run / "adapter", folder / "mutated")
    files = {
        name: json.loads((adapter / name).read_text("utf-8")) for name in ("adapter_config.json", "classifier.json")
    }
    texts = {name: (adapter / name).read_bytes() for name in files}
    loaded = 0
    with _no_calls(folder) as (canary, calls), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(attempts):
            name = generator.choice(sorted(files))
            if generator.random() < 0.2:
                content = _cut_bytes(texts[name], generator)
            else:
                content = json.dumps(_mutate(files[name], generator)).encode()
            (adapter / name).write_bytes(content)
            told = ""
            try:
                load(adapter, base=str(world.base) if generator.random() < 0.5 else None)
                loaded += 1
            except RxtoneError:
                pass
            except Exception as error:
                told = f"{type(error).__name__}: {error!s:.200}"
            good = not told and not canary.exists() and not calls
            figure.attempt(good, f"{name} {number}: {told} {calls[:1]} from {content[-300:]!r}")
            (adapter / name).write_bytes(texts[name])
    figure.details["accepted"] = loaded
    return figure


def pickles(attempts: int, folder: Path, world: World) -> Figure:
    """Pickles under every name that a loader may look for: none is ever executed."""
    figure = Figure()
    canary = folder / "executed"

    class Payload:
        def __reduce__(self):
            return (canary.touch, ())

    names = [
        "adapter_model.safetensors",
        "adapter_model.bin",
        "adapter_model.pt",
        "adapter_config.json",
        "classifier.json",
        "tokenizer.json",
        "pytorch_model.bin",
        "model.safetensors",
        "config.json",
        "training_args.bin",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "spiece.model",
        "export.json",
        "adapter_model.pkl",
        "model.ckpt",
        "model.joblib",
        "weights.npy",
    ]
    payloads = [pickle.dumps(Payload(), protocol) for protocol in (0, 2, 4, 5)]
    payloads.append(b"PK\x03\x04" + payloads[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(attempts):
            name, payload = names[number % len(names)], payloads[number // len(names) % len(payloads)]
            adapter = shutil.copytree(world.run / "adapter", folder / f"pickle-{number}")
            base = shutil.copytree(world.base, folder / f"base-{number}")
            for where in (adapter, base):
                (where / name).write_bytes(payload)
                if name.startswith(("adapter_model.", "pytorch_model")) and not name.endswith("safetensors"):
                    (where / "adapter_model.safetensors").unlink(missing_ok=True)
                    (where / "model.safetensors").unlink(missing_ok=True)
            checkpoint = folder / "checkpoints" / "step-000001"
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "progress.json").write_bytes(payload)
            manifest = {"progress.json": file_sha256(checkpoint / "progress.json")}
            (checkpoint / "manifest.json").write_text(json.dumps(manifest))
            told = []
            for call in (
                lambda at=adapter: load(at),
                lambda at=adapter, on=base: load(at, base=str(on)),
                lambda: read_progress(newest_checkpoint(folder / "checkpoints")),
            ):
                try:
                    call()
                except RxtoneError:
                    pass
                except Exception as error:  # noqa: BLE001, RUF100
                    told.append(f"{type(error).__name__}: {error!s:.150}")
            figure.attempt(not canary.exists() and not told, f"{name}: executed={canary.exists()} {told}")
            shutil.rmtree(adapter)
            shutil.rmtree(base)
    return figure


def malformed_input(attempts: int, folder: Path, world: World) -> Figure:
    """Damaged tables and recipes: one message that names the file, never another exception."""
    figure, generator = Figure(), random.Random(7)
    rule = parse_rule({"positive": ">=7", "neutral": "5..6", "negative": "<=4"})
    rows = "\n".join(world.table.read_text("utf-8").splitlines()[:12]) + "\n"
    frame = pl.read_csv(io.StringIO(rows), infer_schema=False)
    seeds = {"csv": rows.encode(), "tsv": rows.replace(",", "\t").encode(), "jsonl": frame.write_ndjson().encode()}
    parquet = io.BytesIO()
    frame.write_parquet(parquet)
    recipe = dump_recipe(check_recipe(yaml.safe_load((world.run / "config.yaml").read_text("utf-8")), "x")).encode()
    accepted = 0
    for number in range(attempts):
        # Parquet is read in a process of its own: half a second each, so it gets every fiftieth turn.
        kind = "parquet" if number % 50 == 49 else generator.choice(["csv", "csv", "tsv", "jsonl", "yaml"])
        seed = {"parquet": parquet.getvalue(), "yaml": recipe}.get(kind) or seeds[kind]
        content = _damage(seed, generator, kind)
        if number == 0:
            content = rows.encode() + b"9,great," + b"x" * (10 << 20) + b"\n"
            kind = "csv"
        path = folder / f"damaged.{kind}"
        path.write_bytes(content)
        try:
            if kind == "yaml":
                load_recipe(path)
            else:
                read_reviews(read_table(path), {"Benefits": "benefits", "Side Effects": "effects"}, "rating", rule)
            accepted += 1
            good, told = True, ""
        except RxtoneError as error:
            told = str(error)
            good = "damaged." in told and len(told) < 20_000
        except Exception as error:  # noqa: BLE001, RUF100
            good, told = False, f"{type(error).__name__}: {error!s:.200}"
        figure.attempt(good, f"{kind} {number}: {told[:300]} from {content[:150]!r}")
    figure.details["accepted"] = accepted
    return figure


def run_names(attempts: int, folder: Path, world: World) -> Figure:
    """Generated recipe names give one plain folder under runs/; links in a run folder lead nowhere."""
    figure, generator = Figure(), random.Random(9)
    pieces = [
        "..",
        ".",
        "/",
        "\\",
        "\x00",
        "%2e",
        "%252e",
        "%2f",
        "~",
        "$HOME",
        "con",
        "nul",
        " ",
        "\n",
        "a",
        "run",
        "ü",
        "名",
        "\u202e",
        "-",
        "--out",
        "*",
        "|",
        "&",
        ";",
        "`",
        "'",
        '"',
        "x" * 300,
        "\ud800",
    ]
    runs = (folder / "runs").resolve()
    for number in range(attempts):
        name = "".join(generator.choices(pieces, k=generator.randint(1, 6)))
        path = folder / default_out(name)
        inside = path.parent.resolve() == runs and path.resolve().parent == runs and len(os.fsencode(path.name)) < 200
        figure.attempt(inside and re.fullmatch(r"[\w.-]+", path.name) is not None, f"{name[:80]!r} -> {path.name!r}")
        if number % 100 == 0:
            create_run(path, resume=False).path.rmdir()
            link = folder / "linked"
            link.mkdir(exist_ok=True)
            part = link / generator.choice(["adapter", "checkpoints", "metrics.jsonl", "evaluation", "config.yaml"])
            part.symlink_to(folder / "outside")
            try:
                create_run(link, resume=True)
                figure.attempt(False, f"a link {part.name} that leads out was accepted")
            except RunError:
                figure.attempt(not (folder / "outside").exists(), "something was written outside")
            part.unlink()
    return figure


class _Page(HTMLParser):
    """What a browser would act on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "iframe", "object", "embed", "form", "base", "link"}:
            self.found.append(tag)
        self.found += [name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "").lower()]


def inert_reports(attempts: int, folder: Path, world: World) -> Figure:
    """Hostile reviews: nothing to run in the page, no formula in a safe cell, nothing lost in a raw one."""
    figure, generator = Figure(), random.Random(10)
    context = _report_context(world)
    parts = [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</title>",
        "</style>",
        "<svg/onload=x>",
        "{{7*7}}",
        "javascript:alert(1)",
        "&lt;script&gt;",
        "<!--",
        "-->",
        "]]>",
        "'",
        '"',
        "`",
        "=cmd|' /C calc'!A0",
        "@SUM(1)",
        "+1+1",
        "-2+3",
        "\t=1",
        "\r=1",
        "\n=1",
        "，",
        "＝1",
        "<iframe srcdoc=x>",
        "\x0b",
        "plain words",
    ]
    for start in range(0, attempts, 200):
        texts = [
            "".join(generator.choices(parts, k=generator.randint(1, 5))) for _ in range(min(200, attempts - start))
        ]
        page = render_report(_with_texts(context, texts))
        parsed = _Page()
        parsed.feed(page)
        sealed = "default-src 'none'" in page
        safe = list(csv.reader(io.StringIO(_csv(texts, safe=True))))[1:]
        raw = [row[0] for row in csv.reader(io.StringIO(_csv(texts, safe=False), newline=""))][1:]
        for index, text in enumerate(texts):
            cell = safe[index][0] if index < len(safe) else "="
            formula = re.match(r"[\s＝]*[=+\-@＝]", cell) is not None and not re.fullmatch(r"[+-]?[\d.]+", cell)
            lossless = raw[index] == text
            figure.attempt(
                not parsed.found and sealed and not formula and lossless,
                f"{text!r}: {parsed.found[:3]} formula={formula} lossless={lossless}",
            )
    return figure


def _csv(texts: list[str], *, safe: bool) -> str:
    return delimited(pl.DataFrame({"text": texts}), ".csv", safe_cells=safe, header=True).decode("utf-8")


def _report_context(world: World) -> dict:
    metrics = {}
    with mock.patch("rxtone.artefacts.render_report", side_effect=lambda context: metrics.update(context) or ""):
        _judge(world)
    return metrics


def _judge(world: World) -> None:
    from rxtone.artefacts import write_evaluation
    from rxtone.judging import judge
    from rxtone.preparation import prepare
    from rxtone.run import RunFolder

    copy_ = shutil.copytree(world.run, world.run.with_name("judged"), dirs_exist_ok=True)
    recipe = load_recipe(copy_ / "config.yaml")
    prepared = prepare(recipe.data, recipe.train.seed)
    classifier = load(copy_)
    write_evaluation(RunFolder(copy_), classifier, recipe, prepared, judge(classifier, recipe, prepared))


def _with_texts(context: dict, texts: list[str]) -> dict:
    """The page's context with hostile reviews, names and notes wherever a text of the user may stand."""
    changed = copy.copy(context)
    errors = [dict(error) for error in context["confident_errors"]] or []
    template = errors[0] if errors else None
    if template is not None:
        text_key = max(template, key=lambda key: len(str(template[key])) if isinstance(template[key], str) else 0)
        changed["confident_errors"] = [template | {text_key: text} for text in texts]
    changed["notes"] = texts
    changed["title"] = texts[0]
    changed["commands"] = texts[:20]
    changed["environment"] = {text: text for text in texts[:20]}
    return changed


def _mutate(values: dict, generator: random.Random) -> dict:
    changed = copy.deepcopy(values)
    for _ in range(generator.randint(1, 3)):
        target, keys = changed, list(changed)
        key = generator.choice(keys)
        while isinstance(target[key], dict) and target[key] and generator.random() < 0.6:
            target = target[key]
            key = generator.choice(list(target))
        action = generator.random()
        if action < 0.7:
            target[key] = generator.choice(ATOMS)
        elif action < 0.85:
            del target[key]
            if not changed:
                break
        else:
            target["".join(generator.choices(string.ascii_lowercase, k=5))] = generator.choice(ATOMS)
    return changed


def _cut_bytes(content: bytes, generator: random.Random) -> bytes:
    data = bytearray(content)
    at = generator.randrange(len(data))
    if generator.random() < 0.5:
        return bytes(data[:at])
    data[at : at + generator.randint(1, 4)] = bytes(generator.randrange(256) for _ in range(generator.randint(0, 4)))
    return bytes(data)


def _damage(content: bytes, generator: random.Random, kind: str) -> bytes:
    pieces = [
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\x00",
        b'"',
        b"\r",
        b"\r\n",
        b"\n\n",
        b",,,",
        b"\t",
        b"11",
        b"NaN",
        b"",
        b"-0",
        b"1e999",
        b"\xc3\x28",
        b"'",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"\xed\xa0\x80",
        "１１".encode(),
        b"null",
        b": ",
        b"&a *a",
        b"!!python/object/apply:os.system ['true']",
        b"\x1b",
        b"\xe2\x80\xa8",
    ]
    data = content
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(data) + 1)
        action = generator.random()
        if action < 0.6:
            data = data[:at] + generator.choice(pieces) + data[at + generator.choice([0, 0, 1, 3]) :]
        elif action < 0.8:
            data = data[:at]
        else:
            lines = data.split(b"\n")
            place = generator.randrange(len(lines))
            lines.insert(place, generator.choice(lines)[: generator.randrange(60)])
            data = b"\n".join(lines)
    return data


__all__ = ["adapter_configs", "inert_reports", "malformed_input", "pickles", "run_names"]
