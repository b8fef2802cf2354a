"""The type checker that the tests put on the functions with shapes: jaxtyping's annotations hold at every call."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

strict = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """Everything but settings, which refuse wrong values with messages of their own."""
    return function if isinstance(function, type) or function.__name__ == "__init__" else strict(function)
