"""Connections: listeners, TLS, handshakes, authentication, streams, outboxes."""
