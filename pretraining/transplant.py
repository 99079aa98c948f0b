"""Grows the student's encoder out of the teacher's, one layer at a time.

BERT normalises after each residual sum, with a mean, a bias and a gain; T5 normalises before each sub-layer, by the
root mean square alone, and has no biases. No exact translation exists, so each student matrix is the least-squares
answer, over sample tokens, to: which matrix on the student's own stream gives the teacher's pre-activation? Centred
streams leave the direction of ones free; it holds a constant, and through it the biases are represented.
"""

import torch
from torch import Tensor
from transformers import BertModel, T5ForConditionalGeneration

from pretraining.student import attention_bias, rms_norm
from pretraining.teacher import TeacherStates, layer_states


def _solve(inputs: Tensor, targets: Tensor, prior: Tensor | None = None, ridge: float = 1e-3) -> Tensor:
    """Ridge regression towards a prior: argmin |inputs W - targets|^2 + ridge tr |W - prior|^2, in float64."""
    x, y = inputs.double(), targets.double()
    start = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64) if prior is None else prior.double()
    gram = x.T @ x
    gram += torch.eye(x.shape[1], dtype=torch.float64) * (ridge * gram.diagonal().mean())
    return start + torch.linalg.solve(gram, x.T @ (y - x @ start))


def _stream_map(states: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
    """The linear map (and offset, not applied to residual branches) from teacher states to the student's stream."""
    ones = torch.ones(states.shape[0], 1)
    centred = stream - stream.mean(-1, keepdim=True)
    solution = _solve(torch.cat([states, ones], 1), centred, ridge=1e-5)
    return solution[:-1].float(), solution[-1:].float()


def _explained(found: Tensor, wanted: Tensor) -> float:
    return float(1 - (found - wanted).pow(2).sum() / (wanted - wanted.mean(0)).pow(2).sum())


@torch.no_grad()
def embed_from_teacher(teacher: BertModel, ids: list[int], constant: float = 0.5) -> Tensor:
    """The teacher's word vectors as its first layer norm leaves them at an average position, centred.

    Args:
        teacher: The teacher, float32.
        ids: Teacher id of each student id.
        constant: Size of the constant along the direction of ones, relative to the vectors' root mean square.

    Returns:
        Student embeddings, (vocabulary, d).
    """
    table = teacher.embeddings
    words = table.word_embeddings.weight[torch.tensor(ids)]
    vectors = table.LayerNorm(
        words + table.position_embeddings.weight[1:97].mean(0) + table.token_type_embeddings.weight[0]
    )
    vectors = vectors - vectors.mean(-1, keepdim=True)
    return vectors + constant * vectors.pow(2).mean().sqrt()


@torch.no_grad()
def _fit_layer(
    teacher: BertModel, model: T5ForConditionalGeneration, index: int, stream: Tensor, states: TeacherStates,
    mask: Tensor, log: dict[str, float],
) -> Tensor:  # fmt: skip
    block, source = model.encoder.block[index], teacher.encoder.layer[index]
    attention, feed_forward = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
    heads, real = model.config.num_heads, mask.bool()
    normed = rms_norm(stream, block.layer[0].layer_norm.weight)
    known = states.inputs[real]
    own = source.attention.self
    scale = (known.shape[1] // heads) ** -0.5
    for module, dense, factor in (
        (attention.q, own.query, scale),
        (attention.k, own.key, 1.0),
        (attention.v, own.value, 1.0),
    ):
        wanted = dense(known) * factor
        module.weight.copy_(_solve(normed[real], wanted).T)
        log[f"layer{index}.{'qkv'[(attention.q, attention.k, attention.v).index(module)]}"] = _explained(
            module(normed[real]), wanted
        )
    batch, length, width = stream.shape
    query, key, value = (
        m(normed).view(batch, length, heads, -1).transpose(1, 2)
        for m in (attention.q, attention.k, attention.v)
    )
    weights = torch.softmax(query @ key.transpose(-1, -2) + attention_bias(model, mask), -1)
    context = (weights @ value).transpose(1, 2).reshape(batch, length, width)
    to_stream, _ = _stream_map(known, stream[real])
    wanted = states.attention[real] @ to_stream
    attention.o.weight.copy_(
        _solve(context[real], wanted, source.attention.output.dense.weight.T @ to_stream, 1e-2).T
    )
    log[f"layer{index}.o"] = _explained(attention.o(context[real]), wanted)
    stream = stream + attention.o(context)
    normed = rms_norm(stream, block.layer[1].layer_norm.weight)
    middle = states.middle[real]
    wanted = source.intermediate.dense(middle)
    feed_forward.wi.weight.copy_(_solve(normed[real], wanted).T)
    log[f"layer{index}.wi"] = _explained(feed_forward.wi(normed[real]), wanted)
    inner = feed_forward.act(feed_forward.wi(normed))
    to_stream, _ = _stream_map(middle, stream[real])
    wanted = states.feed_forward[real] @ to_stream
    feed_forward.wo.weight.copy_(
        _solve(inner[real], wanted, source.output.dense.weight.T @ to_stream, 1e-2).T
    )
    log[f"layer{index}.wo"] = _explained(feed_forward.wo(inner[real]), wanted)
    return stream + feed_forward.wo(inner)


@torch.no_grad()
def transplant(
    teacher: BertModel, model: T5ForConditionalGeneration, ids: Tensor, mask: Tensor, to_teacher: list[int]
) -> tuple[dict[str, float], list[Tensor]]:
    """Fits the student's encoder to the teacher on sample tokens; changes `model` in place.

    Args:
        teacher: The teacher, float32.
        model: The student.
        ids: Student ids of sample texts, (b, s); 20,000 tokens are enough.
        mask: 1 for a token, 0 for padding, (b, s).
        to_teacher: Teacher id of each student id.

    Returns:
        The explained variance of each fitted matrix, and for each layer boundary (embeddings first, the normed output
        last) the matrix (d, d) from the student's normed stream to the teacher's states.
    """
    model.shared.weight.copy_(embed_from_teacher(teacher, to_teacher))
    model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()
    states = layer_states(teacher, torch.tensor(to_teacher)[ids], mask)
    final = teacher.encoder.layer[-1]
    stream, real, log, maps = model.shared(ids), mask.bool(), {}, []
    unit = torch.ones(stream.shape[-1])
    for index, layer in enumerate(states):
        maps.append(_solve(rms_norm(stream, unit)[real], layer.inputs[real]).float())
        log[f"layer{index}.input"] = _explained(rms_norm(stream, unit)[real] @ maps[-1], layer.inputs[real])
        stream = _fit_layer(teacher, model, index, stream, layer, mask, log)
    output = final.output.LayerNorm(states[-1].middle + states[-1].feed_forward)
    maps.append(_solve(rms_norm(stream, unit)[real], output[real]).float())
    log["output"] = _explained(rms_norm(stream, unit)[real] @ maps[-1], output[real])
    log["output_rms"] = float(stream[real].pow(2).mean().sqrt())
    return log, maps
