"""Whoever connects while the daemon is restarted waits, and is served."""

import json
from pathlib import Path

from tests.on_systemd.machine import Machine

CROWD = Path(__file__).with_name("crowd.py")


def crowd_during(machine: Machine, script: str) -> dict[str, int]:
    """What came of the connections that were made before, during and after a script."""
    machine.push(CROWD, "/root")
    machine.sh("rm -f /root/enough; python3 /root/crowd.py /root/enough >/root/seen & disown")
    machine.sh(f"{script}; clarad send hello; touch /root/enough")
    machine.until("[ -s /root/seen ]")
    seen: dict[str, int] = json.loads(machine.sh("cat /root/seen"))
    return seen


def test_nobody_is_refused_while_the_daemon_is_restarted(machine: Machine) -> None:
    machine.sh("systemctl start clarad")
    seen = crowd_during(machine, "systemctl restart clarad; systemctl restart clarad")
    assert seen.keys() == {"HTTP/1.1 101"}


def test_nobody_is_refused_by_the_socket_of_a_daemon_that_is_stopped(machine: Machine) -> None:
    machine.sh("systemctl start clarad.socket clarad.service")
    seen = crowd_during(machine, "systemctl stop clarad.service; systemctl start clarad.service")
    assert seen.keys() == {"HTTP/1.1 101"}


def test_the_first_connection_to_the_socket_starts_the_daemon(machine: Machine) -> None:
    machine.sh("systemctl start clarad.socket")
    assert machine.show("ActiveState") == "inactive"
    assert machine.sh("clarad send hello") == "hello"
    assert machine.show("ActiveState") == "active"
