"""The one way to print by rich."""

from collections.abc import Iterable
from typing import Any

from rich import console
from rich.segment import Segment

from ..printing import printable


class Console(console.Console):
    """rich's, whose own control codes alone reach the terminal: see `printing.printable`.

    A name in brackets, or between colons, is no markup and no emoji.

    Example:
        >>> Console().print("[bold]cell\\x1b[2J.png")
        [bold]cell\\u001b[2J.png
    """

    def __init__(self, **options):
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and not segment.text.isprintable():
                segment = segment._replace(text=printable(segment.text, keep="\n"))
            yield segment
