"""Errors of the input pipeline."""


class DataError(ValueError):
    """A mistake in the user's data or in the `data` section of the config.

    The message is one sentence or two that name the file (and line) or the field. No retry can help: a command prints
    the message and ends.
    """


class DecodeError(Exception):
    """A video file that cannot be decoded; the message names the file.

    Every exception of PyAV is converted to this type. PyAV also raises StopIteration, which an iterator further up
    would take for the end of the data set.
    """
