"""What `systemctl start clarad` promises, and what is said when it cannot keep it."""

from typing import Final

import pytest

from clarad.systemd import catalogue
from tests.on_systemd.machine import Machine

HELD: Final = "CLARA_RESPONDER=command", "CLARA_RESPONDER_COMMAND='sleep 600'"


def test_once_started_it_answers(machine: Machine) -> None:
    machine.sh("systemctl start clarad")
    assert machine.sh("clarad send hello") == "hello"


def test_it_runs_as_a_user_who_may_do_nothing_and_whose_state_nobody_else_reads(
    machine: Machine,
) -> None:
    machine.sh("systemctl start clarad")
    pid = machine.show("MainPID")
    assert machine.sh(f"ps -o user= -p {pid}") == "clarad"
    assert "0000000000000000" in machine.sh(f"grep CapEff /proc/{pid}/status")
    assert machine.sh("stat -c '%U %a' /var/lib/clarad /run/clarad") == "clarad 700\nclarad 700"


def test_the_status_says_what_is_going_on(machine: Machine) -> None:
    machine.configure(tasks="- {name: later, interval: 3600, delay: 3600, command: 'true'}\n")
    machine.sh("systemctl start clarad")
    status = machine.show("StatusText")
    assert "later" in status
    assert any(letter.isdigit() for letter in status)


def test_a_migration_that_fails_is_shown_with_its_reason(machine: Machine) -> None:
    machine.configure("DATABASE_URL=postgresql://nobody@127.0.0.1:1/none", unit="Restart=no\n")
    assert machine.run("systemctl", "start", "clarad").status != 0
    status = machine.run("systemctl", "status", "--no-pager", "clarad").out
    assert "migrate --before-run (code=exited, status=74" in status
    assert "127.0.0.1" in status
    assert "Traceback" not in machine.lines()
    [record] = machine.journal("PRIORITY=2")
    assert record["MESSAGE_ID"] == catalogue.STORE_UNUSABLE.message_id


UNFIT: Final = {
    "damaged": "head -c 65536 /dev/urandom >/var/lib/clarad/clarad.db",
    "newer": "sqlite3 /var/lib/clarad/clarad.db "
    "\"UPDATE clarad_alembic_version SET version_num = '9999'\"",
    "emptied": ": >/var/lib/clarad/clarad.db",
}


@pytest.mark.parametrize("how", UNFIT)
def test_a_database_that_is_not_fit_is_said_once_with_the_way_out_and_not_tried_again(
    machine: Machine, how: str
) -> None:
    machine.sh("systemctl start clarad && systemctl stop clarad")
    machine.sh(UNFIT[how])
    assert machine.run("systemctl", "start", "clarad").status != 0
    assert (machine.show("ActiveState"), machine.show("NRestarts")) == ("failed", "0")
    assert machine.show("ExecMainStatus") == "65"
    [record] = machine.journal("PRIORITY=2")
    assert record["MESSAGE_ID"] == catalogue.STORE_UNFIT.message_id
    assert "the database /var/lib/clarad/clarad.db " in record["MESSAGE"]
    shown = machine.run("journalctl", "-u", "clarad", "-p", "warning", "-x", "--no-pager").out
    assert "clarad backup restore FILE" in shown
    assert "Traceback" not in machine.lines()


def test_a_wrong_setting_is_said_in_one_line_and_not_tried_again(machine: Machine) -> None:
    machine.configure("CLARA_GATEWAY_PORT=none")
    assert machine.run("systemctl", "start", "clarad").status != 0
    assert (machine.show("ActiveState"), machine.show("NRestarts")) == ("failed", "0")
    assert machine.show("ExecMainStatus") == "78"
    [said] = [line for line in machine.lines().splitlines() if "CLARA_GATEWAY_PORT" in line]
    assert said == "CLARA_GATEWAY_PORT='none': write a number from 0 (any free port) to 65535"


def test_a_file_of_settings_that_cannot_be_read_is_said_once_and_not_tried_again(
    machine: Machine,
) -> None:
    machine.configure("this is no setting")
    assert machine.run("systemctl", "start", "clarad").status != 0
    assert (machine.show("NRestarts"), machine.show("ExecMainStatus")) == ("0", "78")
    assert machine.lines().count("/etc/clarad/clarad.env:") == 1


def test_a_wrong_hook_is_said_and_not_tried_again(machine: Machine) -> None:
    machine.configure(hooks="- {name: broken, event: no:such, command: 'true'}\n")
    assert machine.run("systemctl", "start", "clarad").status != 0
    assert machine.show("NRestarts") == "0"
    assert "/etc/clarad/hooks/hooks.yaml" in machine.lines()


def test_a_second_daemon_leaves_the_first_one_alone(machine: Machine) -> None:
    machine.sh("systemctl start clarad")
    said = machine.run(
        "runuser", "-u", "clarad", "--", "env", "CLARA_STATE_DIR=/var/lib/clarad", "clarad", "run"
    )
    assert said.status == 75
    assert "another clarad" in said.err
    assert machine.sh("clarad send hello") == "hello"


def test_a_killed_daemon_comes_back_and_leaves_nothing_running(machine: Machine) -> None:
    machine.configure(*HELD)
    machine.sh("systemctl start clarad; clarad send wait >/dev/null 2>&1 & disown")
    machine.until("pgrep -u clarad -x sleep")
    machine.sh("systemctl kill --kill-who=main --signal=KILL clarad")
    machine.until('[ "$(systemctl show --value -p NRestarts clarad)" = 1 ]')
    machine.until("systemctl is-active clarad")
    machine.until("! pgrep -u clarad -x sleep")


def test_a_daemon_that_keeps_failing_is_given_up(machine: Machine) -> None:
    machine.configure(unit="ExecStartPre=\nExecStart=\nExecStart=false\nRestartSec=10ms\n")
    machine.run("systemctl", "start", "clarad")
    machine.until("systemctl is-failed clarad")
    assert "Start request repeated too quickly" in machine.lines()
