"""The one exception type that means "the input is wrong", as opposed to "the program is"."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A value, file or combination of options that the caller can put right.

    The message is one sentence: what is wrong, where, and what to do. The command line prints it as
    one line and exits with code 2; every other exception keeps its traceback.

    Example:
        >>> try:
        ...     segdrop.TrainConfig(encoder_dropout=1.3)
        ... except segdrop.InputError as error:
        ...     print(error)
        `encoder_dropout` must be a number in [0, 1), got encoder_dropout=1.3.
    """


class VerificationError(InputError):
    """Two models differ where one should be the other with dropout in it, or a dropout layer does not do its work; or
    an exported network gives other results than the run's.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> segdrop.verify(model, segdrop.remove_dropout(model))
        Traceback (most recent call last):
            ...
        segdrop.errors.VerificationError: dropout was added: dropout layers: found 0, expected at least 1.
    """


class Diverged(InputError):
    """The loss of a training is no longer finite."""


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Name the argument that an InputError or a FileNotFoundError comes of.

    Example:
        >>> with segdrop.errors.naming("pilot"):
        ...     raise FileNotFoundError("The sweep does not exist: sweeps/first.")
        Traceback (most recent call last):
            ...
        segdrop.errors.InputError: `pilot`: The sweep does not exist: sweeps/first.
    """
    try:
        yield
    except (InputError, FileNotFoundError) as error:
        raise InputError(f"`{argument}`: {error}") from error


def first_line(error: BaseException) -> str:
    """What an error of a library's says, in one line; its class where it says nothing.

    Example:
        >>> first_line(ValueError("no header\\nat byte 0")), first_line(EOFError())
        ('no header', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
