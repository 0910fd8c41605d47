"""Mischief with the gate taken away, to show that the canary and the audit hook see what is executed.

`python -m tests.hostile.control FOLDER DOOR` with `SDHUB_CANARY` naming a file: prints what the hook saw, and
whether the canary was written.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sdhub.core.progress import SILENT, Progress
from tests.checkpoint.tiny import copy_demo, write
from tests.hostile.corpus import CANARY, CODE, PICKLE
from tests.hostile.watch import Watch

PICKLED = "unet/diffusion_pytorch_model.bin"


def unpickle(path: Path, _: Progress) -> None:
    """What loaders of pickles do."""
    with path.open("rb") as stream:
        pickle.load(stream)


def source(root: Path) -> None:
    """Loading a checkpoint from its own folder, where its index names a module beside it."""
    from sdhub.checkpoint import load
    from sdhub.checkpoint.resolve import resolve

    @contextmanager
    def raw(_: Any, folder: Path) -> Iterator[Path]:
        yield folder

    checkpoint = resolve(str(root))
    _name_code(root)
    load.vetted, load.check_shapes, load.require_unchanged = raw, lambda *_: [], lambda *_: None
    load.load(checkpoint, root)


def forked(root: Path) -> None:
    """The check of shapes, in its forked process, where it reads what it should not."""
    from sdhub.checkpoint import load, shapes
    from sdhub.checkpoint.resolve import resolve

    write(root / PICKLED, PICKLE)
    shapes._check = lambda *_: unpickle(root / PICKLED, SILENT)  # type: ignore[assignment]
    load.load(resolve(str(root)), root)


def fresh(root: Path) -> None:
    """A process of its own, as builds and drawings have."""
    from sdhub.core.isolated import run_isolated
    from tests.hostile import control

    run_isolated(control.unpickle, write(root / PICKLED, PICKLE), progress=SILENT)


def variant(root: Path) -> None:
    """A variant's folder given to diffusers as it is."""
    from diffusers import DiffusionPipeline

    _name_code(root)
    DiffusionPipeline.from_pretrained(str(root), local_files_only=True)


def _name_code(root: Path) -> None:
    index = root / "model_index.json"
    document = {**json.loads(index.read_text()), "tokenizer": ["evil", "Evil"]}
    index.unlink()
    write(index, json.dumps(document))
    write(root / "evil.py", CODE)
    sys.path.insert(0, str(root))


DOORS: dict[str, Callable[[Path], None]] = {
    "forked": forked,
    "fresh": fresh,
    "source": source,
    "variant": variant,
}


def main() -> None:
    root, canary, door = Path(sys.argv[1]), Path(os.environ[CANARY]), sys.argv[2]
    for name in ("tmp", "cases"):
        (root / name).mkdir()
    tempfile.tempdir = str(root / "tmp")
    folder = copy_demo(root / "cases" / "model")
    import diffusers.pipelines.stable_diffusion  # noqa: F401
    import transformers  # noqa: F401

    watch = Watch(root)
    watch.start()
    watch.on = True
    with suppress(Exception):  # it goes on with what is no model
        DOORS[door](folder)
    watch.on = False
    json.dump({"events": watch.events(), "canary": canary.exists()}, sys.stdout)


if __name__ == "__main__":
    main()
