"""The always-on backend of a self-hosted assistant."""
