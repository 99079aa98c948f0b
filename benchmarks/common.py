"""What the measurements share: the texts, the models, interleaved timing, and how results are written.

Contenders of one question run in one process on the same reviews, one after another within every round, so
that a machine that speeds up or slows down does so for all. Beside the wall clock stands the processor time
of the process over all its threads, which other users of a shared machine disturb less. A rate is the sum
over the reviews of a round divided by its seconds; the table shows the median round, the spread over rounds,
and ratios of medians.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import transformers
from tokenizers import Tokenizer

from benchmarks.make_base import make_base
from rxtone.model.base import DTYPES, resolve_precision
from rxtone.model.host import prepare_host

MAX_TOKENS = 256
LABELS = ("positive", "neutral", "negative")
LABEL_TOKENS = ((1465,), (7163,), (2841,))  # one token each in T5's vocabulary
EOS = 1
# What rxtone chooses on this machine, and its peers should: where bf16 is emulated it is slower than fp32.
PRECISION = resolve_precision("auto", torch.device("cpu"))
DTYPE = DTYPES[PRECISION]
_FIELDS = ("benefitsReview", "sideEffectsReview", "commentsReview")
_DEFAULT_WORK = Path("~/.cache/rxtone-benchmarks")


@dataclass(frozen=True)
class Prompts:
    """Tokenised reviews.

    Attributes:
        ids: Token ids of every prompt, cut to ``MAX_TOKENS`` with the end-of-sequence token kept.
        labels: Index into ``LABELS`` of every review.
    """

    ids: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of every prompt."""
        return [len(ids) for ids in self.ids]


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: In the table.
        settings: How it was configured, printed with the results.
        run: Does the whole round; what it returns is kept for checks.
        check: A number that should agree between contenders, such as a loss without dropout; asked before the
            first round and after the last, untimed.
    """

    name: str
    settings: str
    run: Callable[[], Any]
    check: Callable[[], float] | None = None


@dataclass
class Timing:
    """What was measured of one contender."""

    name: str
    settings: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    checks: list[float] = field(default_factory=list)

    def rate(self, reviews: int) -> float:
        """Reviews per second of the median round."""
        return reviews / statistics.median(self.seconds)

    def cpu_rate(self, reviews: int) -> float:
        """Reviews per second of processor time, of the median round."""
        return reviews / statistics.median(self.cpu_seconds)


@dataclass(frozen=True)
class Options:
    """The command line that all measurements share."""

    shared: Path
    work: Path
    out: Path
    size: str
    reviews: int
    rounds: int
    threads: int
    seconds: float = math.inf


@dataclass(frozen=True)
class Bench:
    """What a measurement is made on.

    Attributes:
        opts: The command line.
        machine: The machine and the libraries.
        folder: The base model.
        prompts: The reviews.
    """

    opts: Options
    machine: Mapping[str, Any]
    folder: Path
    prompts: Prompts


def set_up(description: str | None, *, reviews: int, rounds: int = 3) -> Bench:
    """Parse the command line and prepare what every measurement needs.

    Args:
        description: The module's docstring.
        reviews: Default number of reviews.
        rounds: Default number of rounds.

    Returns:
        Options, machine, base and reviews.
    """
    opts = options(description, reviews=reviews, rounds=rounds)
    return Bench(opts, machine(opts.threads), base_folder(opts), load_prompts(opts))


def options(description: str | None, *, reviews: int, rounds: int = 3) -> Options:
    """Parse the shared command line.

    Args:
        description: The module's docstring.
        reviews: Default number of reviews.
        rounds: Default number of rounds.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="reference data (%(default)s)")
    parser.add_argument("--work", type=Path, default=_DEFAULT_WORK, help="converted models (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="results (%(default)s)")
    parser.add_argument("--size", choices=("small", "base", "large"), default="base")
    parser.add_argument("--reviews", type=int, default=reviews)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="no new round is begun after so many")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # What rxtone's commands do; every contender in the process gains by it. Padded peers' shapes return.
    prepare_host(shapes_return=True)
    torch.set_num_threads(given.threads)
    return Options(
        given.shared,
        given.work.expanduser(),
        given.out,
        given.size,
        given.reviews,
        given.rounds,
        given.threads,
        given.seconds,
    )


def base_folder(opts: Options) -> Path:
    """The base model of the wanted shape, made on first use.

    Args:
        opts: The options.

    Returns:
        Its folder.
    """
    folder = opts.work / opts.size
    if not (folder / "model.safetensors").is_file():
        make_base(opts.size, folder, shared=opts.shared)
    return folder


def load_prompts(opts: Options, *, max_tokens: int = MAX_TOKENS) -> Prompts:
    """Read DrugLib reviews, evenly spread over the file, as prompts.

    Args:
        opts: The options; ``reviews`` says how many.
        max_tokens: Where the prompt is cut.

    Returns:
        The prompts.
    """
    with (opts.shared / "data" / "druglib" / "drugLibTrain_raw.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    step = len(rows) / opts.reviews
    chosen = [rows[int(i * step)] for i in range(opts.reviews)]
    tokenizer = Tokenizer.from_file(str(opts.shared / "data" / "flan_t5_tokenizer" / "tokenizer.json"))
    ids, labels = [], []
    for row in chosen:
        names = ("Benefits", "Side Effects", "Comments")
        fields = "\n".join(f"{name}: {row[column]}" for name, column in zip(names, _FIELDS, strict=True))
        text = f"Classify the sentiment of this review as {', '.join(LABELS)}:\n{fields}"
        tokens = tokenizer.encode(text, add_special_tokens=False).ids[: max_tokens - 1]
        ids.append((*tokens, EOS))
        rating = int(row["rating"])
        labels.append(0 if rating >= 7 else 2 if rating <= 4 else 1)
    return Prompts(tuple(ids), tuple(labels))


def interleave(contenders: Sequence[Contender], opts: Options, *, warm_up: int = 1) -> list[Timing]:
    """Time the contenders in turn, after untimed rounds.

    Args:
        contenders: Who takes part.
        opts: The options: `rounds` at most, at least one, and none begun that `seconds` would not hold.
        warm_up: Untimed rounds.

    Returns:
        One timing per contender, in their order.
    """
    begun = time.monotonic()
    timings = [Timing(c.name, c.settings) for c in contenders]
    _check(contenders, timings)
    for contender in list(contenders) * warm_up:
        _run(contender, opts)
    for done in range(opts.rounds):
        longest = sum(max(timing.seconds, default=0.0) for timing in timings)
        if done and time.monotonic() - begun + longest > opts.seconds:
            print(f"{done} of {opts.rounds} rounds: the time is used up", flush=True)
            break
        for contender, timing in zip(contenders, timings, strict=True):
            start, own = time.perf_counter(), time.process_time()
            result = _run(contender, opts)
            timing.seconds.append(time.perf_counter() - start)
            timing.cpu_seconds.append(time.process_time() - own)
            timing.results.append(result)
    _check(contenders, timings)
    return timings


def _run(contender: Contender, opts: Options) -> Any:
    """One round. CTranslate2 sets the number of OpenMP threads of whoever makes a translator: all begin with theirs."""
    torch.set_num_threads(opts.threads)
    result = contender.run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def _check(contenders: Sequence[Contender], timings: Sequence[Timing]) -> None:
    for contender, timing in zip(contenders, timings, strict=True):
        if contender.check is not None:
            timing.checks.append(contender.check())


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine and the libraries, for the result files.

    Args:
        threads: Threads in use.

    Returns:
        Names and versions.
    """
    import accelerate  # type: ignore[import-untyped]
    import peft

    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith(("model name", "cpu family"))]
        model = ", ".join(sorted({line.split(":")[1].strip() for line in lines}))
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "vnni": torch.cpu._is_vnni_supported(),
        "precision": PRECISION,
        "load_average_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "accelerate": accelerate.__version__,
        "cuda": "not measured" if not torch.cuda.is_available() else torch.cuda.get_device_name(),
    }


def lengths_summary(prompts: Prompts) -> dict[str, float]:
    """Summarise prompt lengths: a rate means nothing without them.

    Args:
        prompts: The prompts.

    Returns:
        Count, mean, median, 90th percentile, maximum, and the cost of padding to ``MAX_TOKENS``.
    """
    lengths = sorted(prompts.lengths)
    return {
        "reviews": len(lengths),
        "mean": statistics.fmean(lengths),
        "median": statistics.median(lengths),
        "p90": lengths[int(0.9 * (len(lengths) - 1))],
        "max": lengths[-1],
        "padding_factor_at_256": MAX_TOKENS / statistics.fmean(lengths),
    }


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a Markdown table, the first being its head.

    Args:
        rows: Cells.

    Returns:
        The table.
    """
    head, *body = rows
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in (head, *body)]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def rate_table(timings: Sequence[Timing], reviews: int, versus: Sequence[str]) -> str:
    """Rates, spread and ratios.

    Args:
        timings: Of the contenders.
        reviews: In a round.
        versus: Names of contenders that get a ratio column.

    Returns:
        A Markdown table.
    """
    by_name = {t.name: t for t in timings}
    ratio_names = [f"vs {name}: wall (min-max) / cpu" for name in versus]
    rows = [["contender", "reviews/s", "min-max over rounds", "reviews/cpu-s", *ratio_names]]
    for timing in timings:
        low, high = reviews / max(timing.seconds), reviews / min(timing.seconds)
        ratios = []
        for other in (by_name[name] for name in versus):
            wall = timing.rate(reviews) / other.rate(reviews)
            each = ratios_by_round(timing, other)
            span = f"{min(each):.2f}-{max(each):.2f}"
            ratios.append(f"{wall:.2f}x ({span}) / {timing.cpu_rate(reviews) / other.cpu_rate(reviews):.2f}x")
        cpu = f"{timing.cpu_rate(reviews):.2f}"
        rows.append([timing.name, f"{timing.rate(reviews):.2f}", f"{low:.2f}-{high:.2f}", cpu, *ratios])
    return table(rows)


def ratios_by_round(timing: Timing, other: Timing) -> list[float]:
    """How many times as fast as another, round by round.

    Args:
        timing: Of one contender.
        other: Of the other.

    Returns:
        One ratio per round.
    """
    return [b / a for a, b in zip(timing.seconds, other.seconds, strict=True)]


def settings_list(timings: Sequence[Timing]) -> str:
    """How each contender was configured.

    Args:
        timings: Of the contenders.

    Returns:
        A Markdown list.
    """
    return "\n".join(f"- {timing.name}: {timing.settings}" for timing in timings)


def publish(bench: Bench, name: str, question: str, found: Mapping[str, Any], text: str) -> None:
    """Print a result and write it with all that is needed to read it.

    Args:
        bench: What was measured on.
        name: File name without suffix; the size is added.
        question: What was asked.
        found: The data.
        text: The table.
    """
    about = {"question": question, "size": bench.opts.size, "machine": bench.machine}
    about |= {"lengths": lengths_summary(bench.prompts)}
    write(bench.opts, f"{name}-{bench.opts.size}", about | dict(found), text)


def write(opts: Options, name: str, result: Mapping[str, Any], text: str) -> None:
    """Print a result and write it as JSON and Markdown.

    Args:
        opts: The options.
        name: File name without suffix.
        result: The data.
        text: The table.
    """
    opts.out.mkdir(parents=True, exist_ok=True)
    (opts.out / f"{name}.json").write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    (opts.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def timing_data(timings: Sequence[Timing], reviews: int) -> list[dict[str, Any]]:
    """Timings as plain data.

    Args:
        timings: Of the contenders.
        reviews: In a round.

    Returns:
        One mapping per contender, without what the runs returned.
    """
    kept = [{k: v for k, v in asdict(t).items() if k != "results"} for t in timings]
    return [
        {**data, "reviews_per_second": t.rate(reviews), "reviews_per_cpu_second": t.cpu_rate(reviews)}
        for data, t in zip(kept, timings, strict=True)
    ]


def bar_plot(opts: Options, name: str, labels: Sequence[str], values: Sequence[float], axis: str) -> None:
    """Draw one horizontal bar per contender.

    Args:
        opts: The options.
        name: File name without suffix.
        labels: Of the bars, top first.
        values: Their lengths.
        axis: What the lengths mean.
    """
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.5 * len(labels) + 1))
    axes.barh(list(labels)[::-1], list(values)[::-1], color=["#9aa5b1"] * (len(labels) - 1) + ["#1f6f8b"])
    axes.bar_label(axes.containers[0], fmt="%.2f", padding=3)  # type: ignore[arg-type]
    axes.set_xlabel(axis)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    opts.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(opts.out / f"{name}.svg")
    plt.close(figure)


def line_plot(
    opts: Options,
    name: str,
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    axes_names: tuple[str, str],
) -> None:
    """Draw lines on doubly logarithmic axes.

    Args:
        opts: The options.
        name: File name without suffix.
        x: Shared abscissa.
        lines: Ordinates by name.
        axes_names: Of x and y.
    """
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for label, y in lines.items():
        axes.plot(list(x)[: len(y)], list(y), marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    opts.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(opts.out / f"{name}.svg")
    plt.close(figure)
