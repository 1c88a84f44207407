"""Errors of the input pipeline."""


class DataError(ValueError):
    """A mistake in the user's data or in the `data` section of the config.

    The message is one sentence or two that name the file (and line) or the field. No retry can help: a command prints
    the message and ends.
    """


class DecodeError(Exception):
    """A video file that cannot be decoded; the message names the file.

    What FFmpeg and the operating system say of a file becomes this error, and no other exception does. An error of the
    program, such as a TypeError, must end the program, since it would otherwise be counted as damage of sound files.
    """
