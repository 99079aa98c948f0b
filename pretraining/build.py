"""`python -m pretraining.build`: corpus, tokenizer, transplant, distillation, instruction tuning, export."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import T5ForConditionalGeneration

from pretraining.card import write_card
from pretraining.corpus import Passage, read_corpus
from pretraining.distill import LAYERS, DistillPlan, Learner, distill, feature_scale, optimizer_for
from pretraining.export import export_base
from pretraining.instruct import batches, instruct
from pretraining.instructions import ExampleStream
from pretraining.probes import linear_probe, probe_rows, zero_shot
from pretraining.state import load_parameters, save_state
from pretraining.store import BatchSampler, build_store, load_store, pad
from pretraining.student import StudentShape, new_student
from pretraining.teacher import hidden_states, load_teacher, teacher_folder
from pretraining.transplant import transplant
from pretraining.vocabulary import prune, save_tokenizer, teacher_ids
from rxtone.model.host import prepare_host

CORPUS = Path("../shared/data/pretraining")
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Workshop:
    """What every stage needs.

    Attributes:
        out: Working folder.
        shape: Sizes of the student.
        passages: The corpus.
        tokenizer: The student's tokenizer.
        to_teacher: Teacher id of each student id, (vocabulary,).
    """

    out: Path
    shape: StudentShape
    passages: list[Passage]
    tokenizer: Tokenizer
    to_teacher: Tensor

    def blank_learner(self) -> Learner:
        """A learner of the right shape, to be filled from a checkpoint."""
        width = self.shape.width
        maps = [torch.zeros(width, width) for _ in LAYERS]
        return Learner(new_student(self.shape, seed=0), maps, [torch.ones(width) for _ in LAYERS])


def prepare(out: Path, corpus: Path, shape: StudentShape) -> Workshop:
    """Builds tokenizer and token store once; later runs read them."""
    out.mkdir(parents=True, exist_ok=True)
    passages = read_corpus(corpus)
    file, teacher_file = out / "tokenizer" / "tokenizer.json", teacher_folder() / "tokenizer.json"
    if not file.exists():
        groups: dict[str, list[str]] = {}
        for passage in passages:
            if not passage.held_out:
                groups.setdefault(passage.source, []).append(passage.text)
        limited = [texts[:: max(1, len(texts) // 8000)] for texts in groups.values()]
        save_tokenizer(prune(teacher_file, limited, shape.vocabulary), file.parent)
    tokenizer = Tokenizer.from_file(str(file))
    if not (out / "corpus.npz").exists():
        build_store(passages, tokenizer, out / "corpus.npz")
    return Workshop(out, shape, passages, tokenizer, torch.tensor(teacher_ids(tokenizer, teacher_file)))


def grow(shop: Workshop, positions: float, tokens: int = 48000) -> Learner:
    """A student transplanted from the teacher, with its maps; the fit's figures go to `transplant.json`."""
    sampler = BatchSampler(load_store(shop.out / "corpus.npz"), tokens=3072, seed=0)
    texts: list[list[int]] = []
    step = 10**6  # far from the steps of the training proper
    while sum(len(text) for text in texts) < tokens:
        texts.extend(text[:160] for text in sampler.texts(step)[0] if len(text) > 24)
        step += 1
    ids, mask = pad(texts, 160)
    teacher, student = load_teacher(torch.float32), new_student(shop.shape, seed=0)
    fit, maps = transplant(teacher, student, ids, mask, shop.to_teacher.tolist(), positions, even_out=positions > 0)
    states = hidden_states(teacher, shop.to_teacher[ids[:100]], mask[:100])
    scales = [feature_scale(states[layer][mask[:100].bool()]) for layer in LAYERS]
    (shop.out / "transplant.json").write_text(json.dumps(fit, indent=2) + "\n", encoding="utf-8")
    return Learner(student, [maps[layer] for layer in LAYERS], scales)


def run_distillation(shop: Workshop, plan: DistillPlan, positions: float) -> None:
    """The stage up to a distilled encoder in `state/`."""
    sampler = BatchSampler(load_store(shop.out / "corpus.npz"), BATCH_TOKENS, seed=0)
    learner = shop.blank_learner()
    if not (shop.out / "state").exists():
        learner = grow(shop, positions)
        save_state(shop.out / "state", 0, learner, optimizer_for(learner, plan.learning_rate, decoder=False))
    imdb, drugs = probe_rows(shop.passages, "imdb", 500), probe_rows(shop.passages, "drugscom", 500)

    def probe(student: T5ForConditionalGeneration) -> dict[str, float]:
        found = linear_probe(student, shop.tokenizer, imdb, "imdb")
        return found | linear_probe(student, shop.tokenizer, drugs, "drugscom")

    distill(learner, load_teacher(torch.bfloat16), shop.to_teacher, sampler, plan, shop.out, probe)


def run_instruction_tuning(shop: Workshop, plan: DistillPlan) -> None:
    """The stage from the distilled encoder to a model that follows instructions, in `instruct_state/`."""
    learner = shop.blank_learner()
    load_parameters(shop.out / "state", learner)
    imdb, drugs = probe_rows(shop.passages, "imdb", 400), probe_rows(shop.passages, "drugscom", 640)

    def probe(student: T5ForConditionalGeneration) -> dict[str, float]:
        return zero_shot(student, shop.tokenizer, imdb, "imdb") | zero_shot(student, shop.tokenizer, drugs, "drugscom")

    stream = batches(iter(ExampleStream(shop.passages, seed=1)), shop.tokenizer, BATCH_TOKENS)
    instruct(learner, load_teacher(torch.bfloat16), shop.to_teacher, stream, plan, shop.out, probe)


def run_export(shop: Workshop, folder: Path, evaluation: Path | None, options: str, note: str) -> None:
    """Writes the model folder and its card from the newest instruction-tuned state."""
    learner = shop.blank_learner()
    load_parameters(shop.out / "instruct_state", learner)
    export_base(learner.student, shop.out / "tokenizer", folder)
    write_card(shop.out, folder, evaluation, options, note)


def main() -> None:
    """Parses the command line and runs the stages, each from where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"), help="working folder")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder of the source texts")
    parser.add_argument("--base", type=Path, default=Path("src/rxtone/bundled/base"), help="where the model goes")
    parser.add_argument("--stages", default="distill,instruct,export", help="comma-separated, run in this order")
    parser.add_argument("--distill-steps", type=int, default=1181)
    parser.add_argument("--distill-rate", type=float, default=1e-4, help="peak learning rate of the distillation")
    parser.add_argument("--instruct-steps", type=int, default=3900)
    parser.add_argument("--evaluation", type=Path, default=None, help="evaluation.json for the card")
    parser.add_argument("--evaluation-options", default="", help="options it ran with, for the card")
    parser.add_argument("--evaluation-note", default="", help="how its recipe was found, for the card")
    parser.add_argument("--positions", type=float, default=1.0, help="share of the teacher's position profile")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    prepare_host()
    torch.set_num_threads(arguments.threads)
    shop = prepare(arguments.out, arguments.corpus, StudentShape())
    stages = arguments.stages.split(",")
    if "distill" in stages:
        # No decay: the instruction tuning goes on from here with the same loss beside its own.
        run_distillation(
            shop, DistillPlan(arguments.distill_steps, arguments.distill_rate, decay=0.0), arguments.positions
        )
    if "instruct" in stages:
        plan = DistillPlan(arguments.instruct_steps, learning_rate=7.5e-5, warmup=100, decay=0.7, probe_every=500)
        run_instruction_tuning(shop, plan)
    if "export" in stages:
        run_export(shop, arguments.base, arguments.evaluation, arguments.evaluation_options, arguments.evaluation_note)


if __name__ == "__main__":
    main()
