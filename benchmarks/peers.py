"""The peers, each configured as well as its own documentation allows.

Training: the loop of the common tutorials, and Seq2SeqTrainer in its two sensible precisions.
Inference: generate(), transformers without generate(), CTranslate2 in int8, ONNX Runtime in int8.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from benchmarks.common import EOS, LABEL_TOKENS, MAX_TOKENS, Prompts

_BATCH = 8


def load_base(folder: Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    """Load a base model.

    Args:
        folder: A transformers folder.
        dtype: Of the weights.
        device: Where they go.

    Returns:
        The model.
    """
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).to(device)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device  # type: ignore[no-any-return]


def with_adapter(model: Any) -> PeftModel:
    """Put the tutorial's adapter on a base: r 8 on q and v, alpha 16, dropout 0.1.

    Args:
        model: The base.

    Returns:
        The PEFT model.
    """
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["q", "v"]))


def pad(rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
    """Pad rows on the right.

    Args:
        rows: Token ids.
        width: Of the result.
        value: Filler.

    Returns:
        (rows, width) int64.
    """
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def tutorial_step(model: nn.Module, optimiser: torch.optim.Optimizer, prompts: Prompts, rows: Sequence[int]) -> float:
    """One step of the tutorial loop: fp32, padded to 256, labels padded to 10, AdamW, clipping at 1.

    Args:
        model: The PEFT model.
        optimiser: AdamW.
        prompts: All prompts.
        rows: Which of them.

    Returns:
        The loss.
    """
    device = _device(model)
    ids = pad([prompts.ids[i] for i in rows], MAX_TOKENS, 0).to(device)
    mask = (ids != 0).long()
    labels = pad([[*LABEL_TOKENS[prompts.labels[i]], EOS] for i in rows], 10, -100).to(device)
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return float(loss.detach())


def dropless_loss(model: nn.Module, prompts: Prompts) -> float:
    """Loss of the first batch in evaluation mode: what the contenders' models must agree on.

    Args:
        model: The PEFT model; its mode is kept.
        prompts: The reviews.

    Returns:
        The mean over label and end-of-sequence tokens.
    """
    rows = range(min(_BATCH, len(prompts.ids)))
    ids = pad([prompts.ids[i] for i in rows], MAX_TOKENS, 0).to(_device(model))
    labels = torch.tensor([[*LABEL_TOKENS[prompts.labels[i]], EOS] for i in rows]).to(_device(model))
    mode = model.training
    with torch.no_grad():
        loss = model.eval()(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
    model.train(mode)
    return float(loss)


def tutorial(
    folder: Path, prompts: Prompts, *, device: str = "cpu", size: int = _BATCH
) -> tuple[Callable[[], float], Callable[[], float]]:
    """The tutorial loop over all prompts, in the order given.

    Args:
        folder: The base.
        prompts: The reviews.
        device: Where it trains.
        size: Reviews per batch.

    Returns:
        A function that runs one epoch and returns its mean loss, and one that gives `dropless_loss`.
    """
    model = with_adapter(load_base(folder, torch.float32, device)).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)

    def epoch() -> float:
        starts = range(0, len(prompts.ids), size)
        rows = [range(s, min(s + size, len(prompts.ids))) for s in starts]
        return sum(tutorial_step(model, optimiser, prompts, r) for r in rows) / len(rows)

    return epoch, lambda: dropless_loss(model, prompts)


def trainer(
    folder: Path,
    prompts: Prompts,
    *,
    autocast: bool,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    size: int = _BATCH,
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Train with Seq2SeqTrainer: reviews grouped by length, dynamic padding to a multiple of 8, SDPA.

    Args:
        folder: The base.
        prompts: The reviews.
        autocast: True for fp32 weights under bf16 autocast, False for weights loaded in `dtype` with fp32
            adapters.
        dtype: Of weights without autocast.
        device: Where it trains.
        size: Reviews per batch.

    Returns:
        A function that trains one epoch and returns its mean loss, and one that gives `dropless_loss`.
    """
    model = with_adapter(load_base(folder, torch.float32 if autocast else dtype, device))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = [
        {"input_ids": list(ids), "labels": [*LABEL_TOKENS[label], EOS]}
        for ids, label in zip(prompts.ids, prompts.labels, strict=True)
    ]
    arguments = Seq2SeqTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        use_cpu=device == "cpu",
        bf16=autocast,
        per_device_train_batch_size=size,
        num_train_epochs=1,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=device != "cpu",
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model=model, pad_to_multiple_of=8)

    def epoch() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Its state is global and holds the precision of the last trainer.
            AcceleratorState._reset_state(reset_partial_state=True)
            run = Seq2SeqTrainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
            run.remove_callback(PrinterCallback)
            return float(run.train().training_loss)

    return epoch, lambda: dropless_loss(model, prompts)


def by_length(prompts: Prompts, size: int) -> list[list[int]]:
    """Batches of a fixed number of reviews, sorted by length.

    Args:
        prompts: The reviews.
        size: Reviews per batch.

    Returns:
        Review indices per batch.
    """
    order = sorted(range(len(prompts.ids)), key=lambda i: len(prompts.ids[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


def generated(folder: Path, prompts: Prompts, device: str = "cpu") -> Callable[[], list[int]]:
    """generate(), fp32, padded to 256, batches of 8 in the order given: the tutorials' way.

    Args:
        folder: The base.
        prompts: The reviews.
        device: Where it runs.

    Returns:
        A function that labels all reviews; -1 where the text is no label.
    """
    model = load_base(folder, torch.float32, device).eval()

    @torch.inference_mode()
    def run() -> list[int]:
        found = []
        for start in range(0, len(prompts.ids), _BATCH):
            ids = pad(prompts.ids[start : start + _BATCH], MAX_TOKENS, 0).to(device)
            out = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=3, do_sample=False)
            firsts = out[:, 1].tolist()
            found += [LABEL_TOKENS.index((token,)) if (token,) in LABEL_TOKENS else -1 for token in firsts]
        return found

    return run


def best_transformers(model: Any, prompts: Prompts, *, size: int = 16) -> Callable[[], list[int]]:
    """Merged weights, sorted by length, dynamic padding, one decoder step, inference mode, SDPA.

    Args:
        model: The base, in evaluation mode.
        prompts: The reviews.
        size: Reviews per batch.

    Returns:
        A function that labels all reviews.
    """
    tokens = [t for (t,) in LABEL_TOKENS]

    @torch.inference_mode()
    def run() -> list[int]:
        found = [0] * len(prompts.ids)
        for rows in by_length(prompts, size):
            ids = pad([prompts.ids[i] for i in rows], len(prompts.ids[rows[-1]]), 0).to(_device(model))
            start = torch.zeros(len(rows), 1, dtype=torch.int64, device=ids.device)
            mask = (ids != 0).long()
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=False).logits
            for row, label in zip(rows, logits[:, 0, tokens].argmax(1).tolist(), strict=True):
                found[row] = label
        return found

    return run


def ctranslate2(folder: Path, work: Path, prompts: Prompts, threads: int, workers: int = 1) -> Callable[[], list[int]]:
    """CTranslate2: converted to int8, beam 1, one token, sorted batches of 2,048 tokens by its own batcher.

    Args:
        folder: The base.
        work: Where the converted model is kept.
        prompts: The reviews.
        threads: For all workers.
        workers: Batches at a time; they share the tokens of a batch, so that each has work.

    Returns:
        A function that labels all reviews.
    """
    import ctranslate2 as ct2
    from ctranslate2.converters import TransformersConverter

    converted = work / f"{folder.name}-ctranslate2"
    if not (converted / "model.bin").is_file():
        TransformersConverter(str(folder)).convert(str(converted), quantization="int8", force=True)
    translator = ct2.Translator(
        str(converted), device="cpu", compute_type="int8", inter_threads=workers,
        intra_threads=threads // workers,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = [tokenizer.convert_ids_to_tokens(token) for (token,) in LABEL_TOKENS]

    def run() -> list[int]:
        results = translator.translate_batch(
            [tokenizer.convert_ids_to_tokens(list(ids)) for ids in prompts.ids],
            beam_size=1,
            max_decoding_length=1,
            max_batch_size=2048 // workers,
            batch_type="tokens",
            return_end_token=True,
            max_input_length=0,
        )
        heads = [r.hypotheses[0][0] if r.hypotheses[0] else "" for r in results]
        return [words.index(head) if head in words else -1 for head in heads]

    return run


class _OneStep(nn.Module):
    """Encoder and one decoder step down to the labels' logits, as an ONNX graph."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Labels' logits (reviews, labels)."""
        start = torch.zeros(ids.shape[0], 1, dtype=torch.int64)
        out = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=False)
        return out.logits[:, 0, [t for (t,) in LABEL_TOKENS]]  # type: ignore[no-any-return]


def onnx_model(folder: Path, work: Path) -> Path:
    """Export a base to ONNX and quantise its matrix products dynamically to int8, per channel.

    Args:
        folder: The base.
        work: Where the graphs are kept.

    Returns:
        The int8 graph.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = work / f"{folder.name}-int8.onnx"
    if small.is_file():
        return small
    full = work / f"{folder.name}.onnx"
    ids = torch.randint(2, 1000, (2, 20))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _OneStep(load_base(folder, torch.float32).eval()),
            (ids, torch.ones_like(ids)),
            str(full),
            dynamo=False,
            input_names=["ids", "mask"],
            output_names=["logits"],
            dynamic_axes={"ids": {0: "b", 1: "s"}, "mask": {0: "b", 1: "s"}, "logits": {0: "b"}},
            opset_version=17,
        )
    quantize_dynamic(
        full, small, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
    )
    full.unlink()
    return small


def onnx_runtime(folder: Path, work: Path, prompts: Prompts, threads: int, workers: int = 1) -> Callable[[], list[int]]:
    """ONNX Runtime: dynamic int8, all graph optimisations, sorted batches of 8, one decoder step.

    Args:
        folder: The base.
        work: Where the graphs are kept.
        prompts: The reviews.
        threads: For all workers.
        workers: Batches at a time, each on a thread of its own.

    Returns:
        A function that labels all reviews.
    """
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads // workers
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(str(onnx_model(folder, work)), settings, providers=["CPUExecutionProvider"])

    def run() -> list[int]:
        found = [0] * len(prompts.ids)

        def label(rows: Sequence[int]) -> None:
            ids = pad([prompts.ids[i] for i in rows], len(prompts.ids[rows[-1]]), 0).numpy()
            (logits,) = session.run(None, {"ids": ids, "mask": (ids != 0).astype("int64")})
            for row, best in zip(rows, logits.argmax(1).tolist(), strict=True):
                found[row] = int(best)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(label, reversed(list(by_length(prompts, 8)))))
        return found

    return run
