"""Holds a gateway, or an adapter, to the promises of docs/protocol.md, frame by frame."""
