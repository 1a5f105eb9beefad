"""`systemctl reload clarad` returns when the new configuration is in force, or says why not."""

from typing import Final

from tests.on_systemd.machine import Machine

GOOD: Final = "- {name: first, event: gateway:startup, command: 'true'}\n"
MORE: Final = "- {name: second, event: gateway:shutdown, command: 'true'}\n"
BAD: Final = "- {name: third, event: no:such, command: 'true'}\n"


def test_a_good_configuration_is_in_force_when_the_reload_returns(machine: Machine) -> None:
    machine.configure(hooks=GOOD)
    machine.sh("systemctl start clarad")
    before = machine.show("MainPID")
    machine.configure(hooks=GOOD + MORE)
    machine.sh("systemctl reload clarad && systemctl stop clarad")
    assert "second" in machine.clarad("hooks", "runs")
    assert before in machine.sh("journalctl -u clarad -o verbose | grep _PID=")


def test_a_bad_configuration_fails_the_reload_says_why_and_changes_nothing(
    machine: Machine,
) -> None:
    machine.configure(hooks=GOOD + MORE)
    machine.sh("systemctl start clarad")
    machine.configure(hooks=BAD)
    assert machine.run("systemctl", "reload", "clarad").status != 0
    assert "/etc/clarad/hooks/hooks.yaml" in machine.lines()
    assert (machine.show("ActiveState"), machine.show("NRestarts")) == ("active", "0")
    machine.sh("systemctl stop clarad")
    assert "second" in machine.clarad("hooks", "runs")


def test_a_reload_takes_settings_too(machine: Machine) -> None:
    machine.sh("systemctl start clarad")
    machine.configure("CLARA_LOG_LEVEL=ERROR")
    machine.sh("systemctl reload clarad && clarad send hello")
    assert machine.journal("CLARA_EVENT_TYPE=message:sent") == []


def test_a_setting_that_is_wrong_fails_the_reload_and_says_why(machine: Machine) -> None:
    machine.sh("systemctl start clarad")
    machine.configure("CLARA_MESSAGE_TIMEOUT=never")
    assert machine.run("systemctl", "reload", "clarad").status != 0
    assert "CLARA_MESSAGE_TIMEOUT" in machine.lines()
    assert machine.sh("CLARA_ENV_FILE= clarad send hello") == "hello"
