"""Hooks: which events start them, and how they run."""
