"""Errors that a user can act on: each says what, where, which value, and the cure.

The command line prints them without a traceback; a library caller can catch `D3jaxError`.
"""


class D3jaxError(Exception):
    """Anything that d3jax refuses on purpose."""


class DataError(D3jaxError):
    """Raw or prepared data that can't be used as it is."""


class ConfigError(D3jaxError):
    """A setting outside its range, or settings that contradict each other."""


class ShapeError(D3jaxError):
    """An array whose shape or type a function can't work with."""


class CheckpointError(D3jaxError):
    """A run or checkpoint that can't be written, read or continued."""


class TrainingError(D3jaxError):
    """A run that can't go on, such as one whose loss is no longer a number."""


class Preempted(D3jaxError):
    """Training was asked to stop, and stopped after saving; the run can be resumed."""


class OutputError(D3jaxError):
    """A place that can't be written, or that holds what d3jax may not replace."""
