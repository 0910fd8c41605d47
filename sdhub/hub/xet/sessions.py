"""Upload sessions: a token, the xorbs that came with it, and the files that its shards make of them.

Each session has an address of its own (`/xet/<id>`), so a client's cache of what it uploaded, which it keeps by
address, never points at xorbs that are gone. Xorbs live until their session has been quiet for a while.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.hub import EmbeddedHub
from sdhub.hub.store.blobs import Staged
from sdhub.hub.xet.formats import ShardFile, XetError, Xorb, is_hash

TOKEN_SECONDS = 24 * 3600
QUIET_SECONDS = 600.0
MAX_FILE_BYTES = 64 * 2**30


@dataclass(frozen=True)
class Session:
    """An upload session into one repository."""

    id: str
    repo_id: int
    folder: Path

    def xorb(self, name: str) -> Path:
        """Where a xorb of this session is, or would be. 400 for a name that is no hash."""
        if not is_hash(name):
            raise bad_request("Not a Xet hash")
        return self.folder / name


def begin(hub: EmbeddedHub, repo_id: int) -> tuple[Session, str, int]:
    """A new session with its token and the time it ends (Unix seconds)."""
    sweep(hub)
    session_id, token = secrets.token_hex(8), secrets.token_urlsafe(32)
    session = Session(session_id, repo_id, _folder(hub) / session_id)
    session.folder.mkdir(parents=True)
    with hub.database.write() as connection:
        connection.execute(
            "INSERT INTO xet_session VALUES (?, ?, ?, 0, ?)", (session_id, _digest(token), repo_id, time.time())
        )
    return session, token, int(time.time()) + TOKEN_SECONDS


def find(hub: EmbeddedHub, session_id: str, authorization: str | None) -> Session:
    """The session of a token. 401 when they do not belong together or it has ended."""
    row = hub.database.connection().execute("SELECT * FROM xet_session WHERE id = ?", (session_id,)).fetchone()
    token = (authorization or "").partition(" ")[2].strip()
    if row is None or not hmac.compare_digest(row["token_sha256"], _digest(token)):
        raise Refusal(401, "Invalid Xet token")
    return Session(session_id, row["repo_id"], _folder(hub) / session_id)


def active(hub: EmbeddedHub, session: Session, *, shards: int = 0) -> None:
    """Note that the session is in use, and that it brought `shards` more shards."""
    with hub.database.write() as connection:
        connection.execute(
            "UPDATE xet_session SET active_at = ?, shards = shards + ? WHERE id = ?",
            (time.time(), shards, session.id),
        )


def assemble(hub: EmbeddedHub, session: Session, files: list[ShardFile]) -> None:
    """Put the files of a shard together and keep them for the repository; all of them or none.

    Raises Refusal: 400 for xorbs that are missing or do not fit, or when a SHA-256 is another.
    """
    total = sum(file.size for file in files)
    if total > MAX_FILE_BYTES:
        raise Refusal(413, f"The files of a shard have at most {MAX_FILE_BYTES} bytes")
    hub.blobs.require_space(total)
    staged: list[Staged] = []
    try:
        xorbs = _Xorbs(session)
        for file in files:
            staged.append(_assemble_file(hub, xorbs, file))
        with hub.database.write() as connection:
            for item in staged:
                hub.blobs.install(connection, session.repo_id, item)
    except XetError as error:
        raise bad_request(f"Xet: {error}") from None
    finally:
        for item in staged:
            item.discard()


class _Xorbs:
    """The xorbs of a session, of which the last one read is kept in memory."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._name = ""
        self._xorb: Xorb | None = None

    def get(self, name: str) -> Xorb:
        if self._xorb is None or self._name != name:
            path = self._session.xorb(name)
            if not path.exists():
                raise XetError("a xorb was not uploaded")
            self._name, self._xorb = name, Xorb(path)
        return self._xorb


def _assemble_file(hub: EmbeddedHub, xorbs: _Xorbs, file: ShardFile) -> Staged:
    with hub.blobs.stage() as target:
        for segment in file.segments:
            target.write(xorbs.get(segment.xorb).read(segment))
        staged = target.finish()
    if file.sha256 and staged.sha256 != file.sha256:
        staged.discard()
        raise XetError("the file has not the SHA-256 the shard says")
    return staged


def sweep(hub: EmbeddedHub) -> None:
    """Remove the sessions that are done and quiet, or too old."""
    now = time.time()
    with hub.database.write() as connection:
        connection.execute(
            "DELETE FROM xet_session WHERE active_at < ? OR (shards > 0 AND active_at < ?)",
            (now - TOKEN_SECONDS, now - QUIET_SECONDS),
        )
    known = {row[0] for row in hub.database.connection().execute("SELECT id FROM xet_session")}
    folder = _folder(hub)
    for path in folder.iterdir() if folder.is_dir() else ():
        # a session's folder is made just before its row
        if path.name not in known and path.stat().st_mtime < now - QUIET_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _folder(hub: EmbeddedHub) -> Path:
    return hub.root / "xet"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
