"""What a conversion says of the types that it chose for a size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import report

if TYPE_CHECKING:
    from ..budget import Fit

__all__ = ["choice_as_json", "show_choice"]


def show_choice(found: Fit) -> None:
    """Print a line for each kind of tensor: its types, its bytes, and what it adds to the predicted damage."""
    from ..budget import choice_groups

    rows = [
        (
            group.name,
            ", ".join(f"{count} {name}" for name, count in group.types.items()),
            f"{group.nbytes:,}",
            f"{group.predicted:.3g}",
            f"{100 * group.predicted / found.predicted:.1f} %" if found.predicted else "",
        )
        for group in choice_groups(found)
    ]
    unit = "divergence" if found.measured else "relative errors"
    columns = ("tensors", "types", "bytes", unit, "share")
    report.print_table("", columns, rows, right=columns[2:])


def choice_as_json(found: Fit) -> dict[str, Any]:
    """Return the same as JSON-compatible values."""
    from ..budget import choice_groups

    return {
        "bytes": found.size,
        "bits_per_weight": round(found.bits_per_weight, 4),
        "predicted": found.predicted,
        "measured": found.measured,
        "groups": [
            {"tensors": group.name, "types": dict(group.types), "bytes": group.nbytes, "predicted": group.predicted}
            for group in choice_groups(found)
        ],
    }
