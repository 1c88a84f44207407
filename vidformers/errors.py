"""The one exception a user's mistake raises."""


class ConfigError(ValueError):
    """A setting that cannot work; its message is one sentence that names the field."""


def require(condition: bool, sentence: str) -> None:
    """Raises `ConfigError(sentence)` unless `condition` holds."""
    if not condition:
        raise ConfigError(sentence)
