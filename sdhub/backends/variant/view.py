"""The folder that libraries load in a variant's place."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sdhub.backends.variant.gate import Vetted, vet
from sdhub.backends.variant.layout import Layout
from sdhub.core.errors import BuildError
from sdhub.core.foreign import translate_errors
from sdhub.core.scratch import temporary


def lay(vetted: Vetted, view: Path) -> None:
    """Put exactly what was vetted into the empty folder `view`."""
    for path, content in vetted.files.items():
        target = view / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            _link(content, target)


def opened(folder: Path, layout: Layout, load: Callable[[Path], Any]) -> Any:
    """What `load` makes of the view of a variant; the view stays for as long as that is in use.

    Raises what `vet` and `load` raise, BuildError for anything that a library raises.
    """
    vetted = vet(folder, layout)
    with ExitStack() as stack:
        view = stack.enter_context(temporary("view"))
        lay(vetted, view)
        renamed = {f"{view}/": "", str(view): vetted.where, view.parent.name: vetted.where}
        with translate_errors(f"{vetted.where} does not open", BuildError, renamed=renamed):
            pipeline = _named(vetted.where, load, view)
        weakref.finalize(pipeline, stack.pop_all().close)
    return pipeline


def _named(where: str, load: Callable[[Path], Any], view: Path) -> Any:
    """`load`, whose faults name a part and not the variant."""
    try:
        return load(view)
    except BuildError as error:
        raise BuildError(f"{where}: {error.message}", hint=error.hint) from error


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # Windows without the right to make links
        shutil.copyfile(source, target)
