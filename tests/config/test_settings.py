import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clarad.config import ConfigError, Settings, load
from clarad.limits.rate import Rate
from sandbox import load as load_sandbox

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def problems(**environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(environ)
    return caught.value.problems


def problem(**environ: str) -> str:
    (only,) = problems(**environ)
    return only


def setting(name: str, **environ: str) -> Any:
    chosen, _ = load(environ)
    return getattr(chosen, name)


def warnings(**environ: str) -> list[str]:
    _, found = load(environ)
    return found


# --- nothing is set ------------------------------------------------------------------------------


def test_nothing_has_to_be_set() -> None:
    chosen, found = load({})
    home = Path.home() / ".local/state/clarad"
    assert chosen == Settings(
        state_dir=home,
        database_url=f"sqlite:///{home}/clarad.db",
        gateway_host="127.0.0.1",
        gateway_port=18789,
        gateway_secret=None,
        gateway_allowed_origins=frozenset(),
        responder="echo",
        responder_command=None,
        session_timeout=1800,
        message_timeout=300,
        drain_timeout=30,
        keep=90 * 86400,
        keep_runs=30 * 86400,
        keep_attachments=7 * 86400,
        auto_migrate=True,
        log_level="INFO",
        sandbox=load_sandbox({}),
    )
    assert found == []


VARIABLES: Final = {
    "CLARA_STATE_DIR": "/srv/clara",
    "DATABASE_URL": "postgres://clara@db/clara",
    "CLARA_GATEWAY_HOST": "127.0.0.2",
    "CLARA_GATEWAY_PORT": "1234",
    "CLARA_GATEWAY_SECRET": "sixteen swordfish",
    "CLARA_GATEWAY_ALLOWED_ORIGINS": "https://chat.example.org",
    "CLARA_GATEWAY_MAX_CONNECTIONS": "5",
    "CLARA_RATE_NODE": "600/50",
    "CLARA_RATE_USER": "20",
    "CLARA_MAX_RUNNING": "7",
    "CLARA_RESPONDER": "echo",
    "CLARA_RESPONDER_COMMAND": "cat",
    "CLARA_SESSION_TIMEOUT": "60",
    "CLARA_MESSAGE_TIMEOUT": "10",
    "CLARA_DRAIN_TIMEOUT": "5",
    "CLARA_KEEP": "1d",
    "CLARA_KEEP_RUNS": "forever",
    "CLARA_KEEP_ATTACHMENTS": "1h",
    "CLARA_AUTO_MIGRATE": "0",
    "CLARA_LOG_LEVEL": "DEBUG",
    "CLARA_HOOKS_DIR": "/srv/hooks",
    "CLARA_SCHEDULER_DIR": "/srv/tasks",
}


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("nothing", ["", " ", "\t\n"])
def test_an_empty_variable_is_as_good_as_none(name: str, nothing: str) -> None:
    assert load({name: nothing}) == load({})


def test_everything_can_be_set() -> None:
    chosen, found = load(VARIABLES)
    assert chosen == Settings(
        state_dir=Path("/srv/clara"),
        database_url="postgresql+psycopg://clara@db/clara",
        gateway_host="127.0.0.2",
        gateway_port=1234,
        gateway_secret="sixteen swordfish",
        gateway_allowed_origins=frozenset({"https://chat.example.org"}),
        gateway_max_connections=5,
        rate_node=Rate(600, at_once=50),
        rate_user=Rate(20, at_once=20),
        max_running=7,
        responder="echo",
        responder_command="cat",
        session_timeout=60,
        message_timeout=10,
        drain_timeout=5,
        keep=86400,
        keep_runs=None,
        keep_attachments=3600,
        auto_migrate=False,
        log_level="DEBUG",
        hooks_dir=Path("/srv/hooks"),
        scheduler_dir=Path("/srv/tasks"),
        sandbox=load_sandbox({}),
    )
    assert found == []


# --- the secret ----------------------------------------------------------------------------------


def test_the_secret_can_be_a_credential_of_systemds(tmp_path: Path) -> None:
    (tmp_path / "CLARA_GATEWAY_SECRET").write_text("swordfish\n")
    assert setting("gateway_secret", CREDENTIALS_DIRECTORY=f"{tmp_path}") == "swordfish"


def test_the_variable_goes_before_the_credential(tmp_path: Path) -> None:
    (tmp_path / "CLARA_GATEWAY_SECRET").write_text("swordfish")
    chosen = setting(
        "gateway_secret", CREDENTIALS_DIRECTORY=f"{tmp_path}", CLARA_GATEWAY_SECRET="marlin"
    )
    assert chosen == "marlin"


def test_an_empty_credential_is_as_good_as_none(tmp_path: Path) -> None:
    assert setting("gateway_secret", CREDENTIALS_DIRECTORY=f"{tmp_path}") is None
    (tmp_path / "CLARA_GATEWAY_SECRET").write_text("\n")
    assert setting("gateway_secret", CREDENTIALS_DIRECTORY=f"{tmp_path}") is None


def test_a_credential_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "CLARA_GATEWAY_SECRET").write_bytes(b"\xff")
    assert problem(CREDENTIALS_DIRECTORY=f"{tmp_path}") == (
        f"the credential {tmp_path}/CLARA_GATEWAY_SECRET cannot be read: write it in UTF-8"
    )
    (tmp_path / "CLARA_GATEWAY_SECRET").unlink()
    (tmp_path / "CLARA_GATEWAY_SECRET").mkdir()
    assert problem(CREDENTIALS_DIRECTORY=f"{tmp_path}").endswith("cannot be read: Is a directory")


# --- the state directory -------------------------------------------------------------------------


def test_systemd_says_where_the_state_lies() -> None:
    assert setting("state_dir", STATE_DIRECTORY="/var/lib/clarad") == Path("/var/lib/clarad")


def test_of_several_state_directories_the_first_is_taken() -> None:
    assert setting("state_dir", STATE_DIRECTORY="/var/lib/a:/var/lib/b") == Path("/var/lib/a")


def test_an_empty_state_directory_is_as_good_as_none() -> None:
    assert setting("state_dir", STATE_DIRECTORY="") == setting("state_dir")


def test_our_own_variable_goes_before_systemds() -> None:
    chosen = setting("state_dir", STATE_DIRECTORY="/var/lib/clarad", CLARA_STATE_DIR="/srv/clara")
    assert chosen == Path("/srv/clara")


def test_a_tilde_is_the_home_directory() -> None:
    assert setting("state_dir", CLARA_STATE_DIR="~/clara") == Path.home() / "clara"


def test_a_relative_state_directory_is_made_absolute() -> None:
    assert setting("state_dir", CLARA_STATE_DIR="state") == Path.cwd() / "state"


def test_the_database_lies_in_the_state_directory() -> None:
    url = setting("database_url", CLARA_STATE_DIR="/srv/clara")
    assert url == "sqlite:////srv/clara/clarad.db"


def test_the_home_of_somebody_who_does_not_exist_is_refused() -> None:
    assert "CLARA_STATE_DIR" in problem(CLARA_STATE_DIR="~nobody-of-this-name/clara")


def test_a_user_without_a_home_directory_can_name_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert setting("state_dir", CLARA_STATE_DIR="/srv/clara") == Path("/srv/clara")


# --- the database --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_has_several_names(scheme: str) -> None:
    url = setting("database_url", DATABASE_URL=f"{scheme}://u:p@db:5432/clara?sslmode=require")
    assert url == "postgresql+psycopg://u:p@db:5432/clara?sslmode=require"


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
def test_sqlite_is_named_by_its_file(scheme: str) -> None:
    url = setting("database_url", DATABASE_URL=f"{scheme}:////srv/clara.db")
    assert url == "sqlite:////srv/clara.db"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite+pysqlite:///:memory:",
        "sqlite:///:memory:?timeout=1",
        "sqlite:///?timeout=1",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file:clara?mode=memory&uri=true",
    ],
)
def test_a_database_in_memory_is_refused(url: str) -> None:
    assert "memory" in problem(DATABASE_URL=url)


@pytest.mark.parametrize("url", ["mysql://u@db/clara", "oracle://db", "http://db/", "://db"])
def test_a_database_of_another_kind_is_refused(url: str) -> None:
    assert "sqlite or postgresql" in problem(DATABASE_URL=url)


@pytest.mark.parametrize("url", ["clara.db", "/srv/clara.db", "sqlite:/srv/clara.db", "postgres"])
def test_a_database_without_a_scheme_is_refused_with_an_example(url: str) -> None:
    message = problem(DATABASE_URL=url)
    assert "sqlite:////" in message
    assert "postgresql://" in message


@pytest.mark.parametrize(
    "url", ["sqlite://clara.db", "postgres://u@db:port/clara", "postgres://u@[::1/clara"]
)
def test_a_database_url_that_nobody_can_read_is_refused(url: str) -> None:
    assert "DATABASE_URL" in problem(DATABASE_URL=url)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hunter2@db/clara",
        "jdbc:postgresql://u:hunter2@db/clara",
        "postgresql+psycopg2://u:hunter2@db/clara",
        "u:hunter2@db/clara",
        "postgres:u:hunter2@db/clara",
        "postgres//u:hunter2@db/clara",
        "postgres:u:hunter2@db/clara?service=tcp://db",
        "hunter2",
    ],
)
def test_a_problem_never_shows_a_password(url: str) -> None:
    assert "hunter2" not in problem(DATABASE_URL=url)


def test_a_secret_is_never_shown() -> None:
    chosen, _ = load({"CLARA_GATEWAY_SECRET": "hunter2"})
    assert "hunter2" not in repr(chosen)


def test_of_a_secret_that_may_be_guessed_there_is_a_warning() -> None:
    assert warnings(CLARA_GATEWAY_SECRET="x" * 16) == []
    [warning] = warnings(CLARA_GATEWAY_SECRET="x" * 15)
    assert warning.startswith("CLARA_GATEWAY_SECRET has fewer than 16 characters")


def test_a_secret_that_is_not_text_is_refused() -> None:
    # Bytes that are not UTF-8 come out of the environment like this (PEP 383).
    assert "CLARA_GATEWAY_SECRET" in problem(CLARA_GATEWAY_SECRET="hunter\udcff")


# --- the gateway ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "port"), [("0", 0), ("1", 1), ("65535", 65535), (" 80 ", 80)])
def test_a_port_is_a_number(text: str, port: int) -> None:
    assert setting("gateway_port", CLARA_GATEWAY_PORT=text) == port


@pytest.mark.parametrize("text", ["65536", "-1", "http", "0x50", "8 0", "1.5", "٨٠", "9" * 5000])
def test_what_is_no_port_is_refused(text: str) -> None:
    assert problem(CLARA_GATEWAY_PORT=text).startswith("CLARA_GATEWAY_PORT=")


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e3", "²"])
def test_what_is_no_number_of_connections_or_messages_is_refused(text: str) -> None:
    assert "from 1" in problem(CLARA_GATEWAY_MAX_CONNECTIONS=text)
    assert "from 1" in problem(CLARA_MAX_RUNNING=text)


@pytest.mark.parametrize("text", ["0", "60/", "/10", "60/0", "60/10/1", "1.5", "60/min", "-1"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    assert "such as 60, or 60/10" in problem(CLARA_RATE_USER=text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_this_machine_needs_no_secret(host: str) -> None:
    assert setting("gateway_host", CLARA_GATEWAY_HOST=host) == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "2001:db8::1", "fe80::1%eth0"])
def test_other_machines_are_not_let_in_without_a_secret(host: str) -> None:
    message = problem(CLARA_GATEWAY_HOST=host)
    assert "set CLARA_GATEWAY_SECRET" in message
    assert "127.0.0.1" in message


def test_a_name_is_as_open_as_the_addresses_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, port: None) -> list[Any]:
        assert host == "assistant.example.org"
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.7", 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    message = problem(CLARA_GATEWAY_HOST="assistant.example.org")
    assert "set CLARA_GATEWAY_SECRET" in message


def test_with_a_secret_other_machines_are_let_in() -> None:
    host = setting("gateway_host", CLARA_GATEWAY_HOST="0.0.0.0", CLARA_GATEWAY_SECRET="swordfish")
    assert host == "0.0.0.0"


@pytest.mark.parametrize("host", ["clara..example", "a" * 64, f"{'a' * 64}.example"])
def test_a_host_that_cannot_be_a_name_does_no_harm(host: str) -> None:
    with suppress(ConfigError):  # it may be refused, or left to whoever binds it
        load({"CLARA_GATEWAY_HOST": host})


def test_origins_are_separated_by_commas() -> None:
    text = "https://chat.example.org, http://localhost:8080/ ,, HTTPS://Other.Example.org"
    assert setting("gateway_allowed_origins", CLARA_GATEWAY_ALLOWED_ORIGINS=text) == {
        "https://chat.example.org",
        "http://localhost:8080",
        "https://other.example.org",
    }


@pytest.mark.parametrize("text", ["*", "null", "chat.example.org", "https://a.example,b.example"])
def test_an_origin_without_its_scheme_is_refused(text: str) -> None:
    assert "with its scheme" in problem(CLARA_GATEWAY_ALLOWED_ORIGINS=text)


def test_trusted_proxies_are_read_and_a_wrong_one_is_named() -> None:
    proxies = setting("trusted_proxies", CLARA_TRUSTED_PROXIES="10.0.0.0/8, unix")
    assert (proxies.trusts("10.1.2.3"), proxies.trusts("uid 0"), proxies.unix) == (True, True, True)
    said = problem(CLARA_TRUSTED_PROXIES="proxy.example.org")
    assert said.startswith("CLARA_TRUSTED_PROXIES='proxy.example.org': ")
    assert "write addresses and networks" in said


# --- everything else -----------------------------------------------------------------------------

TIMES: Final = {
    "CLARA_SESSION_TIMEOUT": "session_timeout",
    "CLARA_MESSAGE_TIMEOUT": "message_timeout",
    "CLARA_DRAIN_TIMEOUT": "drain_timeout",
}


@pytest.mark.parametrize(("variable", "name"), TIMES.items())
@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("0.5", 0.5), ("1e3", 1000)])
def test_a_time_is_a_number_of_seconds(variable: str, name: str, text: str, seconds: float) -> None:
    assert setting(name, **{variable: text}) == seconds


PERIODS: Final = {
    "CLARA_KEEP": "keep",
    "CLARA_KEEP_RUNS": "keep_runs",
    "CLARA_KEEP_ATTACHMENTS": "keep_attachments",
}


@pytest.mark.parametrize(("variable", "name"), PERIODS.items())
@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("2h", 7200), ("90d", 7_776_000), ("forever", None)],
)
def test_a_period_has_a_unit(variable: str, name: str, text: str, seconds: float | None) -> None:
    assert setting(name, **{variable: text}) == seconds


@pytest.mark.parametrize("variable", PERIODS)
@pytest.mark.parametrize("text", ["0", "90", "0d", "-1d", "1.5d", "d", "1w", "off", "36501d", "٩d"])
def test_what_is_no_period_is_refused(variable: str, text: str) -> None:
    assert "such as 90d; or forever" in problem(**{variable: text})


@pytest.mark.parametrize("variable", TIMES)
@pytest.mark.parametrize("text", ["-1", "soon", "5m", "nan", "inf", "-inf", "1e9", "1,5"])
def test_what_is_no_time_is_refused(variable: str, text: str) -> None:
    assert "number of seconds" in problem(**{variable: text})


@pytest.mark.parametrize("variable", ["CLARA_SESSION_TIMEOUT", "CLARA_MESSAGE_TIMEOUT"])
@pytest.mark.parametrize("text", ["0", "0.0", "-0.0"])
def test_no_time_at_all_is_refused(variable: str, text: str) -> None:
    assert "above 0" in problem(**{variable: text})


def test_the_drain_can_be_left_out() -> None:
    assert setting("drain_timeout", CLARA_DRAIN_TIMEOUT="0") == 0


@pytest.mark.parametrize("text", ["1", "true", "True", "YES", "on"])
def test_a_switch_is_on(text: str) -> None:
    assert setting("auto_migrate", CLARA_AUTO_MIGRATE=text) is True


@pytest.mark.parametrize("text", ["0", "false", "False", "NO", "off"])
def test_a_switch_is_off(text: str) -> None:
    assert setting("auto_migrate", CLARA_AUTO_MIGRATE=text) is False


@pytest.mark.parametrize("text", ["2", "maybe", "-", "o"])
def test_a_switch_has_no_third_position(text: str) -> None:
    assert "write 1 or 0" in problem(CLARA_AUTO_MIGRATE=text)


@pytest.mark.parametrize("text", ["debug", "Info", "WARNING", "error"])
def test_a_log_level_may_be_written_in_any_case(text: str) -> None:
    assert setting("log_level", CLARA_LOG_LEVEL=text) == text.upper()


def test_a_log_level_that_does_not_exist_is_refused_with_the_ones_that_do() -> None:
    assert "DEBUG, INFO, WARNING, ERROR" in problem(CLARA_LOG_LEVEL="LOUD")


def test_a_responder_that_does_not_exist_is_refused_with_the_ones_that_do() -> None:
    assert "echo, command" in problem(CLARA_RESPONDER="oracle")


def test_a_responder_that_is_misspelled_is_guessed() -> None:
    assert "did you mean command?" in problem(CLARA_RESPONDER="comand")


def test_the_command_responder_is_given_a_command() -> None:
    command = setting("responder_command", CLARA_RESPONDER="command", CLARA_RESPONDER_COMMAND="cat")
    assert command == "cat"


@pytest.mark.parametrize("command", [{}, {"CLARA_RESPONDER_COMMAND": " "}])
def test_the_command_responder_is_refused_without_a_command(command: dict[str, str]) -> None:
    message = problem(CLARA_RESPONDER="command", **command)
    assert "set it to the shell command" in message


# --- all in one go -------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_said_in_one_go() -> None:
    wrong = {
        "DATABASE_URL": "mysql://db",
        "CLARA_GATEWAY_PORT": "http",
        "CLARA_GATEWAY_MAX_CONNECTIONS": "none",
        "CLARA_GATEWAY_ALLOWED_ORIGINS": "*",
        "CLARA_MAX_RUNNING": "0",
        "CLARA_RESPONDER": "oracle",
        "CLARA_SESSION_TIMEOUT": "0",
        "CLARA_MESSAGE_TIMEOUT": "soon",
        "CLARA_DRAIN_TIMEOUT": "-1",
        "CLARA_AUTO_MIGRATE": "maybe",
        "CLARA_LOG_LEVEL": "LOUD",
        "CLARA_GATEWAY_HOST": "0.0.0.0",
    }
    said = problems(**wrong)
    assert [name for name in wrong if not any(name in sentence for sentence in said)] == []
    assert len(said) == len(wrong)


def test_a_problem_says_what_was_written() -> None:
    assert problem(CLARA_GATEWAY_PORT="http").startswith("CLARA_GATEWAY_PORT='http': ")


def test_the_error_holds_every_problem() -> None:
    with pytest.raises(ConfigError, match=r"CLARA_GATEWAY_PORT=.*; CLARA_LOG_LEVEL="):
        load({"CLARA_GATEWAY_PORT": "http", "CLARA_LOG_LEVEL": "LOUD"})


# Host names are left out: looking them up asks the network.
readable = st.text(st.characters(exclude_characters="\0"))
environments = st.dictionaries(
    st.sampled_from(sorted(set(VARIABLES) - {"CLARA_GATEWAY_HOST"})) | readable, readable
)


@relaxed
@given(environments)
@example({"CLARA_STATE_DIR": "~nobody-of-this-name"})
@example({"CLARA_GATEWAY_HOST": "clara..example"})
def test_whatever_is_set_it_is_understood_or_refused(environ: dict[str, str]) -> None:
    try:
        chosen, _ = load(environ)
    except ConfigError as error:
        found = error.problems
    else:
        assert chosen.state_dir.is_absolute()
        return
    assert all(found)


# --- what has no effect --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ORS_ENABLED", "PROACTIVE_INTERVAL"])
@pytest.mark.parametrize("value", ["1", ""])
def test_a_variable_of_the_removed_system_gives_one_warning(name: str, value: str) -> None:
    (warning,) = warnings(**{name: value})
    assert warning.startswith(f"{name} has no effect")


def test_every_variable_of_the_removed_system_gives_a_warning_of_its_own() -> None:
    found = warnings(ORS_A="1", ORS_B="1", PROACTIVE_A="1")
    assert [sentence.split()[0] for sentence in found] == ["ORS_A", "ORS_B", "PROACTIVE_A"]


def test_a_name_that_only_a_setting_of_the_sandboxes_has_is_said_to_be_none() -> None:
    assert warnings(SANDBOX_COLOUR="blue") == ["SANDBOX_COLOUR is not a setting, and has no effect"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("CLARA_GATEWAY_PROT", "CLARA_GATEWAY_PORT"),
        ("CLARA_GATEWAY_SECRETS", "CLARA_GATEWAY_SECRET"),
        ("CLARA_STATEDIR", "CLARA_STATE_DIR"),
        ("CLARA_RESPONDR", "CLARA_RESPONDER"),
        ("CLARA_MESAGE_TIMEOUT", "CLARA_MESSAGE_TIMEOUT"),
        ("SANDBOX_MOD", "SANDBOX_MODE"),
        ("DOCKER_SANDBOX_MEMROY", "DOCKER_SANDBOX_MEMORY"),
        ("INCUS_SANDBOX_TIMEOUTS", "INCUS_SANDBOX_TIMEOUT"),
    ],
)
def test_a_misspelled_variable_is_guessed(written: str, meant: str) -> None:
    (warning,) = warnings(**{written: "1"})
    assert written in warning
    assert f"did you mean {meant}?" in warning


@pytest.mark.parametrize(
    "name", ["CLARA_GATEWAY_URL", "CLARA_DISCORD_TOKEN", "CLARA_", "HOME", "ORSON", "clara_port"]
)
def test_a_variable_of_somebody_else_gives_no_warning(name: str) -> None:
    assert warnings(**{name: "1"}) == []


# --- sandboxes -----------------------------------------------------------------------------------


def test_there_are_no_sandboxes_unless_they_are_asked_for() -> None:
    assert setting("sandbox").mode == "off"
    assert setting("sandbox", SANDBOX_MODE="docker", SANDBOX_PIDS="32").pids == 32


def test_what_is_wrong_with_sandboxes_is_named_with_all_the_rest() -> None:
    found = problems(CLARA_GATEWAY_PORT="x", SANDBOX_MODE="podman", SANDBOX_PIDS="many")
    assert [each.partition("=")[0] for each in found] == [
        "CLARA_GATEWAY_PORT",
        "SANDBOX_MODE",
        "SANDBOX_PIDS",
    ]


def test_the_tools_need_sandboxes() -> None:
    assert problem(CLARA_RESPONDER="tools") == (
        "CLARA_RESPONDER=tools needs sandboxes: set SANDBOX_MODE to auto, docker or incus"
    )
    for mode in ("auto", "docker", "incus", "incus-vm"):
        assert setting("responder", CLARA_RESPONDER="tools", SANDBOX_MODE=mode) == "tools"


def test_a_sandbox_s_setting_has_to_be_utf_8() -> None:
    assert problem(DOCKER_SANDBOX_IMAGE="\udcff") == "DOCKER_SANDBOX_IMAGE: write it in UTF-8"
