"""The best types for a given size: what each costs, and the choice within a budget."""

from .apply import fit_to_budget
from .checkpoint import forget
from .fit import CANDIDATES, Fit, Request, choose, fit, measure
from .front import Front, Point, trace_front
from .recipe_file import read_recipe, recipe_text
from .sensitivity import Candidate, TensorCosts
from .summary import Group, choice_groups

__all__ = [
    "CANDIDATES",
    "Candidate",
    "Fit",
    "Front",
    "Group",
    "Point",
    "Request",
    "TensorCosts",
    "choice_groups",
    "choose",
    "fit",
    "fit_to_budget",
    "forget",
    "measure",
    "read_recipe",
    "recipe_text",
    "trace_front",
]
