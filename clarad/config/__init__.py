"""What this installation is: its settings, its name, its directory, where it can be reached."""

from clarad.config.parsers import LOG_FORMATS, RESPONDERS
from clarad.config.settings import (
    LONG_SECRET,
    RELOADED,
    ConfigError,
    Settings,
    is_loopback,
    load,
    load_as_client,
    variable,
)

__all__ = [
    "LOG_FORMATS",
    "LONG_SECRET",
    "RELOADED",
    "RESPONDERS",
    "ConfigError",
    "Settings",
    "is_loopback",
    "load",
    "load_as_client",
    "variable",
]
