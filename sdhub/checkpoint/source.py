"""From what the user typed to a `Source`. Looks at the file system, never at a network."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sdhub.checkpoint.checkpoint import Lora, Source
from sdhub.checkpoint.elsewhere import MANIFEST
from sdhub.checkpoint.safety import PICKLES, convert_hint
from sdhub.checkpoint.tree import check_path
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsafeError
from sdhub.core.nearly import nearest

PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"{PART}/{PART}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}")
HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
LOOK_INTO = 3  # levels of folders searched for what may have been meant
LOOK_AT = 2_000  # folders at most
MAX_SCALE = 100.0
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
WAYS = "give a Hub id (org/name), a diffusers folder, a .safetensors file, or demo"


def parse_source(
    text: str,
    loras: Sequence[str] = (),
    config: str | None = None,
    controlnets: Sequence[str] = (),
    safety_checker: bool = False,
) -> Source:
    """`demo`, a folder, a `.safetensors` file, or a Hub id `org/name[@revision]` (or its address).

    A single file on the Hub is `org/name/file.safetensors[@revision]`, or its address. A folder called `demo` is
    `./demo`. `loras` are `ID_OR_FILE[:scale]`, `controlnets` folders or Hub ids; `config` and `safety_checker` as
    in `Source`. Raises SourceError with what may have been meant, and UnsafeError for a pickle.
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

        return Source("folder", str(emoji_sd()), config=config)
    path = _path(text)
    if path is not None and path.is_dir():
        return Source("folder", str(_diffusers_folder(path)), config=config)
    if path is not None and path.exists():
        return Source("file", str(_weights_file(path)), config=config)
    _refuse_pickle(text)
    remote = _remote_file(text)
    if remote is not None:
        repository, revision, file = remote
        return Source("hub", repository, revision, config=config, file=file)
    return Source("hub", *parse_repository(text), config=config)


def _remote_file(text: str) -> tuple[str, str | None, str] | None:
    """Repository, revision and path of a `.safetensors` file on the Hub, from
    `org/name/file.safetensors[@revision]` or the address of its page or of its bytes; None for all else.

    Raises SourceError for what has that form and names nothing.
    """
    revision: str | None
    if "://" in text:
        parts = _path_of_address(text)
        if len(parts) < 5 or parts[2] not in ("blob", "resolve"):
            return None
        # A revision with slashes is written with %2F, but for those of pull requests.
        pull = parts[3:5] == ["refs", "pr"]
        revision, path = ("/".join(parts[3:6]), parts[6:]) if pull else (parts[3], parts[4:])
        _refuse_pickle(parts[-1])
    else:
        place, at, wanted = text.partition("@")
        parts = place.split("/")
        revision, path = wanted if at else None, parts[2:]
        here = _path(parts[0])
        if not path or "\\" in place or here is None or here.is_dir():
            return None
    if not path or not path[-1].endswith(".safetensors"):
        return None
    file = "/".join(path)
    if not file.isprintable() or any(part in ("", ".", "..") for part in path):
        raise SourceError(f"{shown(text)!r} is no file's name", hint=WAYS)
    repository = "/".join(parts[:2])
    repository, revision = parse_repository(repository if revision is None else f"{repository}@{revision}")
    return repository, revision, file


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
    """`ID_OR_FILE[:scale]`; the scale is 1 where none is given. Raises SourceError, UnsafeError.

    A file or folder of a repository is `org/name/path[@revision]`, or its address. A folder of this machine stands
    for the LoRA in it.
    """
    ref, colon, tail = text.rpartition(":")
    scale = _number(tail) if colon else None
    if scale is None:
        ref, scale = text, 1.0
    if not math.isfinite(scale) or abs(scale) > MAX_SCALE:
        raise SourceError(f"the LoRA scale {shown(tail, 20)} is out of range", hint="1 is the usual scale")
    path = _path(ref)
    if path is not None and path.is_dir():
        return Lora(str(_lora_in(path)), scale)
    if path is not None and path.exists():
        return Lora(str(_weights_file(path)), scale)
    _refuse_pickle(ref)
    ref, inside = _split(ref)
    repository, revision = parse_repository(ref)
    return Lora(f"{repository}@{revision}" if revision else repository, scale, inside)


def _lora_in(folder: Path) -> Path:
    """The LoRA's file in a folder as diffusers or PEFT write it, or its only one. Raises SourceError."""
    files = sorted(folder.glob("*.safetensors"))
    usual = [path for name in LORA_FILES for path in files if path.name == name]
    if usual or len(files) == 1:
        return (usual or files)[0]
    has = f"has {len(files)} .safetensors files" if files else "has no .safetensors file"
    raise SourceError(f"the LoRA {shown(folder.name)} is a folder and {has}", hint="name the file that you mean")


def _split(ref: str) -> tuple[str, str]:
    """What a LoRA's repository is called, with its revision, and the path in it ("" where none is named)."""
    if "://" in ref:
        found = re.fullmatch(rf"([^?#]*?//[^/?#]+/{PART}/{PART})/(?:blob|resolve|tree)/([^?#]+)(?:[?#].*)?", ref)
        if found is None:
            return ref, ""
        revision, inside = _revision_and_path([unquote(part) for part in found[2].split("/") if part])
        return f"{found[1]}/tree/{revision}", _inside(inside)
    name, at, revision = ref.partition("@")
    parts = name.split("/")
    if len(parts) < 3 or not _valid("/".join(parts[:2])) or Path(parts[0]).exists():
        return ref, ""
    return f"{'/'.join(parts[:2])}{at}{revision}", _inside("/".join(parts[2:]))


def _revision_and_path(parts: list[str]) -> tuple[str, str]:
    """Of what follows `blob/`: revisions have one part, or three as `refs/pr/1`."""
    count = 3 if parts[0] == "refs" else 1
    return "/".join(parts[:count]), "/".join(parts[count:])


def _inside(path: str) -> str:
    """A path in a repository. Raises UnsafeError, SourceError."""
    if path:
        _refuse_pickle(path)
        check_path(path.rstrip("/"), "the LoRA")
    return path.rstrip("/")


def parse_repository(text: str) -> tuple[str, str | None]:
    """A Hub id and revision from `org/name[@revision]` or an address of the Hub. Raises SourceError."""
    if "://" in text:
        return _address(text)
    repository, at, revision = text.partition("@")
    if _looks_like_path(repository):
        raise SourceError(f"no such file or folder: {shown(text)}", hint=_beside(repository) or WAYS)
    if _valid(repository):
        if at and not _valid_revision(revision):
            raise SourceError(f"{shown(revision)!r} is no revision", hint="give a branch, a tag or a commit")
        return repository, revision or None
    if re.fullmatch(PART, repository):
        raise SourceError(
            f"no folder is called {shown(repository)}, and an id on the Hub is org/name",
            hint=_beside(repository) or WAYS,
        )
    raise SourceError(
        f"no such file or folder: {shown(text)}, and it cannot be an id on the Hub",
        hint=_beside(repository) or WAYS,
    )


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
    parts = _path_of_address(text)
    kind = parts[2] if len(parts) > 2 else "tree"
    if kind != "tree" or len(parts) == 3:
        raise SourceError(
            f"{shown(text)!r} is not the address of a model",
            hint="give org/name, or the address of a .safetensors file",
        )
    return parse_repository("@".join(["/".join(parts[:2]), *(["/".join(parts[3:])] if len(parts) > 3 else [])]))


def _path_of_address(text: str) -> list[str]:
    """The parts of the path of an address on the Hub. Raises SourceError for other addresses."""
    try:
        url = urlsplit(text)
        own = urlsplit(os.environ.get("HF_ENDPOINT", ""))
    except ValueError:
        raise SourceError(f"{shown(text)!r} is no address", hint=WAYS) from None
    if url.scheme not in {"http", "https"} or (url.hostname not in HOSTS and url.netloc != own.netloc):
        raise SourceError(
            f"{shown(text)!r} is no address on the Hub", hint="set HF_ENDPOINT for another Hub, and give org/name"
        )
    return [unquote(part) for part in url.path.split("/") if part]


def parse_config(text: str) -> str:
    """Where the configs of a single file are: an absolute folder or `org/name[@revision]`. Raises SourceError."""
    if text == "demo":
        return _source(text, None).ref
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
    if any((path / name).is_file() for name in ("model_index.json", MANIFEST)):
        return path
    raise SourceError(f"{shown(path.name)} has no model_index.json", hint=_meant(path))


def neighbour(message: str, named: Iterable[str]) -> str:
    """A hint for a failure on the Hub: of the ids `named` that `message` speaks of, a folder here that is nearly
    called so; "" where there is none."""
    ids = (each.partition("@")[0] for each in named)
    return next(filter(None, (_beside(each) for each in ids if each in message)), "")


def _beside(text: str) -> str:
    """A hint with the name of a neighbour that is nearly the one given."""
    path = _path(text)
    if path is None or not path.parent.is_dir():
        return ""
    names = [each for each, _ in zip(_names(path.parent), range(LOOK_AT), strict=False)]
    near = nearest(path.name, [*names, *(["demo"] if "/" not in text else [])])
    if near is None or near == path.name:
        return ""
    return f"did you mean {shown(near if near == 'demo' else Path(text).parent / near, 300)}?"


def _names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (each.name for each in entries if each.is_dir() or each.name.endswith(".safetensors"))
    except OSError:
        return


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
