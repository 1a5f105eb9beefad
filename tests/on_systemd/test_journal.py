"""What the daemon logs is found in the journal by its fields, and explained there."""

from tests.on_systemd.machine import Machine


def test_events_are_found_by_their_type_and_session(machine: Machine) -> None:
    machine.sh("systemctl start clarad && clarad send --channel here hello")
    [sent] = machine.journal("CLARA_EVENT_TYPE=message:sent")
    assert sent["CLARA_CHANNEL_ID"] == "here"
    assert sent["SYSLOG_IDENTIFIER"] == "clarad"
    of_session = machine.journal(f"CLARA_SESSION_ID={sent['CLARA_SESSION_ID']}")
    assert {record["CLARA_EVENT_TYPE"] for record in of_session} >= {
        "session:start",
        "message:sent",
    }


def test_several_types_are_found_at_once(machine: Machine) -> None:
    machine.sh("systemctl start clarad && clarad send hello")
    kinds = ("adapter:connected", "adapter:disconnected")
    found = machine.journal(*(f"CLARA_EVENT_TYPE={kind}" for kind in kinds))
    assert [record["CLARA_EVENT_TYPE"] for record in found] == list(kinds)


def test_what_a_hook_writes_is_found_by_its_name(machine: Machine) -> None:
    machine.configure(
        hooks="- {name: greeter, event: gateway:startup, command: 'echo hello from a hook'}\n"
    )
    machine.sh("systemctl start clarad")
    machine.until("journalctl CLARA_HOOK=greeter | grep 'hello from a hook'")


def test_the_catalogue_says_what_to_do_about_a_record(machine: Machine) -> None:
    machine.configure("CLARA_GATEWAY_PORT=none")
    machine.run("systemctl", "start", "clarad")
    explained = machine.sh("journalctl --no-pager -x -u clarad")
    assert "Subject: The configuration is refused" in explained
    assert "clarad check" in explained


def test_a_reason_not_to_start_is_critical_in_the_journal(machine: Machine) -> None:
    machine.configure("CLARA_GATEWAY_PORT=none")
    machine.run("systemctl", "start", "clarad")
    refused = machine.journal("PRIORITY=2", "SYSLOG_IDENTIFIER=clarad")
    assert any("CLARA_GATEWAY_PORT" in record["MESSAGE"] for record in refused)
