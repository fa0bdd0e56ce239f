"""The best types for a given size: what each costs, and the choice within a budget."""

from .apply import fit_to_budget
from .fit import CANDIDATES, Fit, Request, choose, fit, measure
from .recipe_file import read_recipe, recipe_text
from .sensitivity import Candidate, TensorCosts

__all__ = [
    "CANDIDATES",
    "Candidate",
    "Fit",
    "Request",
    "TensorCosts",
    "choose",
    "fit",
    "fit_to_budget",
    "measure",
    "read_recipe",
    "recipe_text",
]
