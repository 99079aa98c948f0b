"""The fast forward of a T5 classifier, with the numbers of the reference.

Given a loaded transformers T5 (plain, or with PEFT LoRA adapters), the engine computes log-probabilities of
target tokens and scores of labels from the modules' own weights, with gradients for the adapters. What it
leaves out, in short; each file holds its own derivation:

* **Padding** (``layout``). Norms, linear maps and the feed-forward layer act on each token alone, f(X)_i = f(x_i),
  so they run on the real tokens only, laid flat. Attention needs neighbours: softmax over the real keys equals
  softmax over padded keys with bias -inf.
* **One bias** (``layout``). All layers of a T5 stack share the first one's position bias, b(j - i): it is built once a
  batch from 2 L - 1 numbers, not once a layer from L * L.
* **Keys and values of cross-attention** (``decoder``). With H the encoder's rows, q (H Wk^T)^T = (q Wk) H^T and
  P (H Wv^T) = (P H) Wv^T: for a label's one or two positions that is 4 h d T operations a row instead of 4 d I.
* **Self-attention at one position** (``decoder``): the softmax over a single key is 1, so context = v.
* **Positions and logits** (``core``). A label's score is a sum over its own tokens, and single-token labels
  share their normaliser log sum exp(logits): the softmax over the labels does not see it. One decoder
  position and the labels' rows of the head are enough; training needs label and end-of-sequence only.
* **Weight gradients of the base**: it is frozen, so the backward of y = x W^T is dx = dy W alone; below the
  lowest adapter there is no backward (``ops``, ``encoder``).
* **The adapter's dropout scale and both casts** (``ops``): s (1 / (1 - p)) (M x) A^T B^T folds the factor into s,
  and runs in the dtype of x.
* **Stored masks, serial random numbers** (``dropout``): on a CPU masks are made again from a few integers.
* **Stored normalised inputs, activations, fp32 copies** (``ops``, ``encoder``): cheap functions of what is kept
  are computed again in the backward.
* **Launches of a GPU's kernels** (``graphs``, ``layout``): batches are filled up to one of a few shapes, and the pass
  over a shape is recorded once and replayed by one call. Fillers change no number of anybody else.
* **Half of the arithmetic of linear maps, by 8-bit integers** (``int8``), for scoring on request. This is the one
  step that is not exact: answers may differ near ties.
"""

from rxtone.model.engine.core import Engine, flatten, unpad
from rxtone.model.engine.plan import Unsupported

__all__ = ["Engine", "Unsupported", "flatten", "unpad"]
