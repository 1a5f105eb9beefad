"""A daemon that gets stuck is started anew, and leaves behind where it was stuck."""

from pathlib import Path

import pytest

from tests import certificates, strangers
from tests.on_systemd.machine import Machine

WEDGED = Path(__file__).with_name("wedged.py")


@pytest.mark.parametrize(("part", "signal"), [("loop", "USR1"), ("store", "USR2")])
def test_a_stuck_part_has_the_daemon_restarted_with_its_stack_in_the_journal(
    machine: Machine, part: str, signal: str
) -> None:
    machine.push(WEDGED, "/usr/local/lib")
    machine.configure(
        unit="WatchdogSec=2s\nExecStart=\nExecStart=python3 -PsS /usr/local/lib/wedged.py\n"
    )
    machine.sh("systemctl start clarad")
    machine.sh(f"systemctl kill --kill-who=main --signal={signal} clarad")
    machine.until('[ "$(systemctl show --value -p NRestarts clarad)" = 1 ]')
    machine.until("systemctl is-active clarad")
    assert machine.sh("clarad send hello") == "hello"
    lines = machine.lines()
    assert "Watchdog timeout" in lines
    assert "stuck_for_ever" in lines


def test_a_daemon_with_nothing_to_do_is_not_taken_for_stuck(machine: Machine) -> None:
    machine.configure(unit="WatchdogSec=500ms\n")
    machine.sh("systemctl start clarad")
    machine.until(
        "[ $(($(systemctl show --value -p WatchdogTimestampMonotonic clarad)"
        " - $(systemctl show --value -p ActiveEnterTimestampMonotonic clarad))) -gt 2000000 ]"
    )
    assert machine.show("NRestarts") == "0"


@pytest.mark.parametrize("wire", ["plain", "tls"])
def test_strangers_without_the_secret_do_not_have_the_daemon_taken_for_stuck(
    machine: Machine, tmp_path: Path, wire: str
) -> None:
    machine.push(Path(strangers.__file__), "/usr/local/lib")
    settings, flag = ["CLARA_GATEWAY_SECRET=a-long-word"], ""
    if wire == "tls":
        made, flag = certificates.make(tmp_path), "--tls"
        for path in made:
            machine.push(path, "/etc/clarad")
        machine.sh(f"chgrp clarad /etc/clarad/{made.key.name}; chmod 640 /etc/clarad/*.key")
        settings.append(f"CLARA_GATEWAY_TLS_CERT=/etc/clarad/{made.certificate.name}")
        settings.append(f"CLARA_GATEWAY_TLS_KEY=/etc/clarad/{made.key.name}")
    machine.configure(*settings, unit="WatchdogSec=2s\n")
    machine.sh("systemctl start clarad")
    for kind in strangers.PLAIN if wire == "plain" else strangers.KINDS:
        words = f"127.0.0.1 18789 '{kind}' {strangers.COUNT} 4 {flag}"
        machine.sh(
            f"coproc python3 /usr/local/lib/strangers.py {words}; read -ru ${{COPROC[0]}} ready; "
            '[ "$ready" = ready ]; CLARA_GATEWAY_SECRET=a-long-word clarad send hello; wait'
        )
    assert machine.show("NRestarts") == "0"
    assert "Watchdog timeout" not in machine.lines()
