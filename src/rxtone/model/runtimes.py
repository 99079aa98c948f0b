"""The same label scores from an exported folder: transformers, CTranslate2 or ONNX.

An exported folder holds `export.json` (what it is), the tokenizer and `classifier.json` beside the weights.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from rxtone.errors import ModelError
from rxtone.model.base import load_base
from rxtone.model.batches import scoring_batches
from rxtone.run import MANIFEST, file_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from rxtone.model.batches import ReviewDataset
    from rxtone.model.scoring import LabelTokens

EXPORT = "export.json"
ONNX_FILE = "model.onnx"
COMPUTE_TYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8_float32"}
Format = Literal["merged", "ctranslate2", "onnx"]


@dataclass(frozen=True)
class ExportRecord:
    """What export.json says about how to run the folder.

    Attributes:
        form: The runtime.
        precision: Of the weights: `fp32`, `bf16` or `int8`.
        pad: Id of the padding token.
        eos: Id of the end of sequence.
        start: Id that starts the decoder.
        max_tokens: The longest prompt.
    """

    form: Format
    precision: str
    pad: int
    eos: int
    start: int
    max_tokens: int


class ExportedModel(torch.nn.Module):
    """An exported model where a torch model is expected; it scores labels and does nothing else.

    Args:
        score_batch: Prompts of one batch -> scores, shape (batch, k).
        record: What export.json says.
        digest: Tells two exports apart.
    """

    def __init__(
        self, score_batch: Callable[[Sequence[Sequence[int]]], np.ndarray], record: ExportRecord, digest: str
    ) -> None:
        super().__init__()
        self.digest = digest
        self.precision = record.precision
        self.config = SimpleNamespace(
            pad_token_id=record.pad, eos_token_id=record.eos, decoder_start_token_id=record.start
        )
        self._score_batch = score_batch
        # Who asks a model for its device asks its first parameter.
        self.place = torch.nn.Parameter(torch.empty(0), requires_grad=False)

    def score(self, dataset: ReviewDataset, batch_size: int) -> np.ndarray:
        """Score every review of a dataset (see `scoring.score_dataset`).

        Args:
            dataset: n tokenised reviews.
            batch_size: Most reviews per batch.

        Returns:
            float64, shape (n, k): label scores, each review's up to a constant.
        """
        batches = scoring_batches(dataset.lengths, batch_size=batch_size)
        parts = [self._score_batch([dataset.prompts[int(i)].tolist() for i in indexes]) for indexes in batches]
        if not parts:
            return np.zeros((0, 0))
        scores = np.concatenate(parts).astype(np.float64)
        ordered = np.empty_like(scores)
        ordered[np.concatenate(batches)] = scores
        return ordered

    def forward(self, *_: object, **__: object) -> torch.Tensor:
        """Refuse: there are no logits, gradients or texts in an exported folder."""
        msg = "an exported folder only scores labels; load the run itself for explanations or free generation"
        raise ModelError(msg)

    def generate(self, *_: object, **__: object) -> torch.Tensor:
        """Refuse (see `forward`)."""
        return self.forward()


def read_export(folder: Path) -> ExportRecord:
    """Read what export.json says about how to run a folder.

    Args:
        folder: An exported folder.

    Returns:
        The record.

    Raises:
        ModelError: If the file is missing or damaged.
    """
    path = folder / EXPORT
    try:
        found: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        tokens = {name: int(found["tokens"][name]) for name in ("pad", "eos", "start")}
        record = ExportRecord(found["format"], found["precision"], **tokens, max_tokens=int(found["max_tokens"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        msg = f"{path}: expected the record that `rxtone export` writes; copy or export the folder again"
        raise ModelError(msg) from None
    if record.form not in get_args(Format):
        msg = f"{path}: expected the format {', '.join(get_args(Format))}, got {record.form}; upgrade rxtone"
        raise ModelError(msg)
    return record


def open_exported(
    folder: Path, record: ExportRecord, tokenizer: Tokenizer, label_tokens: LabelTokens, device: torch.device
) -> torch.nn.Module:
    """Open the weights of an exported folder.

    Args:
        folder: An exported folder.
        record: Its record.
        tokenizer: Its tokenizer.
        label_tokens: The k labels.
        device: Where to compute; the CPU for CTranslate2 and ONNX.

    Returns:
        A T5 model for `merged`, else an `ExportedModel`.

    Raises:
        ModelError: If the runtime is not installed or the files are damaged.
    """
    if record.form == "merged":
        return load_base(str(folder), precision=record.precision, device=device).model
    manifest = folder / MANIFEST
    digest = file_sha256(manifest) if manifest.is_file() else ""
    opener = _open_ctranslate2 if record.form == "ctranslate2" else _open_onnx
    try:
        score_batch = opener(folder, record, tokenizer, label_tokens)
    except ImportError:
        msg = f"{folder}: needs {record.form}, not installed here; install the extra `export`"
        raise ModelError(msg) from None
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        msg = f"{folder}: its weights cannot be read: {reason}; copy or export the folder again"
        raise ModelError(msg) from None
    return ExportedModel(score_batch, record, digest)


def vocabulary(tokenizer: Tokenizer, size: int) -> list[str]:
    """One token per id of a model's embedding, which often has more rows than the tokenizer has tokens."""
    tokens = (tokenizer.id_to_token(number) for number in range(size))
    return [token if token is not None else f"<unused_{number}>" for number, token in enumerate(tokens)]


def _open_onnx(
    folder: Path, record: ExportRecord, tokenizer: Tokenizer, label_tokens: LabelTokens
) -> Callable[[Sequence[Sequence[int]]], np.ndarray]:
    import onnxruntime

    threads = torch.get_num_threads()

    def session(count: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(str(folder / ONNX_FILE), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base but this
            raise ValueError(str(error)) from None

    # All threads on one review answer soonest, a review on each thread gets most done. Each way wants a pool of its
    # own, and with it the weights again. Not made when first needed: another export may lie in the folder by then.
    wide = session(threads)
    narrow = wide if threads == 1 else session(1)

    def score_piece(runner: Any, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        longest = max(len(prompt) for prompt in prompts)
        ids = np.full((len(prompts), longest), record.pad, np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        scores: np.ndarray = runner.run(["scores"], {"input_ids": ids, "attention_mask": mask})[0]
        return scores

    def score_batch(prompts: Sequence[Sequence[int]]) -> np.ndarray:
        # 8-bit activations share one scale per tensor: beside others a review would get other scores than alone.
        size = 1 if record.precision == "int8" else -(-len(prompts) // threads)
        pieces = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        if len(pieces) == 1:
            return score_piece(wide, pieces[0])
        with ThreadPoolExecutor(threads) as crew:
            return np.concatenate(list(crew.map(partial(score_piece, narrow), pieces)))

    return score_batch


def _open_ctranslate2(
    folder: Path, record: ExportRecord, tokenizer: Tokenizer, label_tokens: LabelTokens
) -> Callable[[Sequence[Sequence[int]]], np.ndarray]:
    import ctranslate2

    # Weights that the processor cannot compute with as they are compute in fp32. CTranslate2 takes int8 everywhere, but
    # without 8-bit dot products its sums saturate: probabilities went wrong by 0.66 on a CPU with AVX2 alone.
    native = {
        "fp32": True,
        "bf16": "bfloat16" in ctranslate2.get_supported_compute_types("cpu"),
        "int8": torch.cpu._is_vnni_supported(),
    }[record.precision]
    translator = ctranslate2.Translator(
        str(folder), device="cpu", inter_threads=1, intra_threads=torch.get_num_threads(),
        compute_type=COMPUTE_TYPES[record.precision] if native else "float32",
    )  # fmt: skip
    scored = label_tokens.scored()
    names = vocabulary(tokenizer, tokenizer.get_vocab_size())
    single = [tokens[0] for tokens in scored] if all(len(tokens) == 1 for tokens in scored) else None
    targets = [[names[token] for token in tokens] for tokens in label_tokens.ids]

    def score_batch(prompts: Sequence[Sequence[int]]) -> np.ndarray:
        sources = [[names[token] for token in prompt] for prompt in prompts]
        # A prompt of </s> alone is empty to translate_batch, which then answers without logits.
        if single is not None and all(len(prompt) > 1 for prompt in prompts):
            results = translator.translate_batch(
                sources, beam_size=1, max_decoding_length=1, max_input_length=0, return_logits_vocab=True
            )
            return np.stack([np.asarray(result.logits[0][0])[single] for result in results])
        repeated = [source for source in sources for _ in targets]
        results = translator.score_batch(repeated, targets * len(sources), max_input_length=0)
        # CTranslate2 scores </s> after every target; it counts only where it tells labels apart.
        sums = [sum(result.log_probs if label_tokens.with_eos else result.log_probs[:-1]) for result in results]
        return np.array(sums).reshape(len(sources), len(targets))

    return score_batch
