"""Hooks and tasks: their YAML files, when tasks are due, and how one run executes."""
