"""Keeping the chatter of heavy libraries off the console, and at hand when they fail."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Collect what Python code in the block prints; warnings and log records below errors are dropped.

    Yields the text so far. Log levels are as before afterwards.
    """
    said = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield said
    finally:
        logging.disable(level)
