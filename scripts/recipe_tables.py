"""Write the tables of docs/recipes.md from the recipes' data: ``python scripts/recipe_tables.py``.

Bits per weight are computed for the shapes of Llama 3 8B and an importance matrix that covers them; no weight is looked at.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

from qconv.quantizers.catalog import BUILT_IN
from qconv.quantizers.recipes import ModelFacts, Recipe, RecipeRequest, TensorInfo, choose_types, recipes
from qconv.quantizers.recipes.tables import fallbacks

DOCUMENT = Path(__file__).parents[1] / "docs" / "recipes.md"
BLOCKS, WIDTH, HIDDEN, VALUES, VOCABULARY = 32, 4096, 14336, 1024, 128256
FACTS = ModelFacts("llama", BLOCKS, 0, (32,), (8,))


def llama_3_8b() -> list[TensorInfo]:
    """Names and shapes of Llama 3 8B."""
    tensors = [TensorInfo(name, (VOCABULARY, WIDTH), "BF16") for name in ("token_embd.weight", "output.weight")]
    tensors.append(TensorInfo("output_norm.weight", (WIDTH,), "F32"))
    for block in range(BLOCKS):
        matrices = {"attn_q": (WIDTH, WIDTH), "attn_k": (VALUES, WIDTH), "attn_v": (VALUES, WIDTH)}
        matrices |= {"attn_output": (WIDTH, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
        matrices |= {"ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH)}
        tensors += [TensorInfo(f"blk.{block}.{name}.weight", shape, "BF16") for name, shape in matrices.items()]
        tensors += [TensorInfo(f"blk.{block}.{name}_norm.weight", (WIDTH,), "F32") for name in ("attn", "ffn")]
    return tensors


def bits_per_weight(name: str) -> float:
    """Bits of all tensors by the number of their weights."""
    sizes = {encoding.name: encoding for encoding in BUILT_IN}
    tensors = llama_3_8b()
    request = RecipeRequest(name, importance=frozenset(tensor.name for tensor in tensors))
    choices = choose_types(tensors, FACTS, request)
    total = sum(sizes[choice.encoding].nbytes(t.shape) for choice, t in zip(choices, tensors, strict=True))
    return 8 * total / sum(prod(t.shape) for t in tensors)


def mixture(recipe: Recipe) -> str:
    """One line: what differs from the base encoding, each with its conditions."""
    parts = [f"output {recipe.output}"] if recipe.output not in (None, recipe.base) else []
    parts += [f"token embedding {recipe.embedding}"] if recipe.embedding else []
    for group, rules in recipe.rules.items():
        cells = [
            " ".join([rule.encoding, f"({', '.join(rule.conditions)})"][: 1 + bool(rule.conditions)]) for rule in rules
        ]
        parts.append(f"{group} {', else '.join(cells)}")
    return "; ".join(parts) or "–"


def recipe_table() -> str:
    """The table of names."""
    rows = ["| name | file type | base | bits per weight | mixture |", "|---|---|---|---|---|"]
    for name, recipe in recipes().items():
        if recipe.base is not None:
            bits = f"{bits_per_weight(name):.2f}"
            rows.append(f"| {name} | {recipe.file_type} | {recipe.base} | {bits} | {mixture(recipe)} |")
    return "\n".join(rows)


def fallback_table() -> str:
    """The table of fallbacks, wanted encodings with the same substitute in one row."""
    table = {**fallbacks().llama_cpp, **fallbacks().added}
    rows = ["| wanted | becomes |", "|---|---|"]
    rows += [f"| {' '.join(w for w, t in table.items() if t == to)} | {to} |" for to in dict.fromkeys(table.values())]
    return "\n".join([*rows, f"| anything that does not fit then | {fallbacks().last} |"])


def filled(text: str) -> str:
    """Return the document with fresh tables between its markers."""
    for name, table in (("recipes", recipe_table()), ("fallbacks", fallback_table())):
        start, end = f"<!-- table {name} -->", "<!-- end of table -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{DOCUMENT} has no table {name}")
        text = f"{before}{start}\n\n{table}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
