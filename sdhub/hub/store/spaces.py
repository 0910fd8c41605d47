"""What a Space is set to: stage, hardware, sleep time, variables and secrets. `running` runs it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from sqlite3 import Connection

from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.store.clock import now
from sdhub.hub.store.repositories import Repo

SDKS = ("gradio", "docker", "static", "streamlit")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
MAX_VALUE = 64 * 1024


@dataclass(frozen=True)
class Runtime:
    """`stage` as the Hub names it (RUNNING, PAUSED, …); `sleep_seconds` None is never."""

    stage: str
    hardware: str
    sleep_seconds: int | None


def create_runtime(connection: Connection, repo: Repo, hardware: str, sleep_seconds: int | None) -> None:
    """Settings of a new Space."""
    stage = "RUNNING" if repo.sdk == "static" else "NO_APP_FILE"
    connection.execute("INSERT INTO space VALUES (?, ?, ?, ?)", (repo.id, stage, hardware, sleep_seconds))


def runtime(connection: Connection, repo: Repo) -> Runtime:
    """The settings of a Space. 404 for other repositories."""
    row = connection.execute("SELECT * FROM space WHERE repo_id = ?", (repo.id,)).fetchone()
    if row is None:
        raise Refusal(404, "This repository is not a Space")
    return Runtime(row["stage"], row["hardware"], row["sleep_seconds"])


def set_stage(connection: Connection, repo: Repo, stage: str) -> None:
    """Pause or restart, in name."""
    connection.execute("UPDATE space SET stage = ? WHERE repo_id = ?", (stage, repo.id))


def set_hardware(connection: Connection, repo: Repo, hardware: str) -> None:
    """Ask for a hardware flavor."""
    connection.execute("UPDATE space SET hardware = ? WHERE repo_id = ?", (hardware, repo.id))


def set_sleep(connection: Connection, repo: Repo, seconds: int | None) -> None:
    """Set the sleep time."""
    connection.execute("UPDATE space SET sleep_seconds = ? WHERE repo_id = ?", (seconds, repo.id))


def set_value(
    connection: Connection, repo: Repo, kind: str, key: object, value: object, description: object
) -> None:
    """Set a `variable` or a `secret`."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise bad_request("A key has letters, digits and underscores")
    if not isinstance(value, str) or len(value) > MAX_VALUE:
        raise bad_request(f"A value is a text of at most {MAX_VALUE} characters")
    text = description if isinstance(description, str) else ""
    connection.execute(
        "INSERT OR REPLACE INTO space_value VALUES (?, ?, ?, ?, ?, ?)",
        (repo.id, kind, key, value, text, now()),
    )


def delete_value(connection: Connection, repo: Repo, kind: str, key: object) -> None:
    """Remove a variable or a secret. 404 when there is none."""
    gone = connection.execute(
        "DELETE FROM space_value WHERE repo_id = ? AND kind = ? AND key = ?", (repo.id, kind, str(key))
    ).rowcount
    if not gone:
        raise Refusal(404, "There is no such key")


def environment(connection: Connection, repo: Repo) -> dict[str, str]:
    """Variables and secrets with their values, for the app alone."""
    rows = connection.execute(
        "SELECT key, value FROM space_value WHERE repo_id = ? ORDER BY kind DESC", (repo.id,)
    )
    return {row["key"]: row["value"] for row in rows}


def put_to_sleep(connection: Connection) -> None:
    """What another server ran does not run now."""
    connection.execute(
        "UPDATE space SET stage = 'SLEEPING' WHERE stage IN ('BUILDING', 'APP_STARTING', 'RUNNING') "
        "AND repo_id IN (SELECT id FROM repo WHERE sdk != 'static')"
    )


def values(connection: Connection, repo: Repo, kind: str) -> dict[str, dict[str, str]]:
    """Variables with their values; secrets only with description and time."""
    rows = connection.execute(
        "SELECT * FROM space_value WHERE repo_id = ? AND kind = ? ORDER BY key", (repo.id, kind)
    )
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        entry = {"key": row["key"], "description": row["description"], "updatedAt": row["updated_at"]}
        found[row["key"]] = entry if kind == "secret" else {**entry, "value": row["value"]}
    return found
