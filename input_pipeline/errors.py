"""The two ways in which data can be wrong: before the run, and in one file of many."""


class DataError(ValueError):
    """A mistake in the user's data or in the `data` section of the config.

    The message is one sentence that names the file (and line) or the field. No retry can help: a command
    prints the message and ends.
    """


class DecodeError(Exception):
    """A video file that cannot be decoded; the message names it.

    Everything that PyAV raises becomes this one type: among it is StopIteration, which an iterator further
    up would take for the end of the data set.
    """
