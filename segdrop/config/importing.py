"""Classes and functions of the user's own modules, by a text that another process finds them by."""

import importlib
import os
import re
import sys
from collections.abc import Iterable

from ..errors import InputError, first_line


def reference_to(thing, argument: str) -> str:
    """The text "module:name" of a class or function; such a text as it is.

    Raises:
        InputError: it cannot be found by a text; `argument` is named.

    Example:
        >>> reference_to(keras.Sequential.add, "dropout_layer").split(":")[1]
        'Sequential.add'
        >>> reference_to(lambda rate, name: None, "dropout_layer")
        Traceback (most recent call last):
            ...
        segdrop.errors.InputError: `dropout_layer` cannot be found again by name: ...
    """
    if isinstance(thing, str):
        if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", thing):
            raise InputError(f'`{argument}` must be "module:Class", got {argument}={thing!r}.')
        return thing
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not callable(thing) or not module or not name:
        raise InputError(f'`{argument}` must be a class, a function or "module:Class", got {argument}={thing!r}.')
    if module == "__main__" or "<" in name:
        raise InputError(
            f"`{argument}` cannot be found again by name: {module}:{name} is a lambda, lies within a function or in "
            "the program itself; define it at the top of a module and import it."
        )
    return f"{module}:{name}"


def import_object(reference: str, argument: str):
    """The class or function that "module:name" stands for.

    Raises:
        InputError: there is none, or its module cannot be imported.

    Example:
        >>> import_object("keras.layers:GaussianDropout", "dropout_layer").__name__
        'GaussianDropout'
    """
    module, _, name = reference.partition(":")
    found = _import(module, argument)
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"`{argument}` is {reference}, but {module} has no {name!r}.")
        found = getattr(found, part)
    return found


def import_modules(names: Iterable[str], argument: str) -> None:
    """Import modules for what they register.

    Raises:
        InputError: one cannot be imported.

    Example:
        >>> import_modules(["no_such_module"], "import")
        Traceback (most recent call last):
            ...
        segdrop.errors.InputError: `import` names a module that is not found: no_such_module; it must be ...
    """
    for name in names:
        _import(name, argument)


def _import(module: str, argument: str):
    # Behind what is installed, so that nothing in the current folder is taken for a library.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever the module does when it is imported
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise InputError(
                f"`{argument}` names a module that is not found: {module}; it must be installed or lie in the current "
                f"folder, {os.getcwd()}."
            ) from None
        raise InputError(
            f"`{argument}` names a module that cannot be imported, {module}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
