"""Reads and checks the YAML files, and reports all problems at once."""
