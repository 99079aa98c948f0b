"""Instruction tuning: the answer token's cross-entropy, with the distillation loss kept on every second step."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertModel, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from pretraining.distill import DistillPlan, Learner, distill_loss, optimizer_for, set_rate, step_safely
from pretraining.instructions import Example
from pretraining.state import load_state, log, save_state
from pretraining.store import EOS_ID, pad
from pretraining.student import FastEncoder
from pretraining.teacher import hidden_states

MAX_TOKENS = 224
LENGTH_STEP = 32


@dataclass(frozen=True)
class InstructBatch:
    """Padded prompts with the answer token of each; (b, s), (b, s), (b,)."""

    ids: Tensor
    mask: Tensor
    answers: Tensor


def batches(examples: Iterator[Example], tokenizer: Tokenizer, tokens: int) -> Iterator[InstructBatch]:
    """Groups prompts of like length; a group goes out when its padded size reaches `tokens`.

    Args:
        examples: Prompts and answers.
        tokenizer: The student's tokenizer.
        tokens: Padded tokens a batch.

    Yields:
        Batches, their lengths multiples of 32.
    """
    groups: dict[int, list[tuple[list[int], int]]] = {}
    for example in examples:
        ids = tokenizer.encode(example.prompt).ids
        if len(ids) > MAX_TOKENS:
            ids = [*ids[: MAX_TOKENS - 1], EOS_ID]
        length = -(-len(ids) // LENGTH_STEP) * LENGTH_STEP
        answer = tokenizer.token_to_id(example.answer)
        group = groups.setdefault(length, [])
        group.append((ids, answer))
        if len(group) == tokens // length:
            padded, mask = pad([ids for ids, _ in group], length)
            yield InstructBatch(padded, mask, torch.tensor([answer for _, answer in group]))
            groups[length] = []


def answer_logits(student: T5ForConditionalGeneration, encoded: Tensor, mask: Tensor, answers: Tensor) -> Tensor:
    """Logits of the answer and the end mark, (b, 2, vocabulary), the answer fed to the second position."""
    start = torch.stack([torch.zeros_like(answers), answers], 1)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = student(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            decoder_input_ids=start,
        )
    return outputs.logits.float()


def instruct(
    learner: Learner, teacher: BertModel, to_teacher: Tensor, stream: Iterator[InstructBatch], plan: DistillPlan,
    folder: Path, probe: Callable[[T5ForConditionalGeneration], dict[str, float]], distill_weight: float = 1.0,
    compiled: bool = True,
) -> None:  # fmt: skip
    """Runs or resumes the instruction tuning until the plan's steps are done.

    Args:
        learner: Student and maps; changed in place.
        teacher: The teacher.
        to_teacher: Teacher id of each student id, (vocabulary,).
        stream: Batches from the first on; those of finished steps are skipped.
        plan: Length and rates.
        folder: Where `instruct_state/` and `instruct.jsonl` go.
        probe: Measures a student; its figures are logged.
        distill_weight: Weight of the distillation loss on the steps that have it.
        compiled: Whether the encoder blocks are compiled.
    """
    optimizer = optimizer_for(learner, plan.learning_rate, decoder=True)
    step = load_state(folder / "instruct_state", learner, optimizer)
    for _ in range(step):
        next(stream)
    encode = FastEncoder(learner.student, torch.bfloat16, compiled)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved = began = time.monotonic()
    tokens, seen, hits, losses, cosine = 0, 0, 0, 0.0, torch.zeros(())
    while step < plan.steps:
        rate = set_rate(optimizer, step, plan)
        batch = next(stream)
        streams = encode(batch.ids, batch.mask)
        logits = answer_logits(learner.student, streams[-1], batch.mask, batch.answers)
        targets = torch.stack([batch.answers, torch.full_like(batch.answers, EOS_ID)], 1)
        answer_loss = functional.cross_entropy(logits[:, 0], batch.answers)
        loss = answer_loss + 0.1 * functional.cross_entropy(logits[:, 1], targets[:, 1])
        if step % 2 == 0:
            wanted = hidden_states(teacher, to_teacher[batch.ids], batch.mask)
            kept, cosine = distill_loss(learner, streams, wanted, batch.mask)
            loss = loss + distill_weight * kept
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        step_safely(parameters, optimizer, step)
        step += 1
        tokens += int(batch.mask.sum())
        seen += len(batch.answers)
        hits += int((logits[:, 0].argmax(-1) == batch.answers).sum())
        losses += float(answer_loss.detach()) * len(batch.answers)
        if step % 20 == 0:
            log(folder / "instruct.jsonl", {
                "step": step, "answer_loss": losses / seen, "answer_accuracy": hits / seen, "learning_rate": rate,
                "pooled_cosine": float(cosine),
                "tokens_per_second": tokens / (time.monotonic() - began), "seconds": time.monotonic() - began,
            })  # fmt: skip
            tokens, seen, hits, losses, began = 0, 0, 0, 0.0, time.monotonic()
        if step % plan.probe_every == 0:
            log(folder / "instruct.jsonl", {"step": step, **probe(learner.student)})
        if step == plan.steps or time.monotonic() - saved > plan.checkpoint_seconds:
            save_state(folder / "instruct_state", step, learner, optimizer)
            saved = time.monotonic()
