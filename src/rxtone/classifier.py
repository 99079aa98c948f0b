"""The central object: base + adapter + prompt + labels; reviews in, probabilities out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from rxtone.data.prompts import Prompt, PromptBuilder
from rxtone.data.reviews import Review
from rxtone.errors import DataError, ModelError
from rxtone.model.base import DTYPES, token_id
from rxtone.model.batches import ReviewDataset
from rxtone.model.engine import Engine
from rxtone.model.ensemble import Ensemble
from rxtone.model.runtimes import ExportedModel
from rxtone.model.scoring import (
    LabelTokens,
    Scorer,
    log_probabilities,
    score_dataset,
)
from rxtone.run import VALIDATION
from rxtone.spec import ClassifierSpec, in_order
from rxtone.stats.abstention import PrecisionThreshold, fit_conformal, precision_threshold
from rxtone.stats.policy import Policy
from rxtone.stats.validation import ValidationScores

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenizers import Tokenizer

NOTHING_SURE = 1.01
"""A least confidence that no answer reaches."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one review.

    Attributes:
        label: The label of the operating point: the most probable one, unless the run was tuned otherwise.
        probabilities: Label -> calibrated probability; they sum to 1.
        truncated: Whether the prompt did not hold the whole review.
        abstained: Whether the classifier was asked to hold back when unsure, and did.
        label_set: The labels that hold the true one as often as asked for (`with_coverage`); None where
            nothing was asked for.
    """

    label: str
    probabilities: dict[str, float]
    truncated: bool
    abstained: bool = False
    label_set: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Scores:
    """The numbers behind n predictions.

    Attributes:
        log_probs: float64, shape (n, k): log-probabilities over the labels, before calibration.
        truncated: bool, shape (n,).
        n_tokens: int64, shape (n,): prompt tokens of the whole review, before any cut.
    """

    log_probs: np.ndarray
    truncated: np.ndarray
    n_tokens: np.ndarray


@dataclass(frozen=True)
class Classifier:
    """A base with an adapter, ready to score.

    Attributes:
        model: T5ForConditionalGeneration, the adapter merged into it or around it.
        scorer: What computes with its weights: the fast engine, or the model itself.
        tokenizer: The base's tokenizer.
        spec: What classifier.json holds.
        prompts: Turns a review into token ids.
        label_tokens: The labels in the base's tokens.
        policy: How scores become answers.
        validation: Scores of the validation rows, for `with_target_precision` and `with_coverage`; None where the
            folder does not hold them.
        label_sets: Whether predictions name the policy's label sets.
    """

    model: torch.nn.Module
    scorer: Scorer
    tokenizer: Tokenizer
    spec: ClassifierSpec
    prompts: PromptBuilder
    label_tokens: LabelTokens
    policy: Policy
    validation: ValidationScores | None = None
    label_sets: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Label words, in the recipe's order."""
        return self.spec.labels

    @property
    def ordered(self) -> bool:
        """Whether the labels stand in order."""
        return in_order(self.spec.label_rule, ordered=self.spec.ordered)

    @property
    def precision(self) -> str:
        """What it computes in.

        `fp32`, `bf16` or `fp16`: the dtype of the weights; `int8` where the linear maps, or an export's weights, have 8
        bits; `8bit` or `4bit` on a quantised base.
        """
        if isinstance(self.model, ExportedModel):
            return self.model.precision
        if isinstance(self.scorer, Engine) and self.scorer.is_int8:
            return "int8"
        if any(not parameter.is_floating_point() for parameter in self.model.parameters()):
            return self.spec.precision
        dtype = next(self.model.parameters()).dtype
        return next(name for name, known in DTYPES.items() if known is dtype)

    def predict(
        self,
        reviews: Iterable[Review | str | Mapping[str, str]],
        *,
        batch_size: int = 32,
        min_confidence: float | None = None,
    ) -> list[Prediction]:
        """Label reviews.

        Args:
            reviews: Each a `Review`, a free text, or a mapping of field (prompt name or column) to text.
            batch_size: Reviews per batch.
            min_confidence: Mark answers of less probability as abstained; None takes the run's own bound.

        Returns:
            One prediction per review, in order.

        Raises:
            DataError: If a mapping has none of the fields, or a field this classifier does not know.
        """
        prompts = self.prompts.build_many([self.as_review(review) for review in reviews])
        return self.predict_prompts(prompts, batch_size=batch_size, min_confidence=min_confidence)

    def predict_prompts(
        self, prompts: Sequence[Prompt], *, batch_size: int = 32, min_confidence: float | None = None
    ) -> list[Prediction]:
        """Label reviews whose prompts are made already, by `prompts.build_many`.

        Args:
            prompts: Of this classifier's own builder.
            batch_size: Reviews per batch.
            min_confidence: See `predict`.

        Returns:
            One prediction per prompt, in order.
        """
        scores = self._score(prompts, batch_size)
        if not len(scores.log_probs):
            return []
        policy = self.policy if min_confidence is None else replace(self.policy, min_confidence=min_confidence)
        decisions = policy.decide(scores.log_probs)
        return [
            Prediction(
                self.labels[int(label)],
                dict(zip(self.labels, (float(p) for p in row), strict=True)),
                bool(truncated),
                bool(abstained),
                label_set,
            )
            for label, row, truncated, abstained, label_set in zip(
                decisions.predicted, decisions.probabilities, scores.truncated, decisions.abstained,
                self._label_sets(decisions.probabilities), strict=True,
            )
        ]  # fmt: skip

    def with_min_confidence(self, min_confidence: float) -> Classifier:
        """The same classifier with another bound below which answers are marked as abstained.

        Args:
            min_confidence: Least probability of an answer, 0 to 1.

        Returns:
            A classifier that shares the model.
        """
        return self._with_policy(replace(self.policy, min_confidence=min_confidence))

    def with_target_precision(self, target: float) -> tuple[Classifier, PrecisionThreshold | None]:
        """The same classifier, answering only where enough answers were right on the validation rows.

        Args:
            target: The share of answers that should be right, in 0..1.

        Returns:
            The classifier, and how its bound was found: certified where the lower confidence bound reaches the
            target, else the share alone does. None where nothing reaches it; then every answer is withheld.

        Raises:
            ModelError: If the folder holds no scores of validation rows.
        """
        known = self._validation()
        answers = self.policy.decide(known.log_probs)
        right = answers.predicted == known.classes
        found = precision_threshold(answers.confidence, right, target)
        if found is None:
            found = precision_threshold(answers.confidence, right, target, certify=False)
        return self.with_min_confidence(NOTHING_SURE if found is None else found.threshold), found

    def with_coverage(self, level: float) -> Classifier:
        """The same classifier, naming for each review the labels that hold the true one as often as asked for.

        Args:
            level: The share of reviews whose set shall hold the true label, in 0..1.

        Returns:
            A classifier that shares the model; its predictions have `label_set`.

        Raises:
            ModelError: If the folder holds no scores of validation rows.
        """
        known = self._validation()
        sets = fit_conformal(self.policy.calibration.probabilities(known.log_probs), known.classes, level=level)
        return replace(self._with_policy(replace(self.policy, conformal=sets)), label_sets=True)

    def _with_policy(self, policy: Policy) -> Classifier:
        spec = self.spec.model_copy(update={"policy": policy.to_dict()})
        return replace(self, policy=policy, spec=spec)

    def _validation(self) -> ValidationScores:
        if self.validation is None:
            msg = (
                f"no {VALIDATION} beside this adapter, so a target or a coverage cannot be fitted; train again with "
                "this rxtone, or use --min-confidence"
            )
            raise ModelError(msg)
        return self.validation

    def _label_sets(self, probabilities: np.ndarray) -> Sequence[tuple[str, ...] | None]:
        if not self.label_sets or self.policy.conformal is None:
            return [None] * len(probabilities)
        inside = self.policy.conformal.sets(probabilities)
        return [tuple(label for label, is_in in zip(self.labels, row, strict=True) if is_in) for row in inside]

    def score(self, reviews: Sequence[Review], *, batch_size: int = 32) -> Scores:
        """Log-probabilities of all labels for n reviews (see `Scores`)."""
        return self._score(self.prompts.build_many(reviews), batch_size)

    def _score(self, prompts: Sequence[Prompt], batch_size: int) -> Scores:
        return Scores(
            self.score_ids([prompt.ids for prompt in prompts], batch_size=batch_size),
            np.array([prompt.truncated for prompt in prompts], dtype=bool),
            np.array([prompt.n_tokens_full for prompt in prompts], dtype=np.int64),
        )

    def score_ids(self, prompts: Sequence[Sequence[int]], *, batch_size: int = 32) -> np.ndarray:
        """Log-probabilities of all labels for prompts that are token ids already.

        Args:
            prompts: n sequences of token ids, each closed by </s>.
            batch_size: Prompts per batch.

        Returns:
            float64, shape (n, k): log-probabilities over the labels, before calibration.
        """
        dataset = ReviewDataset(prompts)
        if isinstance(self.model, ExportedModel | Ensemble):
            scores = self.model.score(dataset, batch_size)
        else:
            scores = score_dataset(
                self.scorer, dataset, self.label_tokens, batch_size=batch_size,
                pad_token_id=token_id(self.model, "pad_token_id"),
            )  # fmt: skip
        return log_probabilities(scores) if len(scores) else scores

    def generate(self, reviews: Sequence[Review], *, batch_size: int = 32) -> list[str]:
        """Greedy free generation, for comparison with scoring only: nothing keeps it to the labels.

        Args:
            reviews: n reviews.
            batch_size: Reviews per batch.

        Returns:
            n texts, stripped.
        """
        dataset = ReviewDataset([prompt.ids for prompt in self.prompts.build_many(reviews)])
        texts: list[str] = []
        longest = max(len(ids) for ids in self.label_tokens.targets())
        device = next(self.model.parameters()).device
        for start in range(0, len(dataset), batch_size):
            indexes = range(start, min(start + batch_size, len(dataset)))
            batch = dataset.batch(indexes, token_id(self.model, "pad_token_id")).to(device)
            with torch.inference_mode():
                ids = self.model.generate(  # type: ignore[operator]  # GenerationMixin behind nn.Module
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                    max_new_tokens=longest + 2, do_sample=False, num_beams=1,
                )  # fmt: skip
            texts.extend(self.tokenizer.decode(row.tolist(), skip_special_tokens=True).strip() for row in ids)
        return texts

    def as_review(self, review: Review | str | Mapping[str, str]) -> Review:
        """A text or a mapping as a `Review`."""
        if isinstance(review, Review):
            return review
        if isinstance(review, str):
            return Review(fields=(), text=review)
        known = {**{column: name for name, column in self.spec.text_fields.items()}}
        known |= {name: name for name in self.spec.text_fields}
        unknown = [key for key in review if key not in known]
        if unknown or not review:
            names = ", ".join(self.spec.text_fields)
            got = ", ".join(map(repr, review)) or "nothing"
            msg = f"expected a review with fields among {names}, got {got}"
            raise DataError(msg)
        given = {known[key]: value for key, value in review.items()}
        return Review(fields=tuple((name, given.get(name, "")) for name in self.spec.text_fields))
