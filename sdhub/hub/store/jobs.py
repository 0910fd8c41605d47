"""Jobs: what was asked for, and what became of it. Secrets are not kept: they go to the job's process alone."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from sqlite3 import Connection, Row
from typing import Any, Final

from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.store.clock import now

WAITS, RUNS = "SCHEDULING", "RUNNING"
STAGES: Final = (WAITS, RUNS, "COMPLETED", "CANCELED", "ERROR", "DELETED")
_LABEL = re.compile(r"[A-Za-z0-9._-]{0,100}")


@dataclass(frozen=True)
class Job:
    """A job. `spec` is the request that made it, without secrets and labels; times are "" until they come."""

    number: int
    id: str
    namespace: str
    initiator: str
    spec: Mapping[str, Any]
    labels: Mapping[str, str]
    stage: str
    message: str
    created_at: str
    started_at: str
    finished_at: str

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.stage not in (WAITS, RUNS)

    def document(self) -> dict[str, Any]:
        """As the API shows it."""
        spec = self.spec
        return {
            "id": self.id,
            "createdAt": self.created_at,
            "startedAt": self.started_at or None,
            "finishedAt": self.finished_at or None,
            "dockerImage": spec.get("dockerImage"),
            "spaceId": spec.get("spaceId"),
            "command": spec["command"],
            "arguments": spec["arguments"],
            "environment": spec["environment"],
            "secrets": {},
            "flavor": spec["flavor"],
            "timeout": spec["timeoutSeconds"],
            "labels": dict(self.labels),
            "volumes": spec["volumes"],
            "status": {"stage": self.stage, "message": self.message or None},
            "durations": self._durations(),
            "owner": {"id": self.namespace, "name": self.namespace, "type": "user"},
            "initiator": {"type": "user", "id": self.initiator, "name": self.initiator},
        }

    def _durations(self) -> dict[str, int | None]:
        end = self.finished_at or now()
        return {
            "schedulingSecs": _seconds(self.created_at, self.started_at) if self.started_at else None,
            "runningSecs": _seconds(self.started_at, end) if self.started_at else None,
            "totalSecs": _seconds(self.created_at, end),
        }


def _seconds(start: str, end: str) -> int:
    one, other = (datetime.fromisoformat(each.replace("Z", "+00:00")) for each in (start, end))
    return max(0, round((other - one).total_seconds()))


def create(
    connection: Connection, namespace: str, initiator: str, spec: Mapping[str, Any], labels: Mapping[str, str]
) -> Job:
    """A new job, waiting."""
    job_id = secrets.token_hex(12)
    number = connection.execute(
        "INSERT INTO job (id, namespace, initiator, spec, stage, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        (job_id, namespace, initiator, json.dumps(spec), WAITS, now()),
    ).lastrowid
    _label(connection, int(number or 0), labels)
    return find(connection, namespace, job_id)


def find(connection: Connection, namespace: str, job_id: str) -> Job:
    """A job of a namespace. 404 otherwise."""
    row = connection.execute("SELECT * FROM job WHERE id = ? AND namespace = ?", (job_id, namespace)).fetchone()
    if row is None:
        raise no_job()
    return _job(connection, row)


def no_job() -> Refusal:
    """The answer for a job that is not there or must not be seen."""
    return Refusal(404, "Job not found")


def search(
    connection: Connection,
    namespace: str,
    *,
    stages: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[Job]:
    """Jobs of a namespace, newest first: of some stages, with all of some labels, made before the one numbered."""
    conditions, values = ["namespace = ?"], [namespace, *stages]
    if stages:
        conditions.append(f"stage IN ({', '.join('?' * len(stages))})")
    for key, value in (labels or {}).items():
        conditions.append("number IN (SELECT number FROM job_label WHERE key = ? AND value = ?)")
        values += [key, value]
    if before is not None:
        conditions.append("number < ?")
        values.append(str(before))
    rows = connection.execute(
        f"SELECT * FROM job WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?",  # noqa: S608
        (*values, limit),
    )
    return [_job(connection, row) for row in rows.fetchall()]


def set_labels(connection: Connection, job: Job, labels: Mapping[str, str]) -> Job:
    """Put labels in the place of all that it has."""
    connection.execute("DELETE FROM job_label WHERE number = ?", (job.number,))
    _label(connection, job.number, labels)
    return find(connection, job.namespace, job.id)


def check_labels(labels: object) -> dict[str, str]:
    """Labels as the Hub allows them. 400 otherwise."""
    found = labels if labels is not None else {}
    texts = [each for pair in found.items() for each in pair] if isinstance(found, dict) else [None]
    if len(texts) > 100 or not all(isinstance(each, str) and _LABEL.fullmatch(each) for each in texts):
        raise bad_request("labels are texts of up to 100 letters, digits, dots, dashes and underscores")
    return dict(found)  # type: ignore[call-overload,no-any-return]


def begin(connection: Connection, job: Job) -> bool:
    """Note that a waiting job runs now; False where it waits no more."""
    return bool(
        connection.execute(
            "UPDATE job SET stage = ?, started_at = ? WHERE number = ? AND stage = ?",
            (RUNS, now(), job.number, WAITS),
        ).rowcount
    )


def end(connection: Connection, job: Job, stage: str, message: str = "") -> None:
    """Note how a job ended, unless that is known."""
    connection.execute(
        "UPDATE job SET stage = ?, message = ?, finished_at = ? WHERE number = ? AND stage IN (?, ?)",
        (stage, message, now(), job.number, WAITS, RUNS),
    )


def end_all(connection: Connection, message: str) -> None:
    """Note that whatever waited or ran has failed."""
    connection.execute(
        "UPDATE job SET stage = 'ERROR', message = ?, finished_at = ? WHERE stage IN (?, ?)",
        (message, now(), WAITS, RUNS),
    )


def _label(connection: Connection, number: int, labels: Mapping[str, str]) -> None:
    connection.executemany(
        "INSERT INTO job_label VALUES (?, ?, ?)", [(number, key, value) for key, value in labels.items()]
    )


def _job(connection: Connection, row: Row) -> Job:
    labels = connection.execute("SELECT key, value FROM job_label WHERE number = ?", (row["number"],)).fetchall()
    columns = {name: row[name] for name in row.keys() if name != "spec"}  # noqa: SIM118 — a Row iterates values
    return Job(**columns, spec=json.loads(row["spec"]), labels={each["key"]: each["value"] for each in labels})
