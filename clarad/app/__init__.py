"""The process: what it is composed of, all that listens, and what operators can ask of it."""
