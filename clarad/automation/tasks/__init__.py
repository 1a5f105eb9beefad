"""Tasks: when they are due, and how they run."""
