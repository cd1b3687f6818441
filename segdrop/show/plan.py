"""A plan for the terminal."""

from collections.abc import Mapping

from .tables import Table


def plan_table(plan: Mapping) -> Table:
    """What `Plan.to_json` gave as a table: each field that was chosen, its value, and why.

    Example:
        >>> choices = {"scale": {"value": 0.5, "reason": "a crop shows a whole image"}}
        >>> print(plan_table({"seconds": 840, "choices": choices}))
        Plan: about 14 minutes by its estimate
         chosen value because
         ───────────────────────────────────────
         scale  0.5   a crop shows a whole image
    """
    minutes = max(1, round(plan["seconds"] / 60))
    title = f"Plan: about {minutes} minute{'s' * (minutes > 1)} by its estimate"
    rows = [
        {"chosen": field, "value": str(choice["value"]), "because": choice["reason"]}
        for field, choice in plan["choices"].items()
    ]
    return Table(rows, title)
