"""What this installation is: its settings, its name, its directory, where it can be reached."""

from clarad.config.settings import (
    LOG_FORMATS,
    LONG_SECRET,
    RELOADED,
    RESPONDERS,
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
