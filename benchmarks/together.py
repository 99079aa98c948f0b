"""What `sweep --together N` gains: N settings through one forward against one after another.

    python -m benchmarks.together --base bundled --adapters 8 --steps 10

Both sides train the same settings on the same reviews of the bundled sample. "One after another" is given twice: on
the fast engine, which is what a sweep uses, and on the reference engine, whose forward the shared one extends. The
contenders take turns, and the figure is the total time of the steps in all turns; validation is not counted, and kept
to a fiftieth of the sample, since it would take most of so short a run.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rxtone.config import Recipe, load_recipe
from rxtone.together import train_together
from rxtone.trials import Bench, open_bench, train_setting


def settings(base: str, count: int, steps: int, batch: int) -> list[Recipe]:
    """Settings that differ in rank and rate, at dropout 0 and with no warm-up."""
    ranks = (4, 8, 16)
    return [
        load_recipe(
            "demo",
            [
                f"model.base={base}", "data.validation_fraction=0.02", f"lora.r={ranks[index % 3]}",
                "lora.lora_dropout=0.0",
                f"train.learning_rate={1e-4 * (index + 1)}", f"train.max_steps={steps}",
                f"train.per_device_train_batch_size={batch}", "train.tokens_per_batch=null",
            ],
        )
        for index in range(count)
    ]  # fmt: skip


def separately(bench: Bench, recipes: Sequence[Recipe]) -> float:
    """Seconds in the steps of all settings, one after another."""
    seconds = 0.0
    for recipe in recipes:
        with tempfile.TemporaryDirectory() as folder:
            for event in train_setting(bench, recipe, Path(folder) / "checkpoints"):
                seconds += getattr(event, "seconds", 0.0)
    return seconds


def together(bench: Bench, recipes: Sequence[Recipe]) -> float:
    """Seconds in the steps of all settings, through one forward."""
    folder = Path(tempfile.mkdtemp())
    folders = [folder / str(index) for index in range(len(recipes))]
    for path in folders:
        path.mkdir()
    try:
        return sum(getattr(event, "seconds", 0.0) for _, event in train_together(bench, recipes, folders))
    finally:
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args(arguments)
    recipes = settings(given.base, given.adapters, given.steps, given.batch)
    plain = [one.model_copy(update={"train": one.train.model_copy(update={"engine": "reference"})}) for one in recipes]
    bench = open_bench()
    contenders: dict[str, Callable[[], float]] = {
        "one after another, fast engine": lambda: separately(bench, recipes),
        "one after another, reference engine": lambda: separately(bench, plain),
        "together": lambda: together(bench, recipes),
    }
    for run in contenders.values():
        run()  # warm up
    totals = dict.fromkeys(contenders, 0.0)
    for _ in range(given.turns):
        for name, run in contenders.items():
            totals[name] += run()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    reviews = given.turns * given.adapters * given.steps * given.batch
    print(f"{given.adapters} adapters x {given.steps} steps of {given.batch} reviews on {given.base}, {device}")
    for name, seconds in totals.items():
        gain = seconds / totals["together"]
        print(f"{name:38} {seconds:8.2f} s  {reviews / seconds:8.1f} reviews/s  together is {gain:.2f}x as fast")


if __name__ == "__main__":
    main()
