"""The progress bar of a prediction."""

import contextlib
import time
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..show.console import Console


class Bar:
    """Progress in the terminal, and the counts behind it."""

    def __init__(self, progress: Progress, files: int):
        self._progress, self._started = progress, time.monotonic()
        self.images = self.tiles = 0
        self._files = progress.add_task("files", total=files, speed="")
        self._tiles = progress.add_task("tiles", total=None, speed="", visible=False)

    def begin(self, total: int) -> None:
        """A new image of so many tiles."""
        self._progress.reset(self._tiles, total=total, visible=total > 1)

    def advance(self, tiles: int) -> None:
        self.tiles += tiles
        self._progress.update(self._tiles, advance=tiles, speed=self._speed(self.tiles, "tiles"))

    def finish(self, slices: int) -> None:
        """A file is done, whose images are so many."""
        self.images += slices
        self._progress.update(self._files, advance=1, speed=self._speed(self.images, "images"))

    def _speed(self, count: int, what: str) -> str:
        return f"{count / max(time.monotonic() - self._started, 1e-9):.2f} {what}/s"


@contextlib.contextmanager
def progress_bar(files: int) -> Iterator[Bar]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield Bar(progress, files)
