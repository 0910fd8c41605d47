"""Errors of other libraries, told as one of ours in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sdhub.core.documents import shown
from sdhub.core.errors import SdhubError

LONGEST = 250
PANIC = "PanicException"  # of libraries in Rust, derived from BaseException


@contextmanager
def translate_errors(
    what: str, kind: type[SdhubError], *, hint: str = "", renamed: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Whatever a library raises in the block becomes a `kind` whose message begins with `what`.

    A stranger's files can make a library raise anything. Errors of our own pass as they are. `renamed` are texts
    that the line shows otherwise, such as passing folders, in their order.
    """
    try:
        yield
    except SdhubError as error:
        error.message = _renamed(error.message, renamed or {})
        error.args = (error.message,)
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        text = " ".join(_renamed(str(error), renamed or {}).split()) or type(error).__name__
        raise kind(f"{what}: {shown(text, LONGEST)}", hint=hint) from error


def _renamed(text: str, renamed: Mapping[str, str]) -> str:
    for before, after in renamed.items():
        text = text.replace(before, after)
    return text
