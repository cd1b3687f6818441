"""Writing beside the next epoch."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One thread that does one thing after the other, while the caller goes on.

    There is never more than one thing waiting: who brings the next waits for the one before. So what is lost by a kill
    is what was being written, as it would be without the thread.

    Example:
        >>> done, background = [], Background()
        >>> background.do(lambda: done.append(1))
        >>> background.wait()
        >>> done
        [1]
    """

    def __init__(self):
        self._thread = ThreadPoolExecutor(1)
        self._begun: Future | None = None

    def do(self, task: Callable[[], object]) -> None:
        """Begin `task`, when the one before has ended.

        Raises:
            Exception: what the one before has raised, a full disk for instance.
        """
        self.wait()
        self._begun = self._thread.submit(task)

    def wait(self) -> None:
        """Return when nothing is being done, or raise what the last task has raised."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()
