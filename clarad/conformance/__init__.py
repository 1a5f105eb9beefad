"""Conformance tests for gateways and for adapters, after docs/protocol.md."""
