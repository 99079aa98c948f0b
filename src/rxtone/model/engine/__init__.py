"""The fast forward of a T5 classifier, with the numbers of the reference.

Given a loaded transformers T5 (plain, or with PEFT LoRA adapters), the engine computes log-probabilities of
target tokens and scores of labels from the modules' own weights, with gradients for the adapters. What it
leaves out, exactly, and where the derivation stands:

* padding, and a bias-plus-mask tensor per layer: ``layout``;
* keys and values of cross-attention, and self-attention at one position: ``decoder``;
* stored masks, serial random numbers: ``dropout``;
* stored normalised inputs, activations and fp32 copies; gradients nobody asked for: ``ops``, ``encoder``;
* half of the arithmetic of linear maps, by 8-bit integers, which is the one step that is not exact: ``int8``;
* logits of tokens that are no label, positions after the label: ``core``.
"""

from rxtone.model.engine.core import Engine, flatten, unpad
from rxtone.model.engine.plan import Unsupported

__all__ = ["Engine", "Unsupported", "flatten", "unpad"]
