"""A message from its arrival to its terminal frame."""
