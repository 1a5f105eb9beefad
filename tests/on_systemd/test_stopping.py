"""A stop lets answers under way end, and leaves nothing running."""

from typing import Final

from tests.on_systemd.machine import Machine

ASK: Final = (
    "systemctl start clarad; (clarad send wait >/root/said 2>&1 || :; touch /root/over) & disown"
)
BEGUN: Final = "pgrep -u clarad -x sleep"


def test_an_answer_may_take_longer_than_the_unit_gives_a_stop(machine: Machine) -> None:
    machine.configure(
        "CLARA_RESPONDER=command",
        "CLARA_RESPONDER_COMMAND='sleep 7; echo done'",
        unit="TimeoutStopSec=3s\n",
    )
    machine.sh(f"rm -f /root/over; {ASK}")
    machine.until(BEGUN)
    machine.sh("systemctl stop clarad")
    machine.until("[ -e /root/over ]")
    assert machine.sh("cat /root/said") == "done"
    assert machine.show("Result") == "success"


def test_what_takes_longer_than_the_drain_is_cancelled_and_ended(machine: Machine) -> None:
    machine.configure(
        "CLARA_RESPONDER=command",
        "CLARA_RESPONDER_COMMAND='sleep 600'",
        "CLARA_DRAIN_TIMEOUT=0",
    )
    machine.sh(f"rm -f /root/over; {ASK}")
    machine.until(BEGUN)
    machine.sh("systemctl stop clarad")
    machine.until("[ -e /root/over ]")
    assert machine.sh("cat /root/said").startswith("clarad: cancelled")
    assert machine.show("Result") == "success"
    assert machine.run("pgrep", "-u", "clarad").out == ""
