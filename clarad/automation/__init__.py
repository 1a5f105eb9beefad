"""What hooks.yaml and scheduler.yaml say, when a task is due, and how one run goes."""
