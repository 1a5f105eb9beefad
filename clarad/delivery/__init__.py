"""Frames on their way to a node: nodes, replay buffers, redelivery."""
