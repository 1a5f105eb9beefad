"""No secret ever appears in a record."""

import json
import logging
import string
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from clarad.log.record import Record, of_logging
from clarad.log.redaction import HIDDEN, Redactor, password_in, secrets_in

SECRET = "correct horse/battery+staple"


def redacted(message: str, *secrets: str, **fields: str) -> Record:
    redactor = Redactor()
    redactor.hide(secrets)
    return redactor.redact(Record(0.0, logging.INFO, "test", message, fields=fields))


@pytest.mark.parametrize("write", [str, repr, json.dumps, partial(quote, safe="")])
def test_a_secret_is_hidden_however_it_is_written(write: Callable[[str], str]) -> None:
    secret = "correct 'horse'\"/battery+\\staple\nä"
    message = redacted(f"it is {write(secret)}!", secret).message
    assert "battery" not in message
    assert message.startswith("it is ")


@given(st.text(string.ascii_letters + string.digits, min_size=8), st.text(), st.text())
def test_a_long_secret_is_hidden_wherever_it_is(secret: str, before: str, after: str) -> None:
    assert secret not in redacted(f"{before}{secret}{after}", secret).message


def test_a_secret_is_hidden_in_every_field() -> None:
    record = redacted("nothing", SECRET, CLARA_REASON=f"no {SECRET}", CLARA_USER_ID="u")
    assert record.fields == {"CLARA_REASON": f"no {HIDDEN}", "CLARA_USER_ID": "u"}


def test_a_short_secret_is_hidden_as_a_word_and_words_stay_readable() -> None:
    assert redacted("clara of clarad says 'clara'", "clara").message == (
        f"{HIDDEN} of clarad says '{HIDDEN}'"
    )


def test_what_is_no_secret_stays_as_it_is() -> None:
    for message in (
        "listening on ws://127.0.0.1:18789; https://example.org/a?b=c@d",
        "the bearer presents basic functionality",
        "authorization is needed",
    ):
        assert redacted(message, SECRET).message == message


@pytest.mark.parametrize(
    ("shown", "secret"),
    [
        ("postgresql+psycopg://clara:hunter2@db.example.org/clara", "hunter2"),
        ("redis://:hunter2@127.0.0.1", "hunter2"),
        ("Authorization: Bearer abc.def-123", "abc.def-123"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpwYXNz"),
        ('{"Authorization": "token ghp_0123"}', "ghp_0123"),
        ("shown clarad_" + "a-_Z" * 10 + "xyz.", "a-_Za-_Z"),
        ("sent with whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "C2FVsBQIhrscChlQIMV"),
    ],
)
def test_what_has_the_shape_of_a_secret_is_hidden_without_being_known(
    shown: str, secret: str
) -> None:
    assert secret not in redacted(shown).message


def test_a_database_s_error_does_not_give_its_password_away() -> None:
    url = "postgresql+psycopg://clara:p%40ss-word-1@127.0.0.1:1/clara"
    redactor = Redactor()
    redactor.hide(password_in(url))
    try:
        with create_engine(url).connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        error.add_note(f"while connecting to {url} with p@ss-word-1")
        caught = logging.LogRecord("test", 40, __file__, 1, "%s: %r", (url, error), None)
        caught.exc_info = (type(error), error, error.__traceback__)
    record = redactor.redact(of_logging(caught))
    assert "Traceback" in record.message
    assert "ss-word-1" not in record.message
    assert "127.0.0.1:1/clara" in record.message


def test_a_password_is_known_as_it_is_written_and_as_it_is_meant() -> None:
    assert password_in("postgresql://u:p%40ss@h/d") == ["p%40ss", "p@ss"]
    assert password_in("postgresql://u@h/d") == []
    assert password_in("sqlite:////var/lib/clarad/clarad.db") == []


def test_variables_and_headers_are_secrets_by_their_names() -> None:
    found = secrets_in(
        {
            "OPENAI_API_KEY": "sk-0123",
            "GITHUB_TOKEN": "ghp_0123",
            "DB_PASSWORD": "hunter22",
            "Authorization": "Bearer 987654",
            "X-Api-Key": "0123456",
            "MAX_TOKENS": "4096",  # too short to be one
            "TOKENIZERS_PARALLELISM": "false-ish",
            "HOME": "/var/lib/clarad",
        }
    )
    assert found == ["sk-0123", "ghp_0123", "hunter22", "Bearer 987654", "987654", "0123456"]
