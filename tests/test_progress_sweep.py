import io

from rich.console import Console

from rxtone.progress_sweep import _drawn, _with_table, results_table, show_sweep
from rxtone.study import StudyFolder
from rxtone.sweep_events import FoldDone, StudyOpened, SweepDone, TrialEnded, TrialStarted, TrialStep, TrialValidated
from rxtone.training.events import StepDone

ROW = {"trial": 1, "settings": {"lora.r": 8, "lora.target_modules": "[q, v]"}, "screened_macro_f1": 0.7, "mean": 0.65,
       "sd": None, "interval": [0.6, 0.7], "probability_best": 0.875}  # fmt: skip
RECORD = {"folds": 5, "seeds": [1, 2, 3], "reviews": 100, "against": None, "settings": [ROW]}


def events(tmp_path):
    step = StepDone(3, 10, 0.3, 1.25, 1e-3, 8, 100, 0.1, 2**30)
    return [
        StudyOpened(tmp_path, 1, 4),
        TrialStarted(1, {"lora.r": 8, "lora.target_modules": ["q", "v"], "train.learning_rate": 0.000123456}),
        TrialStep(1, step),
        TrialValidated(1, 1.0, 0.5),
        TrialEnded(1, "complete", 0.61234, {"seconds": 2.0}),
        TrialStarted(2, {"lora.r": 4}),
        TrialEnded(2, "failed", None, {}, "out of memory"),
        FoldDone(1, 42, 0, 0.6, 1, 15),
        SweepDone(StudyFolder(tmp_path), RECORD),
    ]


def test_lines_tell_the_story_without_a_terminal(tmp_path, capsys):
    done = show_sweep(events(tmp_path))
    assert done.record == RECORD
    assert capsys.readouterr().err.splitlines() == [
        f"study {tmp_path}: 1 of 4 settings tried before",
        "trial 1: r=8, target_modules=[q, v], learning_rate=0.000123",
        "trial 1: epoch 1.00, macro-F1 0.5000",
        "trial 1 complete, macro-F1 0.6123 in 2.0 s",
        "trial 2: r=4",
        "trial 2 failed: out of memory",
        "confirming 1/15: trial 1, seed 42, fold 0, macro-F1 0.6000",
    ]


def test_the_live_table_passes_every_event_on(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    assert list(_with_table(events(tmp_path), console)) == events(tmp_path)
    assert "settings" in console.file.getvalue()


def test_the_table_shows_what_runs_and_the_best_that_ended():
    console = Console(file=io.StringIO(), width=120)
    ended = [TrialEnded(1, "complete", 0.6, {}), TrialEnded(2, "complete", 0.7, {}), TrialEnded(3, "pruned", None, {})]
    settings = {1: {"lora.r": 4}, 2: {"lora.target_modules": ["q", "v"]}, 3: {}, 4: {"lora.r": 16}}
    console.print(_drawn(settings, {4: "step 3/10, loss 1.250"}, ended, 9, "confirming: 1/15 runs"))
    text = console.file.getvalue()
    assert "3 trials ended of 9" in text
    lines = [line for line in text.splitlines() if "complete" in line or "pruned" in line or "step" in line]
    assert [line.split("│")[1].strip() for line in lines] == ["4", "2", "1", "3"]
    assert "target_modules=[q, v]" in text
    assert "confirming: 1/15 runs" in text


def test_the_confirmed_settings_are_printed():
    console = Console(file=io.StringIO(), width=140)
    console.print(results_table(RECORD | {"settings": [ROW, ROW | {"trial": 4}]}))
    text = console.file.getvalue()
    for words in ("confirmed on 5 folds x 3 seeds, 100 reviews", "r=8, target_modules=[q, v]", "0.650", "88%", "–"):
        assert words in text


def test_a_setting_without_a_rival_has_no_chance_of_being_best():
    console = Console(file=io.StringIO(), width=140)
    console.print(results_table(RECORD | {"settings": [ROW]}))
    assert "%" not in console.file.getvalue().replace("95% interval", "")


def test_the_gain_over_the_setting_to_be_beaten_is_printed_and_one_seed_is_told():
    console = Console(file=io.StringIO(), width=160)
    beaten = ROW | {"trial": 4, "gain": None}
    record = RECORD | {"seeds": [1], "against": 4, "settings": [ROW | {"gain": [0.011, 0.052]}, beaten]}
    console.print(results_table(record))
    text = console.file.getvalue()
    for words in ("5 folds x 1 seed, whose own luck is in no figure, 100 reviews", "gain over", "+0.011 to +0.052"):
        assert words in text
