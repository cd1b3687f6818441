"""How much Dice falls with dropout in one stage alone: a table, and what it says in words."""

import math
from collections.abc import Sequence

from .tables import Table

HINT = "docs/dropout.md#where-would-dropout-help"


class Sensitivities(Table):
    """Rows of `segdrop.sensitivity`; in a terminal with the intervals in brackets.

    Attributes:
        reading: what the rows say, in words.
    """

    @property
    def reading(self) -> str:
        told = [row for row in self if row["difference_low"] > 0]
        rate, looked = f"{self[0]['rate']:g}", len(self)
        if math.isnan(self[0]["difference_low"]):
            return (
                "The training or the validation images are of one group, which tells nothing of others: no interval "
                f"can be had, and no hint where dropout might help ({HINT})."
            )
        if not told:
            where = f"In none of the {looked} stages" if looked > 1 else "Not even in the one stage"
            return (
                f"{where} does spatial dropout of {rate} lower the Dice of the training images clearly more than "
                "that of the validation images: this network gives no hint where dropout might help, nor that it "
                f"would not ({HINT})."
            )
        falls = {part: _listed([f"{row[f'{part}_fall']:.3f}" for row in told]) for part in ("train", "val")}
        names = [row["stage"] for row in told]
        return (
            f"Spatial dropout of {rate} in {_listed(names)} lowers the Dice of the training images by "
            f"{falls['train']}, that of the validation images by {falls['val']}: the training images lean on what is "
            f"there more than the validation images do, so dropout might help there (--dropout-blocks "
            f"{' '.join(names)}); whether it does, a sweep measures, and this is a hint ({HINT})."
        )

    def rich(self):
        first = self[0]
        samples = f"mean of {first['samples']} samples" if first["samples"] > 1 else "one sample"
        title = (
            f"Dice with spatial dropout {first['rate']:g} in one stage alone, {samples} of each image; "
            f"without it {first['train_dice']:.3f} on {first['train_images']} training images and "
            f"{first['val_dice']:.3f} on {first['val_images']} validation images [95% interval]"
        )
        names = {"train_fall": "training falls by", "val_fall": "validation falls by", "difference": "difference"}
        rows = [
            {
                "stage": row["stage"],
                "places": row["places"],
                **{told: _with_interval(row, name) for name, told in names.items()},
            }
            for row in self
        ]
        return Table(rows, title).rich()


def _with_interval(row, name: str) -> str:
    low, high = (row[f"{name.removesuffix('_fall')}_{end}"] for end in ("low", "high"))
    return f"{row[name]:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
