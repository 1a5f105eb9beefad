"""The file of settings: the daemon and systemd read the same in it."""

from base64 import b64decode

import pytest

from tests.config.test_envfile import MEANT_BY_SYSTEMD
from tests.on_systemd.machine import Machine


@pytest.mark.parametrize("text", MEANT_BY_SYSTEMD)
def test_systemd_means_what_we_take_it_to_mean(machine: Machine, text: str) -> None:
    machine.write("/root/settings.env", text)
    shown = machine.sh(
        "systemd-run --quiet --wait --pipe -p EnvironmentFile=/root/settings.env env --null"
        " | base64 --wrap=0"  # no line's end is to be changed on the way
    )
    assignments = b64decode(shown).decode().split("\0")
    found = dict(assignment.split("=", 1) for assignment in assignments if assignment)
    assert {name: found.get(name) for name in ("A", "B") if name in found} == MEANT_BY_SYSTEMD[text]
