"""T5 with one label score per review as an ONNX graph, written node by node.

Written by hand rather than traced: no exporter has to follow transformers' masks and caches, the file holds
only what a score needs, and the names in it are ours. Where every label is one token, the decoder runs on its
start token alone and the head keeps the labels' rows only, so a score is a logit: the log-probability up to a
constant of the review, which the softmax over the labels cancels. Longer labels stand side by side in one
decoder pass; a constant mask keeps each to itself.

Cross-attention is folded, as in the engine: q (H W_k)^T = (q W_k^T) H^T and P (H W_v) = (P H) W_v, so that the few rows
of the decoder meet the maps of keys and values, and not the many of the encoder: one product in seven of Flan-T5-base.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rxtone.errors import ModelError

if TYPE_CHECKING:
    import onnx
    from transformers import T5ForConditionalGeneration

    from rxtone.model.scoring import LabelTokens

OPSET = 20  # the first with Gelu
IR_VERSION = 10
HEAD = "head"
"""Name of the node that makes logits; it stays fp32 under int8, since it is small and decides."""
FOLDED = ".folded"
"""How names of the products end that fold cross-attention; fp32, too: their weights have a matrix per head."""
BLOCKED = float(np.finfo(np.float32).min)
ACTIVATIONS = ("relu", "gelu_new", "gelu", "silu")


# Below, the model and its modules are Any: nn.Module types every attribute as Tensor or Module.


class _Graph:
    """Nodes and weights in the order in which they are added."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._known: dict[str, str] = {}

    def weight(self, name: str, values: np.ndarray | np.generic) -> str:
        if name not in self._known:
            self._known[name] = name
            self.weights.append(self._numpy.from_array(np.ascontiguousarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        return self.weight(f"ints_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        out = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(kind, list(inputs), [out], name=name or out, **attributes))
        return out


def build_label_graph(model: T5ForConditionalGeneration, label_tokens: LabelTokens, max_tokens: int) -> onnx.ModelProto:
    """Write the graph.

    Args:
        model: A merged model in fp32 on the CPU.
        label_tokens: The k labels.
        max_tokens: The longest prompt that the graph accepts.

    Returns:
        A model with inputs `input_ids` and `attention_mask`, int64 of shape (batch, length), and the output
        `scores`, float32 of shape (batch, k).

    Raises:
        ModelError: If the model's activation has no ONNX counterpart here.
    """
    import onnx
    from onnx import TensorProto, helper

    if model.config.dense_act_fn not in ACTIVATIONS:
        msg = f"onnx: expected the activation {', '.join(ACTIVATIONS)}, this base has {model.config.dense_act_fn}"
        raise ModelError(msg)
    graph = _Graph()
    states, mask = _encode(graph, model, max_tokens)
    hidden, targets, owners = _decode(graph, model, label_tokens, states, mask)
    scores = _score(graph, model, hidden, targets, owners)
    graph.nodes.append(helper.make_node("Identity", [scores], ["scores"], name="scores"))
    shape = ["batch", "length"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(label_tokens.ids)])
    proto = helper.make_graph(graph.nodes, "label_scores", inputs, [output], graph.weights)
    result = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="rxtone")
    result.ir_version = IR_VERSION
    assert isinstance(result, onnx.ModelProto)
    return result


def _encode(graph: _Graph, model: Any, max_tokens: int) -> tuple[str, str]:
    """Encoder states (batch, length, d) and the additive mask (batch, 1, 1, length)."""
    hidden = graph.op("Gather", graph.weight("embedding", _array(model.shared.weight)), "input_ids")
    real = graph.op("Cast", "attention_mask", to=1)
    padded = graph.op("Sub", graph.weight("one", np.float32(1)), real)
    mask = graph.op("Mul", padded, graph.weight("blocked", np.float32(BLOCKED)))
    mask = graph.op("Unsqueeze", mask, graph.ints(1, 2))
    first = model.encoder.block[0].layer[0].SelfAttention
    # One value per head and distance; a position bias of shape (heads, length, length) is gathered from it.
    distances = torch.arange(-(max_tokens - 1), max_tokens)
    table = graph.weight("encoder_bias", _bias(first, distances, bidirectional=True))
    length = graph.op("Gather", graph.op("Shape", "input_ids"), graph.weight("index_1", np.int64(1)))
    zero, step = graph.weight("zero", np.int64(0)), graph.weight("step", np.int64(1))
    positions = graph.op("Range", zero, length, step)
    distance = graph.op(
        "Sub", graph.op("Unsqueeze", positions, graph.ints(0)), graph.op("Unsqueeze", positions, graph.ints(1))
    )
    shifted = graph.op("Add", distance, graph.weight("shift", np.int64(max_tokens - 1)))
    bias = graph.op("Add", graph.op("Unsqueeze", graph.op("Gather", table, shifted, axis=1), graph.ints(0)), mask)
    for number, block in enumerate(model.encoder.block):
        name = f"encoder.{number}"
        hidden = _attend(graph, model, f"{name}.self", block.layer[0], hidden, bias)
        hidden = _feed_forward(graph, model, f"{name}.ff", block.layer[1], hidden)
    return _normalise(graph, "encoder.norm", model.encoder.final_layer_norm, hidden), mask


def _decode(
    graph: _Graph, model: Any, label_tokens: LabelTokens, states: str, mask: str
) -> tuple[str, list[tuple[int, ...]], list[int]]:
    """Decoder states (batch, positions, d), the tokens that each position is to predict, and its label."""
    scored = label_tokens.scored()
    start = int(model.config.decoder_start_token_id)
    if all(len(tokens) == 1 for tokens in scored):
        inputs, owners, places = [start], [0], [0]
        targets = [tuple(tokens[0] for tokens in scored)]
    else:
        inputs = [token for tokens in scored for token in (start, *tokens[:-1])]
        owners = [label for label, tokens in enumerate(scored) for _ in tokens]
        places = [place for tokens in scored for place in range(len(tokens))]
        targets = [(token,) for tokens in scored for token in tokens]
    embedded = _array(model.shared.weight)[inputs][None]
    batch = graph.op("Slice", graph.op("Shape", "input_ids"), graph.ints(0), graph.ints(1))
    shape = graph.op("Concat", batch, graph.ints(len(inputs), embedded.shape[-1]), axis=0)
    hidden = graph.op("Expand", graph.weight("decoder_start", embedded), shape)
    at = torch.tensor(places)
    own = torch.tensor(owners)
    distance = at[None, :] - at[:, None]
    bias = _bias(model.decoder.block[0].layer[0].SelfAttention, distance, bidirectional=False)
    allowed = ((own[None, :] == own[:, None]) & (distance <= 0)).numpy()
    self_bias = graph.weight("decoder_bias", np.where(allowed, bias, np.float32(BLOCKED))[None])
    turned = graph.op("Transpose", states, perm=[0, 2, 1])
    for number, block in enumerate(model.decoder.block):
        name = f"decoder.{number}"
        hidden = _attend(graph, model, f"{name}.self", block.layer[0], hidden, self_bias)
        hidden = _cross(graph, model, f"{name}.cross", block.layer[1], hidden, (states, turned), mask, len(inputs))
        hidden = _feed_forward(graph, model, f"{name}.ff", block.layer[2], hidden)
    return _normalise(graph, "decoder.norm", model.decoder.final_layer_norm, hidden), targets, owners


def _score(graph: _Graph, model: Any, hidden: str, targets: list[tuple[int, ...]], owners: list[int]) -> str:
    """Label scores (batch, k)."""
    if model.config.scale_decoder_outputs:
        scale = np.float32(1 / math.sqrt(model.config.d_model))
        hidden = graph.op("Mul", hidden, graph.weight("output_scale", scale))
    head = _array(model.lm_head.weight)
    if len(targets) == 1:
        logits = graph.op("MatMul", hidden, graph.weight("head", head[list(targets[0])].T), name=HEAD)
        return graph.op("Squeeze", logits, graph.ints(1))
    vocabulary = head.shape[0]
    logits = graph.op("MatMul", hidden, graph.weight("head", head.T), name=HEAD)
    chances = graph.op("Reshape", graph.op("LogSoftmax", logits, axis=-1), graph.ints(0, -1))
    flat = [position * vocabulary + token for position, (token,) in enumerate(targets)]
    chosen = graph.op("Gather", chances, graph.weight("targets", np.array(flat, np.int64)), axis=1)
    sums = np.equal.outer(owners, np.unique(owners)).astype(np.float32)
    return graph.op("MatMul", chosen, graph.weight("sums", sums), name="sums")


def _attend(graph: _Graph, model: Any, name: str, layer: Any, hidden: str, bias: str) -> str:
    """Self-attention with its residual; T5 does not scale the products of queries and keys."""
    attention = layer.SelfAttention
    heads, width = model.config.num_heads, model.config.d_kv
    normal = _normalise(graph, f"{name}.norm", layer.layer_norm, hidden)
    split = graph.ints(0, 0, heads, width)
    parts = []
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        flat = _linear(graph, f"{name}.{part}", getattr(attention, part), normal)
        parts.append(graph.op("Transpose", graph.op("Reshape", flat, split), perm=order))
    query, key, value = parts
    weights = graph.op("Softmax", graph.op("Add", graph.op("MatMul", query, key), bias), axis=-1)
    return _joined(graph, name, attention, hidden, graph.op("MatMul", weights, value), heads * width)


def _cross(
    graph: _Graph, model: Any, name: str, layer: Any, hidden: str,
    states: tuple[str, str], mask: str, positions: int,
) -> str:  # fmt: skip
    """Folded cross-attention with its residual; `states` are (batch, length, d) and (batch, d, length)."""
    attention = layer.EncDecAttention
    heads, width = model.config.num_heads, model.config.d_kv
    normal = _normalise(graph, f"{name}.norm", layer.layer_norm, hidden)
    query = _linear(graph, f"{name}.q", attention.q, normal)
    query = graph.op("Transpose", graph.op("Reshape", query, graph.ints(0, 0, heads, width)), perm=[0, 2, 1, 3])
    keys = _array(attention.k.weight).reshape(heads, width, -1)
    values = _array(attention.v.weight).reshape(heads, width, -1).transpose(0, 2, 1)
    by_head, by_review = graph.ints(0, heads, positions, -1), graph.ints(0, heads * positions, -1)
    # (batch, heads, positions, d), then the heads beside the positions, so that a review's states are read once.
    folded = graph.op("MatMul", query, graph.weight(f"{name}.k", keys), name=f"{name}.k{FOLDED}")
    scores = graph.op("MatMul", graph.op("Reshape", folded, by_review), states[1])
    weights = graph.op("Softmax", graph.op("Add", graph.op("Reshape", scores, by_head), mask), axis=-1)
    sums = graph.op("MatMul", graph.op("Reshape", weights, by_review), states[0])
    mixed = graph.op(
        "MatMul", graph.op("Reshape", sums, by_head), graph.weight(f"{name}.v", values), name=f"{name}.v{FOLDED}"
    )
    return _joined(graph, name, attention, hidden, mixed, heads * width)


def _joined(graph: _Graph, name: str, attention: Any, hidden: str, mixed: str, width: int) -> str:
    """Heads side by side, through the output map, onto the residual."""
    flat = graph.op("Reshape", graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), graph.ints(0, 0, width))
    return graph.op("Add", hidden, _linear(graph, f"{name}.o", attention.o, flat))


def _feed_forward(graph: _Graph, model: Any, name: str, layer: Any, hidden: str) -> str:
    dense = layer.DenseReluDense
    normal = _normalise(graph, f"{name}.norm", layer.layer_norm, hidden)
    kind = model.config.dense_act_fn
    if model.config.is_gated_act:
        gate = _activate(graph, kind, _linear(graph, f"{name}.wi_0", dense.wi_0, normal))
        inner = graph.op("Mul", gate, _linear(graph, f"{name}.wi_1", dense.wi_1, normal))
    else:
        inner = _activate(graph, kind, _linear(graph, f"{name}.wi", dense.wi, normal))
    return graph.op("Add", hidden, _linear(graph, f"{name}.wo", dense.wo, inner))


def _activate(graph: _Graph, kind: str, given: str) -> str:
    if kind == "relu":
        return graph.op("Relu", given)
    if kind == "silu":
        return graph.op("Mul", given, graph.op("Sigmoid", given))
    return graph.op("Gelu", given, approximate="tanh" if kind == "gelu_new" else "none")


def _normalise(graph: _Graph, name: str, norm: Any, hidden: str) -> str:
    """T5's layer norm: scaled by the root mean square, no shift."""
    mean = graph.op("ReduceMean", graph.op("Mul", hidden, hidden), graph.ints(-1), keepdims=1)
    epsilon = graph.weight("epsilon", np.float32(norm.variance_epsilon))
    root = graph.op("Sqrt", graph.op("Add", mean, epsilon))
    return graph.op("Mul", graph.op("Div", hidden, root), graph.weight(name, _array(norm.weight)))


def _linear(graph: _Graph, name: str, linear: Any, given: str) -> str:
    return graph.op("MatMul", given, graph.weight(name, _array(linear.weight).T), name=name)


def _bias(attention: Any, distance: torch.Tensor, *, bidirectional: bool) -> np.ndarray:
    """Relative position bias (heads, *distance.shape), by the model's own buckets."""
    buckets = attention._relative_position_bucket(
        distance, bidirectional=bidirectional, num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )  # fmt: skip
    values = _array(attention.relative_attention_bias.weight[buckets])
    return np.moveaxis(values, -1, 0)


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
