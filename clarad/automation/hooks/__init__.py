"""Hooks: which events start them, and how their commands and webhooks run."""
