"""The T5-family base: from the hub, a folder or the package; its identity and its precision.

Weights are safetensors only and remote code is never run. With everything local there is no network
call at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, MT5Config, T5Config, T5ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from rxtone import config as settings
from rxtone.errors import ModelError, RecipeError
from rxtone.paths import given_path
from rxtone.run import file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHAPE_KEYS = (
    "model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
    "relative_attention_num_buckets", "relative_attention_max_distance", "feed_forward_proj",
    "layer_norm_epsilon", "pad_token_id", "eos_token_id", "decoder_start_token_id",
)  # fmt: skip
"""The parts of a T5 config that decide whether an adapter fits and means the same."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")
PUBLISHED = re.compile(r"(?:google|google-t5)/[A-Za-z0-9][\w.-]{0,95}")
"""Where T5 and Flan-T5 come from."""


@dataclass(frozen=True)
class BaseIdentity:
    """Which base an adapter belongs to.

    Attributes:
        name: Hub id, folder, or `bundled`.
        revision: Commit on the hub; None for a folder.
        config_sha256: Hash of the config's `SHAPE_KEYS`.
        weights_sha256: Hash over the weight files of a folder; None where `revision` pins them.
    """

    name: str
    revision: str | None
    config_sha256: str
    weights_sha256: str | None

    def to_json(self) -> dict[str, str | None]:
        """Plain values for classifier.json."""
        return asdict(self)


@dataclass(frozen=True)
class Base:
    """A loaded base.

    Attributes:
        model: The model, in evaluation mode, without gradients.
        tokenizer: Its fast tokenizer, without padding or truncation.
        identity: Which base this is.
        precision: `fp32`, `bf16`, `fp16`, `8bit` or `4bit`: how the frozen weights are held.
    """

    model: T5ForConditionalGeneration
    tokenizer: Tokenizer
    identity: BaseIdentity
    precision: str


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTISED = ("8bit", "4bit")


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def native_bf16(device: torch.device) -> bool:
    """Whether the device computes bf16 natively.

    `torch.cuda.is_bf16_supported` also counts emulation (a T4 says yes), so the compute capability
    is asked for instead.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` -> `bf16` where native, else `fp32`; a precision by name as it is.

    Args:
        precision: `auto`, `fp32`, `bf16`, `fp16`, or a run's own `8bit` or `4bit`.
        device: Where it is to compute.

    Returns:
        All but `auto`.

    Raises:
        RecipeError: If there is no such precision.
    """
    if precision in DTYPES or precision in QUANTISED:
        return precision
    if precision != "auto":
        msg = f"precision: expected auto, {', '.join(DTYPES)}, got {precision[:40]!r}"
        raise RecipeError(msg)
    return "bf16" if native_bf16(device) else "fp32"


def load_base(
    name: str, *, revision: str | None = None, precision: str = "auto", device: torch.device | None = None
) -> Base:
    """Load a T5-family base.

    Args:
        name: Hub id, local folder, or `bundled`.
        revision: Commit, tag or branch; hub only.
        precision: `auto`, `fp32`, `bf16`, `fp16`, or `8bit` or `4bit` through bitsandbytes.
        device: Where the weights go; None chooses.

    Returns:
        The base with frozen weights.

    Raises:
        ModelError: If the base cannot be found, is no T5, or is damaged.
    """
    device = device or default_device()
    if precision in QUANTISED:
        from rxtone.model.quantised import load_quantised  # an extra

        identity = identify(name, revision)
        source = str(_folder(name) or name)
        config = _read_config(source, identity.revision, name)
        model = load_quantised(name, source, config, identity.revision, precision, device, local=_is_local(name))
        return Base(model, load_tokenizer(name, identity.revision), identity, precision)
    precision = resolve_precision(precision, device)
    if precision == "fp16" and device.type == "cpu":
        msg = "model.precision: fp16 is for GPUs; on the CPU choose bf16 or fp32 (auto does)"
        raise RecipeError(msg)
    identity = identify(name, revision)
    source = str(_folder(name) or name)
    revision = identity.revision
    config = _read_config(source, revision, name)
    try:
        with warnings.catch_warnings(), _no_bars():
            warnings.simplefilter("ignore")
            model = T5ForConditionalGeneration.from_pretrained(
                source, config=config, revision=revision or "main", dtype=DTYPES[precision], use_safetensors=True,
                local_files_only=_is_local(name),
            )  # fmt: skip
    except Exception as error:  # many types reach us here, down to safetensors' own and urllib's
        raise ModelError(_load_message(name, error)) from error
    model.to(device)  # type: ignore[arg-type]  # transformers' stub of nn.Module.to
    model.requires_grad_(requires_grad=False)
    model.eval()
    return Base(model, load_tokenizer(name, revision), identity, precision)


def identify(name: str, revision: str | None = None) -> BaseIdentity:
    """Find out which base a name means, without loading its weights.

    Args:
        name: Hub id, local folder, or `bundled`.
        revision: Commit, tag or branch; hub only.

    Returns:
        Its identity, with the revision resolved to a commit where the base is on the hub.

    Raises:
        ModelError: If there is no such base or it is no T5.
    """
    folder = _folder(name)
    if folder is not None:
        if not (folder / "config.json").is_file():
            msg = f"base {name}: expected a model folder with config.json, tokenizer.json and *.safetensors"
            raise ModelError(msg)
        config = _read_config(str(folder), None, name)
        return BaseIdentity(name, None, _config_hash(config), _weights_hash(folder, name))
    config = _read_config(name, revision, name)
    commit = getattr(config, "_commit_hash", None)
    return BaseIdentity(name, commit or revision, _config_hash(config), None)


def load_tokenizer(name: str, revision: str | None = None, *, local: bool = False) -> Tokenizer:
    """The fast tokenizer of a base, or of a folder that holds one.

    Args:
        name: Hub id, local folder, or `bundled`.
        revision: Commit on the hub.
        local: Ask no hub: what is not on this machine is not there. (transformers' own `local_files_only` still
            asks it for names of programs to put into a header.)

    Returns:
        The tokenizer, adding </s> and neither padding nor cutting.

    Raises:
        ModelError: If there is none.
    """
    folder = _folder(name)
    if folder is not None and not any((folder / file).is_file() for file in ("tokenizer.json", "spiece.model")):
        # transformers would make up an empty tokenizer
        msg = f"base {name}: expected tokenizer.json or spiece.model beside the weights; copy the tokenizer there"
        raise ModelError(msg)
    if local and folder is None:
        file = try_to_load_from_cache(name, "tokenizer.json", revision=revision)
        if not isinstance(file, str):
            msg = f"base {name}: its tokenizer is not on this machine; name a base that is, such as bundled"
            raise ModelError(msg)
        folder = Path(file).parent
    try:
        if folder is not None and (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            loaded = AutoTokenizer.from_pretrained(
                str(folder or name), revision=revision or "main", local_files_only=_is_local(name)
            )
            tokenizer = loaded.backend_tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(_load_message(name, error, part="tokenizer")) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def check_identity(expected: Mapping[str, Any], actual: BaseIdentity) -> None:
    """Refuse a base that is not the one an adapter was trained on.

    Args:
        expected: `BaseIdentity.to_json()` as stored with the adapter.
        actual: The base at hand.

    Raises:
        ModelError: If config, revision or weights differ.
    """
    for key, what in (("config_sha256", "config"), ("revision", "revision"), ("weights_sha256", "weights")):
        want, got = expected.get(key), getattr(actual, key)
        if want is not None and got is not None and want != got:
            msg = (
                f"the adapter was trained on {expected.get('name')} ({what} {want[:12]}), "
                f"but the base {actual.name} has {what} {got[:12]}; pass the original base with --base"
            )
            raise ModelError(msg)


def check_foreign_base(name: str, adapter: Path) -> None:
    """Refuse to fetch what only an adapter folder asks for: it may come from anywhere.

    Args:
        name: The base that the folder names.
        adapter: That folder, for the message.

    Raises:
        ModelError: If the base is not on this machine and not one that the makers of T5 publish.
    """
    if _folder(name) is not None or PUBLISHED.fullmatch(name) or settings.offline():
        return
    if not HUB_ID.fullmatch(name) or not isinstance(try_to_load_from_cache(name, "config.json"), str):
        msg = (
            f"{adapter}: it names the base {name[:100]!r}, which is not on this machine; an adapter alone never makes "
            f"rxtone download. If you trust it, say so: --base {name[:100]}"
        )
        raise ModelError(msg)


def _folder(name: str) -> Path | None:
    if name == "bundled":
        folder = Path(str(resources.files("rxtone") / "bundled" / "base"))
        if not (folder / "config.json").is_file():
            msg = "base bundled: its files are not in this installation; reinstall rxtone, or name another model.base"
            raise ModelError(msg)
        return folder
    path = given_path(name, ModelError)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        msg = f"base {name}: expected a model folder, there is none at this path"
        raise ModelError(msg)
    return None


def _is_local(name: str) -> bool:
    return _folder(name) is not None or settings.offline()


def _read_config(source: str, revision: str | None, name: str) -> T5Config:
    try:
        config = AutoConfig.from_pretrained(source, revision=revision or "main", local_files_only=_is_local(name))
    except Exception as error:
        raise ModelError(_load_message(name, error, part="config")) from error
    if isinstance(config, MT5Config):
        # The same network under another name, but for one thing: mT5 never scales the outputs of its decoder.
        config = T5Config.from_dict(config.to_dict() | {"model_type": "t5", "tie_word_embeddings": False})
    if not isinstance(config, T5Config):
        msg = (
            f"base {name}: expected a T5-family encoder-decoder (t5, flan-t5, mt5), got {config.model_type}; "
            "choose a T5 base such as google/flan-t5-base"
        )
        raise ModelError(msg)
    return config


def _config_hash(config: T5Config) -> str:
    shape = {key: getattr(config, key, None) for key in SHAPE_KEYS}
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def _weights_hash(folder: Path, name: str) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        other = any(folder.glob("*.bin"))
        detail = "only pickled .bin weights, which are never loaded" if other else "no weights"
        msg = f"base {name}: expected *.safetensors, found {detail}; save the model again with transformers 5"
        raise ModelError(msg)
    return hashlib.sha256("".join(file_sha256(path) for path in files).encode()).hexdigest()


def _load_message(name: str, error: Exception, part: str = "model") -> str:
    reason = " ".join(str(error).split())[:300]
    if _folder(name) is not None:
        return f"base {name}: its {part} cannot be read: {reason}; copy or download the folder again"
    where = (
        "HF_HUB_OFFLINE is set and it is not in the local cache" if settings.offline() else "the hub did not give it"
    )
    return (
        f"base {name}: its {part} cannot be loaded ({where}): {reason}. With no network, name a local folder "
        "(--set model.base=PATH) or use the bundled one (--set model.base=bundled)"
    )


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Loading takes a second, and a library draws nothing on its caller's terminal; the caller's choice comes back."""
    drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            transformers_logging.enable_progress_bar()


def quiet_transformers() -> None:
    """Keep transformers' progress bars and notices out of a command's output."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def token_id(model: torch.nn.Module, name: str) -> int:
    """A special token's id from a model's config, such as `eos_token_id`."""
    return int(getattr(model.config, name))
