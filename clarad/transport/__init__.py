"""Connections: listeners, TLS, streams, what waits to be written, and who is let in."""
