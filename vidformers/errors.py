"""The exception for mistakes of the user."""


class ConfigError(ValueError):
    """Raised when a setting or a file cannot work.

    The message names the field or file, and says why it cannot work and what to do. Commands print it on one line.
    """


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
