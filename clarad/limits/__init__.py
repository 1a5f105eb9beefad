"""Bounds that many share: memory, rates, what runs at once. No I/O."""
