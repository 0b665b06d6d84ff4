"""Which members of a family the default tests look at: a few, while `-m slow` looks at the others."""

import pytest


def few(values, *indices):
    """Parameters of which only those at `indices` are not marked slow; a tuple is one parameter set."""
    chosen = {range(len(values))[index] for index in indices}
    return [each if number in chosen else _slow(each) for number, each in enumerate(values)]


def _slow(value):
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
