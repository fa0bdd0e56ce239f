"""Recipes: which encoding each tensor of a model gets, for every ``--type`` name.

The names, mixtures and fallbacks are llama.cpp's; they are data (``mixtures.json``, ``fallbacks.json``, ``never_quantized.json``), and
:func:`choose_types` is a pure function of tensor names, shapes and a few facts about the model. With ``compat`` its choice is
llama.cpp's to the last tensor. Without, these traps are fixed (``docs/recipes.md`` says more about each):

* Overrides do not shift the mixture of other tensors: positions are counted over all tensors of a class.
* Of several ``--tensor-type`` rules that fit, the last wins; patterns are taken as written, case included.
* Overrides hold for F32, F16, BF16 and COPY too.
* ``--output-tensor-type`` and ``--token-embedding-type`` fall back where their block does not fit.
* The sharing of key-value heads is that of most attention blocks, not that of block 0.
* Blocks for multi-token prediction do not count as blocks, and get no extra bits.
* Values that eight or more query heads share get more bits by that criterion, not by the number of blocks.
* The rules for mixtures of experts hold from eight experts up, not for exactly eight, and never give less than the dense rules.
* A per-layer embedding table is never taken for the output matrix.
* Rules that ask for importance look at the tensor's own entry.
* Q1_0 has a fallback.
* Decoding a quantized tensor to floats needs no ``allow_requantize``.
"""

from .choose import check_importance, choose_types, never_quantized_because, unmatched_rules, without_importance
from .facts import ModelFacts, TensorInfo, model_facts
from .request import Choice, RecipeRequest
from .situation import visiting_order
from .tables import ALIASES, Recipe, find_recipe, recipes

__all__ = [
    "ALIASES",
    "Choice",
    "ModelFacts",
    "Recipe",
    "RecipeRequest",
    "TensorInfo",
    "check_importance",
    "choose_types",
    "find_recipe",
    "model_facts",
    "never_quantized_because",
    "recipes",
    "unmatched_rules",
    "visiting_order",
    "without_importance",
]
