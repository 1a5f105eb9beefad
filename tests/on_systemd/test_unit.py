"""The units as systemd reads them, and what they let a hook do."""

import json
import re
from typing import Any, Final

import pytest

from tests.on_systemd.machine import Machine

# What people write hooks with. Each prints something, or says by its exit status that it failed.
COMMANDS: Final = {
    "awk": "awk 'BEGIN { print 1 + 1 }'",
    "cat": "cat /etc/os-release",
    "cp and mv": "cp /etc/hostname a && mv a b && cat b",
    "curl": "curl --silent --show-error --head http://127.0.0.1:18789/ || [ $? = 52 ]",
    "date": "TZ=Europe/Berlin date --iso-8601=seconds",
    "df": "df -h /var/lib/clarad",
    "env": "env -i A=b env",
    "find": "find /etc/clarad -name '*.yaml'",
    "flock": "flock lock echo locked",
    "free": "free -m",
    "git": "git init --quiet repo && cd repo && git -c user.name=a -c user.email=a@b.c commit "
    "--quiet --allow-empty --message first && git log --oneline",
    "grep": "grep -r hooks /etc/clarad/hooks",
    "gzip": "echo text | gzip | gunzip",
    "hostname": "hostname && hostname -I",
    "logger": "logger --tag a-hook hello",
    "ls": "ls -la /",
    "mktemp": 'echo text >"$(mktemp)" && ls "$(mktemp -d)"',
    "nice": "nice -n 10 ionice -c 3 echo gently",
    "node": "node -e 'console.log([3, 1, 2].sort())'",
    "nproc": "nproc && uptime && id && whoami && uname -a",
    "ps": "ps aux",
    "python": "python3 -c 'import ssl, sqlite3, ctypes, multiprocessing; "
    "multiprocessing.Lock(); print(ctypes.CDLL(None).getpid())'",
    "python in parallel": "python3 -c 'import concurrent.futures as f; "
    "print(list(f.ProcessPoolExecutor(2).map(abs, [-1, -2])))'",
    "sed": "echo a | sed s/a/b/",
    "setsid": "setsid --wait echo alone",
    "sort": "seq 100000 | sort --random-sort | tail -n 1",
    "sqlite3": "sqlite3 test.db 'create table if not exists t (a); select count(*) from t'",
    "ssh-keygen": "rm -f key && ssh-keygen -q -t ed25519 -N '' -f key && cat key.pub",
    "stat": "stat /etc/clarad && touch a && chmod 600 a && ln -sf a l && readlink -f l",
    "tar": "tar -czf a.tar.gz -C /etc os-release && tar -tzf a.tar.gz",
    "timeout": "timeout 10 echo soon",
    "xargs": "seq 8 | xargs -P 4 -n 1 echo",
    "xz": "echo text | xz | xz -d",
}


@pytest.fixture(scope="module")
def ran(installed: Machine) -> dict[str, dict[str, Any]]:
    """What became of each command as a hook of the daemon's start."""
    installed.clean()
    installed.configure(
        hooks="".join(
            f"- name: {name}\n  event: gateway:startup\n  working_dir: /var/lib/clarad/{number}\n"
            f"  command: |\n    {command}\n"
            for number, (name, command) in enumerate(COMMANDS.items())
        )
    )
    installed.sh(f"install -d -o clarad /var/lib/clarad/{{0..{len(COMMANDS)}}}")
    installed.sh("systemctl start clarad")
    unfinished = "runuser -u clarad clarad hooks runs -- --json | grep -E 'waiting|running'"
    installed.until(f"! {unfinished}")
    runs = map(json.loads, installed.clarad("hooks", "runs", "--json").splitlines())
    return {run["hook"]: run for run in runs}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_ordinary_command_works_as_a_hook(ran: dict[str, dict[str, Any]], name: str) -> None:
    assert ran[name]["state"] == "ran", ran[name]


def test_a_hook_cannot_write_outside_the_state_directory(machine: Machine) -> None:
    machine.configure(
        hooks="- name: vandal\n  event: gateway:startup\n"
        "  command: 'for place in /etc/clarad /usr /var/log /root /home; do"
        " touch $place/a && echo $place; done; true'\n"
    )
    machine.sh("systemctl start clarad")
    machine.until("runuser -u clarad clarad hooks runs | grep 'vandal .* ran '")
    [run] = map(json.loads, machine.clarad("hooks", "runs", "--json").splitlines())
    shown = json.loads(machine.clarad("hooks", "show", "--json", run["run"]))
    assert not shown["stdout"]


def test_the_units_are_in_order(either: Machine) -> None:
    said = either.run("systemd-analyze", "verify", "clarad.service", "clarad.socket")
    assert said == (0, "", "")


def test_what_could_be_done_to_the_machine_is_little(either: Machine) -> None:
    last = either.sh("systemd-analyze security --no-pager clarad.service | tail -n 1")
    found = re.search(r"exposure level for clarad.service: ([\d.]+)", last)
    assert found
    assert float(found[1]) <= 1.4


@pytest.mark.parametrize("engine", ["docker", "incus"])
def test_the_drop_in_of_an_engine_is_in_order(machine: Machine, engine: str) -> None:
    machine.sh(
        "mkdir -p /etc/systemd/system/clarad.service.d && "
        f"ln -s /usr/share/clarad/{engine}.conf /etc/systemd/system/clarad.service.d/ && "
        "systemctl daemon-reload"
    )
    assert engine in machine.show("SupplementaryGroups")
    assert machine.run("systemd-analyze", "verify", "clarad.service") == (0, "", "")
