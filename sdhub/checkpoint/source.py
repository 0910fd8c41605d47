"""From what the user typed to a `Source`. Looks at the file system, never at a network."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sdhub.checkpoint.checkpoint import Lora, Source
from sdhub.checkpoint.documents import shown
from sdhub.checkpoint.safety import PICKLES, convert_hint
from sdhub.errors import SourceError, UnsafeError

PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"{PART}/{PART}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}")
HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
LOOK_INTO = 3  # levels of folders searched for what may have been meant
LOOK_AT = 2_000  # folders at most
MAX_SCALE = 100.0
WAYS = "give a Hub id (org/name), a diffusers folder, a .safetensors file, or demo"


def parse_source(
    text: str,
    loras: Sequence[str] = (),
    config: str | None = None,
    controlnets: Sequence[str] = (),
    safety_checker: bool = False,
) -> Source:
    """`demo`, a folder, a `.safetensors` file, or a Hub id `org/name[@revision]` (or its address).

    A folder called `demo` is `./demo`. `loras` are `ID_OR_FILE[:scale]`, `controlnets` folders or Hub ids;
    `config` and `safety_checker` as in `Source`. Raises SourceError with what may have been meant, and UnsafeError
    for a pickle.
    """
    found = _source(text, None if config is None else parse_config(config))
    return replace(
        found,
        loras=tuple(parse_lora(each) for each in loras),
        controlnets=tuple(_folder_or_repository(each) for each in dict.fromkeys(controlnets)),
        safety_checker=safety_checker,
    )


def _source(text: str, config: str | None) -> Source:
    if text == "demo":
        from sdhub.demo import emoji_sd

        return Source("folder", str(emoji_sd()))
    path = _path(text)
    if path is not None and path.is_dir():
        return Source("folder", str(_diffusers_folder(path)))
    if path is not None and path.exists():
        return Source("file", str(_weights_file(path)), config=config)
    _refuse_pickle(text)
    return Source("hub", *parse_repository(text))


def _folder_or_repository(text: str) -> str:
    """A ControlNet's folder as an absolute path, or `org/name[@revision]`. Raises SourceError."""
    path = _path(text)
    if path is not None and path.is_dir():
        return str(path.resolve())
    if path is not None and path.exists():
        raise SourceError(
            f"the ControlNet {shown(text)} is a file", hint="name a folder with config.json, or a Hub id"
        )
    repository, revision = parse_repository(text)
    return f"{repository}@{revision}" if revision else repository


def parse_lora(text: str) -> Lora:
    """`ID_OR_FILE[:scale]`; the scale is 1 where none is given. Raises SourceError, UnsafeError."""
    ref, colon, tail = text.rpartition(":")
    scale = _number(tail) if colon else None
    if scale is None:
        ref, scale = text, 1.0
    if not math.isfinite(scale) or abs(scale) > MAX_SCALE:
        raise SourceError(f"the LoRA scale {shown(tail, 20)} is out of range", hint="1 is the usual scale")
    path = _path(ref)
    if path is not None and path.is_dir():
        raise SourceError(f"the LoRA {shown(ref)} is a folder", hint="name the .safetensors file in it")
    if path is not None and path.exists():
        return Lora(str(_weights_file(path)), scale)
    _refuse_pickle(ref)
    repository, revision = parse_repository(ref)
    return Lora(f"{repository}@{revision}" if revision else repository, scale)


def parse_repository(text: str) -> tuple[str, str | None]:
    """A Hub id and revision from `org/name[@revision]` or an address of the Hub. Raises SourceError."""
    if "://" in text:
        return _address(text)
    repository, at, revision = text.partition("@")
    if _looks_like_path(repository):
        raise SourceError(f"no such file or folder: {shown(text)}", hint=f"look at the spelling, or {WAYS}")
    if _valid(repository):
        if at and not _valid_revision(revision):
            raise SourceError(f"{shown(revision)!r} is no revision", hint="give a branch, a tag or a commit")
        return repository, revision or None
    if re.fullmatch(PART, repository):
        raise SourceError(f"no folder is called {shown(repository)}, and an id on the Hub is org/name", hint=WAYS)
    raise SourceError(f"{shown(text)!r} is no checkpoint's name", hint=WAYS)


def _valid(repository: str) -> bool:
    return bool(
        REPOSITORY.fullmatch(repository)
        and ".." not in repository
        and "--" not in repository
        and not repository.endswith(".git")
    )


def _valid_revision(revision: str) -> bool:
    parts = revision.split("/")
    return bool(REVISION.fullmatch(revision)) and not any(
        not part or part.startswith(".") or part.endswith((".", ".lock")) or ".." in part for part in parts
    )


def _address(text: str) -> tuple[str, str | None]:
    """`https://huggingface.co/org/name[/tree/revision]`."""
    try:
        url = urlsplit(text)
        own = urlsplit(os.environ.get("HF_ENDPOINT", ""))
    except ValueError:
        raise SourceError(f"{shown(text)!r} is no address", hint=WAYS) from None
    if url.scheme not in {"http", "https"} or (url.hostname not in HOSTS and url.netloc != own.netloc):
        raise SourceError(
            f"{shown(text)!r} is no address on the Hub", hint="set HF_ENDPOINT for another Hub, and give org/name"
        )
    parts = [unquote(part) for part in url.path.split("/") if part]
    kind = parts[2] if len(parts) > 2 else "tree"
    if kind != "tree" or len(parts) == 3:
        raise SourceError(
            f"{shown(text)!r} is not the address of a model",
            hint="give org/name, or download the file and name it",
        )
    return parse_repository("@".join(["/".join(parts[:2]), *(["/".join(parts[3:])] if len(parts) > 3 else [])]))


def parse_config(text: str) -> str:
    """Where the configs of a single file are: an absolute folder or `org/name[@revision]`. Raises SourceError."""
    path = _path(text)
    if path is not None and path.is_dir():
        return str(_diffusers_folder(path))
    repository, revision = parse_repository(text)
    return f"{repository}@{revision}" if revision else repository


def _path(text: str) -> Path | None:
    """`text` as an absolute path, links kept; None where it cannot be one."""
    if not text or not text.isprintable() or "://" in text:
        return None
    try:
        path = Path(text).expanduser().absolute()
        path.exists()
    except (OSError, RuntimeError, ValueError):
        return None
    if not str(path).isprintable():
        raise SourceError(f"{shown(path, 300)} holds characters that cannot be shown", hint="rename the folder")
    return path


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1 or text.endswith(".safetensors")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _refuse_pickle(text: str) -> None:
    if text.lower().partition("@")[0].endswith(PICKLES):
        raise UnsafeError(
            f"{shown(text)} is a pickle, which can run code when it is read", hint=convert_hint(text)
        )


def _weights_file(path: Path) -> Path:
    _refuse_pickle(path.name)
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        raise SourceError(f"{shown(path.name)} is no .safetensors file", hint=WAYS)
    return path


def _diffusers_folder(path: Path) -> Path:
    if (path / "model_index.json").is_file():
        return path
    raise SourceError(f"{shown(path.name)} has no model_index.json", hint=_meant(path))


def _meant(path: Path) -> str:
    """What may have been meant by a folder that is no checkpoint."""
    if (path.parent / "model_index.json").is_file():
        return f"did you mean the whole checkpoint, {shown(path.parent, 300)}?"
    for seen, (top, folders, names) in enumerate(os.walk(path)):
        depth = len(Path(top).relative_to(path).parts)
        folders[:] = sorted(folders)[:50] if depth < LOOK_INTO else []
        if "model_index.json" in names:
            return f"did you mean {shown(top, 300)}?"
        if seen > LOOK_AT:
            break
    files = sorted(path.glob("*.safetensors"))
    if files:
        return f"did you mean the file {shown(files[0], 300)}?"
    return f"{WAYS}; https://huggingface.co/org/name always means the Hub"
