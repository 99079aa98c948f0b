"""Probes on held-out rows: what the states of a student know, before anything is tuned."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer
from transformers import T5ForConditionalGeneration

from pretraining.corpus import Passage, sentiment_of
from pretraining.distill import LAYERS, pooled
from pretraining.instruct import answer_logits
from pretraining.instructions import REFERENCE
from pretraining.store import pad
from pretraining.student import FastEncoder

PROBE_TOKENS = 128


def probe_rows(passages: Sequence[Passage], source: str, limit: int) -> list[Passage]:
    """The first held-out rows of a source."""
    return [p for p in passages if p.held_out and p.source == source][:limit]


@torch.no_grad()
def features(student: T5ForConditionalGeneration, tokenizer: Tokenizer, rows: Sequence[Passage]) -> NDArray[np.float32]:
    """Mean token states of layers 3 and 6, (n, 2 d)."""
    encode = FastEncoder(student, torch.bfloat16, compiled=False)
    found = []
    for start in range(0, len(rows), 24):
        ids, mask = pad([tokenizer.encode(r.text).ids[:PROBE_TOKENS] for r in rows[start : start + 24]], PROBE_TOKENS)
        streams = encode(ids, mask)
        found.append(torch.cat([pooled(streams[LAYERS[0]], mask), pooled(streams[-1], mask)], 1))
    return torch.cat(found).float().numpy()


def linear_probe(
    student: T5ForConditionalGeneration, tokenizer: Tokenizer, rows: Sequence[Passage], name: str
) -> dict[str, float]:
    """Five-fold logistic regression on frozen features: accuracy, macro-F1 and kappa under `probe_<name>_...`."""
    x = features(student, tokenizer, rows)
    y = np.array([sentiment_of(row.rating or 0) for row in rows])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200, class_weight="balanced"))
    guess = cross_val_predict(model, x, y, cv=StratifiedKFold(5, shuffle=True, random_state=0))
    return {
        f"probe_{name}_accuracy": float(accuracy_score(y, guess)),
        f"probe_{name}_macro_f1": float(f1_score(y, guess, average="macro")),
        f"probe_{name}_kappa": float(cohen_kappa_score(y, guess)),
    }


@torch.no_grad()
def zero_shot(
    student: T5ForConditionalGeneration, tokenizer: Tokenizer, rows: Sequence[Passage], name: str
) -> dict[str, float]:
    """Sentiment of held-out rows with the reference prompt and no tuning; figures under `zero_shot_<name>_...`."""
    labels = ("positive", "neutral", "negative")
    columns = [tokenizer.token_to_id(label) for label in labels]
    encode = FastEncoder(student, torch.bfloat16, compiled=False)
    guess: list[str] = []
    for start in range(0, len(rows), 24):
        prompts = [
            tokenizer.encode(f"{REFERENCE}\n{row.text}").ids[: PROBE_TOKENS + 24] for row in rows[start : start + 24]
        ]
        ids, mask = pad(prompts, PROBE_TOKENS + 24)
        logits = answer_logits(student, encode(ids, mask)[-1], mask, torch.zeros(len(prompts), dtype=torch.long))
        guess.extend(labels[int(best)] for best in logits[:, 0, columns].argmax(-1))
    truth = [sentiment_of(row.rating or 0) for row in rows]
    return {
        f"zero_shot_{name}_accuracy": float(accuracy_score(truth, guess)),
        f"zero_shot_{name}_macro_f1": float(f1_score(truth, guess, average="macro")),
        f"zero_shot_{name}_kappa": float(cohen_kappa_score(truth, guess)),
    }
