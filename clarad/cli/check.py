"""`clarad check`: what is wrong with the configuration, all of it, before the daemon meets it."""

import argparse

from clarad import config
from clarad.automation.hooks.hook import Hook, load_hooks
from clarad.automation.tasks.task import Task, load_tasks
from clarad.cli import print_error, probes


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Read the whole configuration and say everything that is wrong in one go, with what to\n"
        "write instead. The exit status is 0 if the daemon can start with it and answer, else 1."
    )
    parser.set_defaults(run=run, reads_broken_env_file=True)


def run(arguments: argparse.Namespace) -> int:
    """Check the settings, then whether what they name can be used."""
    problems: list[str] = [*arguments.env_file_problems]
    try:
        settings, warnings = config.load()
    except config.ConfigError as error:
        settings, warnings = error.settings, error.warnings
        problems += error.problems
    if unusable := list(probes.state_dir(settings.state_dir)):
        problems += unusable
    else:
        warnings += probes.other_user(settings.state_dir)
        problems += probes.store(settings)
    for probe in (probes.port, probes.tls, probes.responder):
        problems += probe(settings)
    problems += probes.socket_file(settings.gateway_socket)
    doubts, missing = probes.engine(settings)
    warnings += doubts
    problems += missing
    hooks, tasks = load_hooks(settings.hooks_dir), load_tasks(settings.scheduler_dir)
    problems += map(str, [*hooks.problems, *tasks.problems])
    warnings += probes.directory("CLARA_HOOKS_DIR", settings.hooks_dir)
    warnings += probes.directory("CLARA_SCHEDULER_DIR", settings.scheduler_dir)
    warnings += probes.entries(settings.hooks_dir / "hooks.yaml", hooks.entries)
    warnings += probes.entries(settings.scheduler_dir / "scheduler.yaml", tasks.entries)
    print_error(*(f"warning: {warning}" for warning in warnings), *problems)
    if problems:
        return 1
    found = f"{_count(hooks.entries, 'hook')}, {_count(tasks.entries, 'task')}"
    verdict = "can be used, apart from the warnings" if warnings else "is good"
    print(f"The configuration {verdict}: {found}.")
    return 0


def _count(entries: list[Hook] | list[Task], noun: str) -> str:
    return f"{len(entries)} {noun}{'' if len(entries) == 1 else 's'}"
