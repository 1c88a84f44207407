"""The exception for mistakes of the user."""


class ConfigError(ValueError):
    """Raised when a setting or a file cannot work.

    The message names the field or file, and says why it cannot work and what to do. Commands print it on one line.
    """


def excerpt(value: object, length: int = 80) -> str:
    """Returns the beginning of the representation of a value that a file holds, for messages."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
