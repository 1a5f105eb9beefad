"""The always-on backend of a self-hosted assistant."""

__version__ = "0.1.0"
