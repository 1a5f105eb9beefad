"""The YAML files: read, checked, and everything that is wrong at once."""
