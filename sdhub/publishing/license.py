"""The licence gate: nothing is published under terms that are unknown or forbid derivatives."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from sdhub.checkpoint.checkpoint import License
from sdhub.checkpoint.licenses import AND
from sdhub.core.errors import LicenseError, UsageError

_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_NO_DERIVATIVES = re.compile(r"cc-by(-nc)?-nd(-|$)|no-?deriv", re.IGNORECASE)
_DOCS = "huggingface.co/docs/hub/repositories-licenses"
_WAY_OUT = "say which licence it has with --license ID, if you have the right to say so"


@cache
def ids() -> frozenset[str]:
    """The licence ids that the Hub knows, from its documentation."""
    return frozenset(Path(__file__).with_name("licenses.txt").read_text().split())


def settle(stated: License | None, override: str | None = None, *, source: str = "the source") -> License:
    """The licence to publish under: the one the source states, or `override` where it states none.

    `source` names the source in messages. Raises LicenseError where the licence is unknown, forbids
    derivatives, is `other` without a name and a link, or where `override` contradicts the source.
    """
    if override is not None:
        stated = _override(stated, override.strip().lower(), source)
    if stated is None or stated.id.lower() == "unknown":
        raise LicenseError(f"{source} states no licence", hint=_WAY_OUT)
    if AND in stated.id and not forbids_derivatives(stated):
        raise LicenseError(
            f"{source} states several licences ({stated.id[:80]}), and not which of them holds",
            hint="say which with --license ID, if its author lets you choose",
        )
    if not _ID.fullmatch(stated.id.lower()) and AND not in stated.id:
        raise LicenseError(f"{source} states {stated.id[:80]!r}, which is no licence id", hint=_WAY_OUT)
    settled = replace(stated, id=stated.id.lower())
    if forbids_derivatives(settled):
        terms = settled.id if settled.id != "other" else settled.name or settled.id
        raise LicenseError(
            f"{source} is licensed under {terms[:80]}, which allows no derivatives",
            hint="a variant is a derivative: choose another checkpoint or, with the author's permission, publish "
            "from a copy whose card states the licence you were given",
        )
    if settled.id == "other" and not (settled.name and _reachable(settled)):
        raise LicenseError(
            f"{source} has the licence `other` without a name and a link",
            hint="put license_name and license_link (https://…, or a file of the repository) into its card",
        )
    return settled


def forbids_derivatives(license: License) -> bool:
    """Whether the terms are "no derivatives", by id or by the name of an `other` licence."""
    name = (license.name or "").replace(" ", "-").replace("_", "-")
    ids = license.id.split(AND)
    return any(_NO_DERIVATIVES.match(each) for each in ids) or bool(_NO_DERIVATIVES.search(name))


def _override(stated: License | None, chosen: str, source: str) -> License:
    if chosen not in ids() or chosen == "unknown":
        near = difflib.get_close_matches(chosen, sorted(ids() - {"unknown"}), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"see {_DOCS}"
        raise UsageError(f"--license {chosen[:80]!r} is no licence id of the Hub", hint=hint)
    if stated is None or stated.id.lower() == chosen:
        return stated or License(chosen)
    if forbids_derivatives(stated):
        return stated
    if chosen in stated.id.split(AND):
        return replace(stated, id=chosen)
    nameless = stated.id.lower() == "other" and not (stated.name and _reachable(stated))
    if nameless or stated.id.lower() == "unknown" or not (AND in stated.id or _ID.fullmatch(stated.id.lower())):
        return License(chosen, file=stated.file, notices=stated.notices)
    raise LicenseError(
        f"{source} is licensed under {stated.id[:80]}, --license {chosen} contradicts it",
        hint="leave --license away, or correct the card of the source",
    )


def _reachable(license: License) -> bool:
    if license.file:
        return True
    link = license.link or ""
    parts = urlsplit(link)
    return bool(link) and (parts.scheme in {"http", "https"} if parts.scheme else not link.startswith(("/", ".")))
