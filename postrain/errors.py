"""The one error that is the user's. Apart from everything else, so that reading a folder needs no torch."""


class ConfigError(ValueError):
    """A user's mistake: one line that names the key, file or line, what was expected, and a remedy."""
