"""`clarad check`: what is wrong with the configuration, all of it, before the daemon meets it."""

import argparse

from clarad import config
from clarad.cli import fail


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Read the whole configuration and say everything that is wrong in one go, with what to\n"
        "write instead. The exit status is 0 if the daemon can start with it, else 1."
    )
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> int:
    """Check the settings, then whether what they name can be used."""
    try:
        settings, warnings = config.load()
    except config.ConfigError as error:
        for problem in error.problems:
            fail(problem)
        return 1
    for warning in warnings:
        fail(f"warning: {warning}")
    if (trouble := _store_problem(settings)) is not None:
        fail(trouble)
        return 1
    print("The configuration is good.")
    return 0


def _store_problem(settings: config.Settings) -> str | None:
    """Look into the database, without changing or creating anything."""
    from clarad.store import StoreError, migrate, open_engine

    url = settings.database_url
    if url.startswith("sqlite://") and not config.sqlite_path(url).exists():
        return None
    try:
        engine = open_engine(url)
        behind = migrate.is_behind(engine)
    except StoreError as error:
        return f"DATABASE_URL: {error}"
    if behind and not settings.auto_migrate:
        return "the database is behind and CLARA_AUTO_MIGRATE=0 is set: run `clarad migrate`"
    return None
