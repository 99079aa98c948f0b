"""Every error a user can meet, and the exit code of each branch.

::

    RxtoneError            1   something went wrong while running
    ├── RecipeError        2   the recipe, an option or a target module is wrong
    ├── DataError          3   a table, a review or a label is bad or missing
    ├── GateError          4   a quality gate failed
    ├── ModelError         1   a base model or an adapter cannot be used
    └── RunError           1   a run folder cannot be read, written or resumed

A message says what was expected, what came, where, and what to do. It quotes column names, label
values and positions, never the text of a review.
"""


class RxtoneError(Exception):
    """The root of all errors that are explained to the user."""

    exit_code = 1


class RecipeError(RxtoneError):
    """A recipe, an override or a command-line value is wrong."""

    exit_code = 2


class DataError(RxtoneError):
    """A table, a review or a label is bad or missing."""

    exit_code = 3


class GateError(RxtoneError):
    """A quality gate (parity, minimum metric) failed."""

    exit_code = 4


class ModelError(RxtoneError):
    """A base model or an adapter is missing, damaged or does not fit."""


class RunError(RxtoneError):
    """A run folder cannot be read, written or resumed."""
