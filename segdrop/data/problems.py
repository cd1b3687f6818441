"""How what there is of a data set, and what is wrong with it, is said."""

from collections.abc import Sequence


def told(cases: Sequence[str], template: str, show: bool = True) -> list[str]:
    """One problem that there are `cases` of, the first named if `show`; none where there are none.

    Example:
        >>> told(["a.png", "b.png"], "{n} image(s) have no mask")
        ['2 image(s) have no mask; first: a.png']
    """
    if not cases:
        return []
    return [template.format(n=len(cases)) + (f"; first: {cases[0]}" if show else "")]


def pairs_in_words(count: int) -> str:
    """How many pairs there are.

    Example:
        >>> pairs_in_words(1), pairs_in_words(20)
        ('1 pair', '20 pairs')
    """
    return f"{count} pair{'' if count == 1 else 's'}"
