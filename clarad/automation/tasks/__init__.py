"""Tasks: when they are due, which occurrences run, and in which order."""
