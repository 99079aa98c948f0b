"""An adapter folder is foreign input: its config is data, its weights are checked before memory is given.

PEFT's own reader takes whatever a config holds: a pattern that is a regular expression, a rank that does
not fit into memory, a module to import (`megatron_core`, `auto_mapping`). Here a config is a list of
allowed keys; all others must be off. The base that a config names is not read at all.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, cast

from peft import LoraConfig, TaskType
from safetensors import SafetensorError, safe_open

from rxtone.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CONFIG_BYTES = 1 << 20
MOST_TENSORS = 20_000
DTYPES = {"F64", "F32", "F16", "BF16"}
READ = {
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora", "use_dora",
    "init_lora_weights", "rank_pattern", "alpha_pattern",
}  # fmt: skip
UNUSED = {
    "base_model_name_or_path", "revision", "peft_version", "inference_mode", "megatron_core", "qalora_group_size",
}  # fmt: skip
"""Plain values that say nothing about the weights, and that nothing here acts on."""
_MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,199}")
_TENSOR = re.compile(r"base_model\.model\.[A-Za-z0-9_.]{1,300}\.lora_(?:A\.weight|B\.weight|magnitude_vector)")
_STARTS = re.compile(r"gaussian|pissa|pissa_niter_\d{1,3}|olora")


def read_adapter(folder: Path) -> LoraConfig:
    """Read and check an adapter folder without loading its weights.

    Args:
        folder: A PEFT folder.

    Returns:
        The config, made of checked values only.

    Raises:
        ModelError: If files are missing, pickled, not a LoRA adapter, or hold what they must not.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickled = name == WEIGHTS and (folder / "adapter_model.bin").exists()
            detail = "; a pickled adapter_model.bin is never loaded" if pickled else ""
            msg = f"{folder}: expected a PEFT adapter folder with {CONFIG} and {WEIGHTS}; {name} is missing{detail}"
            raise ModelError(msg)
    values = _read_json(folder / CONFIG)
    if values.get("peft_type") != "LORA":
        msg = f"{folder}: expected a LoRA adapter, got {values.get('peft_type')!s:.60}"
        raise ModelError(msg)
    config = _config(values, folder / CONFIG)
    _check_weights(folder, config)
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CONFIG_BYTES:
            msg = f"{path}: expected at most {CONFIG_BYTES:,} bytes, got {path.stat().st_size:,}; no adapter's config"
            raise ModelError(msg)
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError):
        values = None
    if not isinstance(values, dict):
        msg = f"{path}: not a JSON object; copy the adapter folder again"
        raise ModelError(msg)
    return values


def _config(values: dict[str, Any], path: Path) -> LoraConfig:
    for key, value in values.items():
        if key not in READ | UNUSED and value not in (None, False, {}, []):
            msg = f"{path}: {key[:60]}: expected it to be off, got {_short(value)}; rxtone reads plain LoRA only"
            raise ModelError(msg)

    def check(key: str, good: bool, expected: str) -> None:
        if not good:
            msg = f"{path}: {key}: expected {expected}, got {_short(values.get(key))}; copy the adapter folder again"
            raise ModelError(msg)

    rank, alpha, dropout = values.get("r"), values.get("lora_alpha"), values.get("lora_dropout", 0.0)
    # Tuples, not sets: what a config holds may have no hash.
    check("task_type", values.get("task_type") in ("SEQ_2_SEQ_LM", None), "SEQ_2_SEQ_LM")
    check("r", _whole(rank), "a whole number from 1")
    check("lora_alpha", _number(alpha, 1e6), "a positive number")
    check("lora_dropout", _number(dropout, 1.0, least=0.0), "a number from 0 to 1")
    check("bias", values.get("bias", "none") == "none", "none")
    for key in ("use_rslora", "use_dora"):
        check(key, isinstance(values.get(key, False), bool), "true or false")
    targets = values.get("target_modules")
    named = isinstance(targets, list) and 0 < len(targets) <= 2000 and all(map(_is_module, targets))
    check("target_modules", named or targets == "all-linear", "a list of module names")
    start = values.get("init_lora_weights", True)
    known = isinstance(start, bool) or (isinstance(start, str) and _STARTS.fullmatch(start) is not None)
    check("init_lora_weights", known, "true, false, gaussian, pissa or olora")
    patterns = {}
    for key, fits in (("rank_pattern", _whole), ("alpha_pattern", lambda value: _number(value, 1e6))):
        pattern = values.get(key) or {}
        plain = isinstance(pattern, dict) and all(_is_module(k) and fits(v) for k, v in pattern.items())
        check(key, plain, "module names with numbers")
        patterns[key] = pattern
    return LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, r=cast("int", rank), lora_alpha=cast("int", alpha), lora_dropout=dropout,
        target_modules=targets, bias="none",
        use_rslora=values.get("use_rslora", False), use_dora=values.get("use_dora", False),
        init_lora_weights=start, rank_pattern=patterns["rank_pattern"], alpha_pattern=patterns["alpha_pattern"],
        inference_mode=True,
    )  # fmt: skip


def _check_weights(folder: Path, config: LoraConfig) -> None:
    """Names, kinds and shapes from the file's header; the ranks decide how much memory PEFT will take."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as handle:
            names = list(handle.keys())
            slices = [handle.get_slice(name) for name in names[: MOST_TENSORS + 1]]
            kinds = [(name, part.get_dtype(), part.get_shape()) for name, part in zip(names, slices, strict=False)]
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        msg = f"{folder / WEIGHTS}: not a safetensors file: {reason}; copy the adapter folder again"
        raise ModelError(msg) from None
    ranks = set()
    for name, dtype, shape in kinds:
        if len(kinds) > MOST_TENSORS or not _TENSOR.fullmatch(name) or dtype not in DTYPES or len(shape) > 2:
            msg = (
                f"{folder / WEIGHTS}: expected LoRA matrices of floats, got {name[:120]!r} ({dtype}, "
                f"{len(shape)} dimensions, {len(kinds)} tensors); copy the adapter folder again"
            )
            raise ModelError(msg)
        if ".lora_A." in name:
            ranks.add(shape[0])
    said = {config.r, *(config.rank_pattern or {}).values()}
    if not ranks or not ranks <= said or max(said) > max(ranks):
        msg = (
            f"{folder}: its config and its weights do not fit together: r says {_ranks(said)}, the weights have "
            f"{_ranks(ranks)}; copy the adapter folder again"
        )
        raise ModelError(msg)


def _ranks(ranks: set[int]) -> str:
    return ", ".join(map(str, sorted(ranks)[:5])) or "none"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _number(value: Any, most: float, least: float = 1e-9) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and least <= value <= most


def _is_module(value: Any) -> bool:
    return isinstance(value, str) and _MODULE.fullmatch(value) is not None


def _short(value: Any) -> str:
    return repr(value)[:60]
