"""The gateway's secret: the daemon knows it, and nobody whom it starts."""

from tests.on_systemd.machine import Machine


def test_the_secret_is_what_adapters_have_to_show(machine: Machine) -> None:
    machine.write("/etc/clarad/gateway-secret", "a-long-word\n", mode="600")
    machine.sh("systemctl start clarad")
    assert machine.run("clarad", "send", "hello").status == 1
    assert machine.sh("CLARA_GATEWAY_SECRET=a-long-word clarad send hello") == "hello"


def test_the_secret_is_nowhere_in_what_the_daemon_starts(machine: Machine) -> None:
    machine.write("/etc/clarad/gateway-secret", "a-long-word\n", mode="600")
    machine.configure(
        hooks="- {name: spy, event: gateway:startup, command: 'env >/var/lib/clarad/env'}\n"
    )
    machine.sh("systemctl start clarad")
    machine.until("[ -s /var/lib/clarad/env ]")
    environment = machine.sh("cat /var/lib/clarad/env")
    assert "CLARA_EVENT_TYPE=gateway:startup" in environment
    for kept in ("a-long-word", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG", "LISTEN_"):
        assert kept not in environment


def test_the_secret_is_not_in_the_journal(machine: Machine) -> None:
    machine.write("/etc/clarad/gateway-secret", "a-long-word\n", mode="600")
    machine.configure("CLARA_LOG_LEVEL=DEBUG")
    machine.sh("systemctl start clarad && CLARA_GATEWAY_SECRET=a-long-word clarad send hello")
    assert "a-long-word" not in machine.sh("journalctl -o export")
