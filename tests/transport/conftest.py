"""Fixtures of tests/systemd that socket activation needs, too."""

from tests.systemd.conftest import manager, notifier

__all__ = ["manager", "notifier"]
