"""Errors of other libraries, told as one of ours in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdhub.checkpoint.documents import shown
from sdhub.errors import SdhubError

LONGEST = 250
PANIC = "PanicException"  # of libraries in Rust, derived from BaseException


@contextmanager
def told(what: str, kind: type[SdhubError], *, hint: str = "", hidden: str = "") -> Iterator[None]:
    """Whatever a library raises in the block becomes a `kind` whose message begins with `what`.

    A stranger's files can make a library raise anything. Errors of our own pass as they are; `hidden` is a path
    that the line does not show.
    """
    try:
        yield
    except SdhubError as error:
        if hidden and hidden in error.message:
            error.message = error.message.replace(hidden, "")
            error.args = (error.message,)
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        text = " ".join(str(error).replace(hidden or "\0", "").split()) or type(error).__name__
        raise kind(f"{what}: {shown(text, LONGEST)}", hint=hint) from error
