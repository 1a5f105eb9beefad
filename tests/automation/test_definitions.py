"""What is configured to run, and what of it is secret."""

from pathlib import Path

from clarad.automation import definitions
from clarad.config import Settings

HOOKS = """\
hooks:
- name: post
  event: message:sent
  type: webhook
  url: https://example.org/hook
  secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD
  headers: {Authorization: Bearer 0123456, X-Source: clarad}
- {name: tell, event: tool:end, command: ls, env: {WEATHER_API_KEY: k-987654, CITY: Berlin}}
"""
TASKS = """\
tasks:
- {name: tick, interval: 3600, command: ls, env: {BACKUP_PASSWORD: hunter22}}
"""


def test_the_secrets_are_keys_of_webhooks_and_what_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "hooks.yaml").write_text(HOOKS)
    (tmp_path / "scheduler.yaml").write_text(TASKS)
    settings = Settings(tmp_path, "sqlite://", hooks_dir=tmp_path, scheduler_dir=tmp_path)
    found = definitions.load(settings)
    assert found.problems == []
    assert sorted(found.secrets()) == [
        "0123456",
        "Bearer 0123456",
        "hunter22",
        "k-987654",
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ]
