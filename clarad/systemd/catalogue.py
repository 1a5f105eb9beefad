"""What the log can say, and how it is fixed: the single source of the journal's catalogue.

`journalctl -x` shows these texts below the records that carry their ids. The ids never change:
people search and alert by them. `make generate` writes systemd/clarad.catalog, the file that
journald reads (https://systemd.io/CATALOG).
"""

import textwrap
from typing import Any, Final

_WIDTH: Final = 80


class Entry:
    """What is always the same about one kind of record; `commands` are shown below the text.

    `@FIELD@` in them is replaced by the record's field.
    """

    def __init__(
        self, message_id: str, subject: str, text: str = "Nothing needs to be done.", *commands: str
    ) -> None:
        """`message_id` is 128 random bits in hexadecimal, as of `journalctl --new-id128`."""
        self.message_id = message_id
        self.subject = subject
        self.text = text
        self.commands = commands

    def about(self, **fields: str | float | None) -> dict[str, Any]:
        """Return what makes a record one of these, as `extra` of `logging`; fields as `hook="x"`.

        They become `CLARA_HOOK` and so on.
        """
        return {"entry": self, "fields": fields}


# --- the daemon ----------------------------------------------------------------------------------
DAEMON_STARTED: Final = Entry(
    "add7a3188ae74afcba2bf024ceb30f44",
    "The daemon is started",
    "clarad takes connections at the address in this record.",
)
DAEMON_STOPPING: Final = Entry(
    "07d80f972bde4a07abd0f54f19422b3e",
    "The daemon stops",
    "It was told to. Messages and tasks that run have CLARA_DRAIN_TIMEOUT seconds to end; a "
    "second signal ends them at once.",
)
DAEMON_STOPPED: Final = Entry(
    "dc3ca15060384bd7846f8d468ed3dc44",
    "The daemon has stopped",
    "Everything that was under way is in the store. The next start goes on with it.",
)
LEASE_LOST: Final = Entry(
    "d2e5b160f01dfa0d1b78864497c1d909",
    "The daemon has lost its lease on the database",
    "Several daemons may share a PostgreSQL database. This one did not renew its lease in time, "
    "because its machine stood still or the database could not be reached. It has ended all that "
    "went on, and begins anew as soon as the database answers. What it had begun ends as "
    "interrupted. If this happens often, look at the network, or raise CLARA_LEASE.",
)
DAEMON_FAILED: Final = Entry(
    "b65d91efa3b843e08eec6bcb32e34f31",
    "The daemon failed",
    "This is a bug in clarad, and systemd starts the daemon again. The record has the whole "
    "traceback; report it with the records around it:",
    "journalctl -u clarad -n 200 -o short-iso",
)
INTERNAL_ERROR: Final = Entry(
    "ca8c22b4f9de465486724c14bea1a830",
    "Something inside the daemon failed",
    "This is a bug in clarad. The record has the whole traceback, and the daemon goes on. "
    "Report it with the records around it:",
    "journalctl -u clarad -n 200 -o short-iso",
)
CONFIG_REFUSED: Final = Entry(
    "17cca0c644fa41d38f5caec70df3c36e",
    "The configuration is refused",
    "A setting, a hook or a task is wrong, and the daemon does not start. The record names "
    "the place and what to write instead. Correct it, and look at the whole before the "
    "next start:",
    "clarad check",
)
CONFIG_QUESTIONABLE: Final = Entry(
    "61a75de38c4e4797873af6f1c6bec5ea",
    "A setting has no effect, or an entry is left out",
    "The daemon runs without it. The record names the place and what to write instead; "
    '"clarad check" shows all of them.',
)
RELOADED: Final = Entry(
    "2e94881d05234395bcbbd50b6f06a282",
    "The configuration was reloaded",
    "What the record counts is in force.",
)
RELOAD_REFUSED: Final = Entry(
    "d9497a234c014dfba069626048681fea",
    "A reload is refused, nothing has changed",
    "What was in force before still is. The record names what is wrong; correct it, look at "
    'the whole with "clarad check", and reload again.',
)
CANNOT_LISTEN: Final = Entry(
    "8d023baaf28e43d89ae0559dd27714e0",
    "The address cannot be listened on",
    "Another program may use it. End that program, or set CLARA_GATEWAY_HOST and "
    "CLARA_GATEWAY_PORT to another address. Who listens where:",
    "ss -ltnp",
)
ALREADY_RUNNING: Final = Entry(
    "ff566252f29c4187a900920744491c6d",
    "The state directory or the database is another daemon's",
    "One daemon can use a state directory, and one an SQLite database; the record says which "
    "process does, or why the directory cannot be written. Stop that one, or set CLARA_STATE_DIR "
    "and DATABASE_URL to what is this one's own.",
)
STATE_GONE: Final = Entry(
    "5e2d9c0b7a164f3f8b5d20c3f91e6a74",
    "The state directory is not what it was",
    "It, the database in it, or the name of the installation was deleted or emptied, or cannot be "
    "reached: the record says which, and what to do. What was written since to a file that was "
    "deleted is lost.",
)
LEFTOVERS_ENDED: Final = Entry(
    "4e86c044bea54affb4970d4a08678ed1",
    "Processes that the last daemon had left were ended",
    "The last daemon was killed while commands of hooks or tasks ran. Their runs are in the "
    "store as interrupted:",
    "clarad hooks runs --failed",
    "clarad tasks runs --failed",
)
PART_RESTARTED: Final = Entry(
    "97ab893bfb79451bb49dbcc05a2ffa62",
    "A part of the daemon failed and is started again",
    "The rest goes on. The record has the traceback. If it comes again and again the daemon "
    "ends, and systemd starts it whole; report it with the traceback.",
)
PART_GIVEN_UP: Final = Entry(
    "bc7b1e8754a5415b8239446692d4a940",
    "A part of the daemon keeps failing",
    "It failed more often than is put up with, so that the daemon ends and systemd starts "
    "it whole. The records before this one have the reasons.",
)
WATCHDOG: Final = Entry(
    "a49be01ceefa4ed0afdf5a6e94b36840",
    "The watchdog found a part that makes no progress",
    "systemd ends the daemon and starts it again. The records around this one have the "
    "stacks of all tasks and threads: report them. An overloaded disk or database looks the "
    "same.",
)
RECORDS_DROPPED: Final = Entry(
    "229e6e2eff754d68baff40695e0938f9",
    "Records of the log were dropped",
    "They came faster than they could be written: the journal, the terminal or the pipe "
    "stood still or was slow. What they were about went on. For a while, "
    "CLARA_LOG_LEVEL=WARNING keeps the log short.",
)
NO_JOURNAL: Final = Entry(
    "1cde412a7c9343e2b1762aa2c6e81b0f",
    "The journal cannot be reached",
    "The log goes to standard error instead, without its fields. See whether the journal runs:",
    "systemctl status systemd-journald.socket",
)

# --- the store -----------------------------------------------------------------------------------
STORE_FAILED: Final = Entry(
    "434f9e368033452596c47cc003476024",
    "The database failed",
    "The record has its own words. Look for a full disk, a file system that became "
    "read-only, or a server that is down. What has to be written is tried again each "
    "second; nothing that was accepted is lost.",
)
STORE_UNUSABLE: Final = Entry(
    "be5aa603f05f4039be865b18c49393da",
    "The database cannot be used",
    "The daemon does not start. The record has the reason: a wrong DATABASE_URL, a server "
    "that is down, a full disk, or tables that this version does not know. What the "
    "tables are:",
    "clarad migrate",
)
MESSAGE_UNREADABLE: Final = Entry(
    "0494890d26174dd288eed086df184f67",
    "A stored message cannot be read",
    "An earlier version of clarad, or another program, has written its row in "
    "clarad_messages in a form that this version does not read. The message has ended "
    "with an error, which its adapter is told.",
)
STORE_UNFIT: Final = Entry(
    "0b7c1d6ea2f84d5f9c36a1be47d05e92",
    "The database is damaged, empty, or of a newer clarad",
    "The record names it. Trying again does not help, and the daemon is not started again. "
    "Of a damaged file, or one that is empty without your having emptied it, put a backup in "
    "its place; of a newer clarad's, install that version. What is wrong with a file, and the "
    "way back:",
    "clarad backup verify FILE",
    "systemctl stop clarad",
    "sudo -u clarad clarad backup restore FILE",
)
MIGRATED: Final = Entry(
    "8f5d790ac9fb4e2ca74609f96bcdce2c",
    "The database was migrated",
    "It has the tables of this version now. The record has the revision from before, which "
    '"clarad migrate" goes back to.',
)

# --- messages ------------------------------------------------------------------------------------
MESSAGE_RECEIVED: Final = Entry(
    "9f08150f19d4498a85a18a11cbb1d56e",
    "A message was accepted",
    "It is in the store, and is answered when it is its turn.",
)
MESSAGE_SENT: Final = Entry("bc518a79a5324794a0b9f5b028b22034", "A message was answered")
MESSAGE_FAILED: Final = Entry(
    "a18a802256bb43eaa14cdc36f98b34d6",
    "A message failed",
    "Its sender was told so. If the responder is a command, the reason is what it wrote to "
    "standard error; otherwise the records of the same request say more:",
    "journalctl -u clarad CLARA_REQUEST_ID=@CLARA_REQUEST_ID@",
)
MESSAGE_TIMED_OUT: Final = Entry(
    "f19d4931710e4f9cb1675d932dba0b37",
    "A message was not answered in time",
    "Everything that was done for it has been ended, and its sender was told. If answers "
    "may take longer, set CLARA_MESSAGE_TIMEOUT.",
)
MESSAGE_CANCELLED: Final = Entry(
    "71ff523f0c1246c09257751e36922dde",
    "A message was cancelled",
    "CLARA_BY and CLARA_REASON say who it was and why. Everything that was done for it has "
    "been ended.",
)
CANNOT_START: Final = Entry(
    "a1c819c542823ded4bf5eda2e93c40e0",
    "No process can be started for messages",
    "The record says what has run out. Messages that need the responder's command fail until "
    "there is more of it; this is said once for each cause, until a command starts again. What "
    "systemd allows the daemon:",
    "systemctl show clarad -p TasksMax -p LimitNPROC -p LimitNOFILE -p MemoryMax",
)

# --- adapters and sessions -----------------------------------------------------------------------
ADAPTER_CONNECTED: Final = Entry("7e0109ae44c54a849e62067dd1f0a109", "An adapter has connected")
ADAPTER_DISCONNECTED: Final = Entry(
    "d5a5902e53cf442e9f9cdf47b84da7ef",
    "An adapter has gone",
    "Its messages go on, and their answers wait for it in the store. CLARA_CODE and "
    "CLARA_REASON say why it has gone, if anybody said so (RFC 6455, section 7.4).",
)
ADAPTER_REFUSED: Final = Entry(
    "2aed1ae1a7714e1b8a39d36398d39d0c",
    "An adapter is refused",
    "Its secret is wrong, its origin is not allowed, too many are connected, or a proxy that is "
    "not trusted sends a PROXY header: the record says which. Give the adapter the gateway's "
    "CLARA_GATEWAY_SECRET, or add the origin to CLARA_GATEWAY_ALLOWED_ORIGINS, or the proxy to "
    "CLARA_TRUSTED_PROXIES. If you do not know the address, somebody is guessing: "
    "after ten wrong secrets within a minute, what else is wrong from there is not logged "
    "for a minute. Have a secret that is long.",
)
CONNECTION_FAILED: Final = Entry(
    "abfb54d32b5e4e59b4b96bcd683a9af3",
    "A connection failed",
    "This is a bug in clarad. The record has the whole traceback; the adapter connects "
    "again, and nothing else was touched.",
)
SESSION_START: Final = Entry(
    "59c180c31fef48bab37c4d0b593f5675",
    "A session has begun",
    "Somebody has begun to talk in a channel.",
)
SESSION_END: Final = Entry("f69543926eec46fda9836ab317d5e59e", "A session has ended")
SESSION_TIMEOUT: Final = Entry(
    "b822e354cb6442ffa854bb01f6788c09",
    "A session has timed out",
    "There was no message in it for CLARA_SESSION_TIMEOUT seconds.",
)

# --- tools and sandboxes -------------------------------------------------------------------------
TOOL_START: Final = Entry("8e19cebc3e394c83ba5dc7de9f79e3ac", "A tool is used")
TOOL_END: Final = Entry("5a4e21add807414e9561ab3410fc7f7b", "A tool has ended")
TOOL_ERROR: Final = Entry(
    "e1071b2569974d5cbe9a2695b4ccf323",
    "A tool has failed",
    "Its message goes on. What the tool said is for the message's sender, and not in the log.",
)
NO_SANDBOX: Final = Entry(
    "420a823fa404461caa871781bf8d51f5",
    "There are no sandboxes",
    "The engine is gone, or something for it is missing: the record says what. Messages "
    "that need a sandbox fail with no_sandbox until it is back. More about it:",
    "clarad sandbox doctor",
)

# --- hooks and tasks -----------------------------------------------------------------------------
HOOK_RAN: Final = Entry("2087a7fe5b2543e484868a92f46b8f61", "A hook ran")
HOOK_FAILED: Final = Entry(
    "6e8e4ee74f1f4033bbf117afc4c87c29",
    "A hook failed",
    "The record has the reason. What its command wrote, and how it is run again for the same "
    "event when it is mended:",
    "clarad hooks show @CLARA_RUN@",
    "clarad hooks replay @CLARA_RUN@",
)
HOOK_SKIPPED: Final = Entry(
    "85ae3abb3f36409e9211f8a21684c3ce",
    "A hook did not run",
    "An earlier run went on, too many waited, hooks led to each other in a circle, or it "
    'was removed: the record says which. "clarad hooks replay @CLARA_RUN@" runs it after '
    "all.",
)
ATTEMPT_FAILED: Final = Entry(
    "70e56d5d6f6a45508b75b7928c56e911",
    "An attempt of a hook or a task failed, and another one follows",
    "The record says why, and when. If the last one fails, that is a record of its own.",
)
TASK_STARTED: Final = Entry("f991a2ef926a494c8877c7879b679970", "A task is run")
TASK_RAN: Final = Entry("4c7ffb20f0324652a0151b27d8f25b26", "A task ran")
TASK_ATTEMPT_FAILED: Final = Entry(
    "aca0b99eb4be44d0add15927cc2552dc",
    "An attempt at a task failed",
    "CLARA_REASON says why, and CLARA_AGAIN whether another attempt follows. What its "
    "command wrote:",
    "clarad tasks show @CLARA_RUN@",
)
TASK_FAILED: Final = Entry(
    "e71ef23ab00342328671b6c780899ffe",
    "A task failed",
    "The record has the reason. What its command wrote, and how it is run now when it is mended:",
    "clarad tasks show @CLARA_RUN@",
    "clarad tasks run @CLARA_TASK@",
)
TASK_SKIPPED: Final = Entry(
    "9ca7142ddf41475c92df98105871dff6",
    "A task did not run",
    "An earlier run of it went on, it is paused, or it was removed: the record says which. "
    '"clarad tasks run @CLARA_TASK@" runs it now.',
)
TASK_MISSED: Final = Entry(
    "a3befb1290d747e39a87296179128634",
    "A task was missed",
    'It came due while the daemon was not there to run it. With "catch_up" in '
    'scheduler.yaml it is run at the next start; "clarad tasks run @CLARA_TASK@" runs it '
    "now.",
)
OUTPUT_CUT: Final = Entry(
    "86f8a4881dc74d5caba02dd542e10ec9",
    "Not all that a hook or a task wrote is in the log",
    "The log has the last lines of each stream. More of them:",
    "clarad hooks show @CLARA_RUN@",
    "clarad tasks show @CLARA_RUN@",
)
CLOCK_SET_BACK: Final = Entry(
    "2b98bdc281d6485c899efd357f667e44",
    "The clock was set back",
    "Tasks that have run are not run again for times that come twice. If this comes often, "
    "see whether the clock is kept:",
    "timedatectl",
)

# --- the events of the daemon's own life ---------------------------------------------------------
GATEWAY_STARTUP: Final = Entry(
    "571319e6debb44b0aca72daee9a9633e",
    "The gateway is up",
    "Hooks on gateway:startup run now.",
)
GATEWAY_SHUTDOWN: Final = Entry(
    "732683d0c55d4284b6543e44f9070e30",
    "The gateway is down",
    "Hooks on gateway:shutdown run now.",
)

ENTRIES: Final = tuple(entry for entry in globals().values() if isinstance(entry, Entry))


def as_catalogue() -> str:
    """Return all entries in the form that `journalctl --update-catalog` reads."""
    return "# Written by `make generate` from clarad/systemd/catalogue.py\n" + "".join(
        f"\n-- {entry.message_id}\nSubject: {entry.subject}\nDefined-By: clarad\n\n{_body(entry)}"
        for entry in ENTRIES
    )


def _body(entry: Entry) -> str:
    text = textwrap.fill(entry.text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    commands = "".join(f"    {command}\n" for command in entry.commands)
    return f"{text}\n" + (f"\n{commands}" if commands else "")
