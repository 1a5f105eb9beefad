"""Processes: shell commands, and what proc(5) says."""
