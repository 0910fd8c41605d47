"""What a config implies, held against what the headers of the weights say, before any weight is read.

Models are made without memory (torch's meta device), in a process of its own whose memory and time are bounded:
within the bounds of `values.py` a config can still ask for more than any checkpoint has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint, Component
from sdhub.checkpoint.headers import read_header
from sdhub.checkpoint.known import SCHEDULERS, TOKENIZERS, UNLOADED
from sdhub.checkpoint.safety import is_model
from sdhub.checkpoint.sampling import sampling_defaults
from sdhub.checkpoint.schedulers import draw_nothing
from sdhub.checkpoint.tokens import WHOLE
from sdhub.checkpoint.weights import BUFFERS, plain_name
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError
from sdhub.core.isolated import ExhaustedError, bounded
from sdhub.core.quiet import quiet

SECONDS = 60
MEMORY_MIB = 2_048
MODULES = 50_000  # twenty times what the largest have
HINT = "get the config and the weights of one version; if that is what the author published, ask for a whole copy"
Check = tuple[Callable[..., list[str]], tuple[Any, ...]]  # arguments end with what the file is called

# Names that files have had, and the libraries still read: attention of autoencoders before diffusers 0.15.
FORMER = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)
# What libraries put before names, or leave away.
PREFIXES = ("text_model.", "model.")


def check_shapes(checkpoint: Checkpoint, view: Path) -> list[str]:
    """Hold every model of a checkpoint against its files; `view` is what `load.vetted` laid out.

    Returns lines about tensors that no model has. Raises SourceError for a config that makes no model, for a
    schedule that the checkpoint's usual steps cannot be drawn with, for a `tokenizer.json` that makes no
    tokenizer, for a tensor that is missing, and for one of another shape: with the component, the tensor and both
    shapes.
    """
    checks: list[Check] = []
    for part in checkpoint.components:
        whole = view / part.name / WHOLE
        if part.class_name in TOKENIZERS and whole.is_file():
            checks.append((_read_tokenizer, (str(whole), f"{part.name}/{WHOLE} of {checkpoint.id}")))
        schedule = view / part.name / "scheduler_config.json"
        if part.class_name in SCHEDULERS and schedule.is_file() and not checkpoint.source.single:
            settings = json.loads(schedule.read_text("utf-8"))
            require_schedule(checkpoint, part.class_name, settings, f"{part.name}/{schedule.name}")
        if part.name in UNLOADED or not is_model(part.library, part.class_name):
            continue
        config = view / part.name / "config.json"
        if not config.is_file():
            continue
        where = f"{part.name}/config.json of {checkpoint.id}"
        files = [] if checkpoint.source.single else [str(view / plain_name(name)) for name in part.files]
        checks.append((_check, (part, str(config), files, where)))
    return _bounded(checks)


def check_model(part: Component, config: Path, files: Sequence[str], where: str) -> list[str]:
    """Hold one model's config against its weight files (none: against its number of parameters).

    Returns and raises as `check_shapes`; messages name `where`.
    """
    return _bounded([(_check, (part, str(config), files, where))])


def _bounded(checks: Sequence[Check]) -> list[str]:
    """What all checks return, in one child; where that takes too much, in one each, so that it can be named."""
    try:
        notes: list[str] = bounded(_all, checks, seconds=SECONDS, mib=MEMORY_MIB)
    except ExhaustedError as error:
        if len(checks) > 1:
            return [note for each in checks for note in _bounded([each])]
        where = checks[0][1][-1]
        raise SourceError(f"{where} asks for what cannot be made: {error}", hint=HINT) from None
    return notes


def _all(checks: Sequence[Check]) -> list[str]:
    return [note for check, arguments in checks for note in check(*arguments)]


def require_schedule(checkpoint: Checkpoint, class_name: str, config: Mapping[str, Any], file: str) -> None:
    """Raises SourceError for a scheduler that the checkpoint's usual steps cannot be drawn with."""
    import diffusers

    steps, where = sampling_defaults(checkpoint).steps, f"{file} of {checkpoint.id}"
    try:
        with quiet():
            draw_nothing(getattr(diffusers, class_name).from_config(config), steps)
    except ImportError:
        pass  # a package that is missing is told of elsewhere, and is not the file's fault
    except Exception as error:  # noqa: BLE001 — whatever a library raises, the config is the reason
        reason = shown(" ".join(str(error).split()), 200) or type(error).__name__
        raise SourceError(f"{where} makes no {class_name} that draws {steps} steps: {reason}", hint=HINT) from None


def _read_tokenizer(path: str, where: str) -> list[str]:
    """Nothing. Raises SourceError for what the tokenizers library cannot read; it may die of it as well."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(path)
    except Exception as error:  # noqa: BLE001 — it raises Exception itself
        raise SourceError(f"{where} makes no tokenizer: {shown(error, 200)}", hint=HINT) from None
    return []


def _check(part: Component, config: str, files: Sequence[str], where: str) -> list[str]:
    model = _blank(part, json.loads(Path(config).read_text(encoding="utf-8")), where)
    if not files:  # of a single file, whose names are others
        implied = sum(parameter.numel() for parameter in model.parameters())
        if part.parameters and implied > part.parameters:
            raise SourceError(f"{where} asks for {implied} numbers, the file has {part.parameters}", hint=HINT)
        return []
    found = {
        _plain(name, part): (name, tensor.shape)
        for path in files
        for name, tensor in read_header(Path(path)).tensors.items()
    }
    missing = []
    for names, shape in _implied(model):
        own = next((found[plain] for name in names if (plain := _plain(name, part)) in found), None)
        if own is None:
            missing.append(names[0])
        elif own[1] != shape:
            sides = f"{_sides(own[1])} in the file, {where} makes it {_sides(shape)}"
            raise SourceError(f"could not load {part.name}: {shown(own[0])} is {sides}", hint=HINT)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(
            f"the weights of {part.name} are incomplete: {where} asks for {shown(missing[0])}{more}",
            hint=HINT,
        )
    known = {_plain(name, part) for name in model.state_dict()}
    beyond = [name for plain, (name, _) in found.items() if plain not in known and not name.endswith(BUFFERS)]
    if not beyond:
        return []
    more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
    return [f"{part.name}: its model has no {shown(beyond[0])}{more}, which the file holds"]


def _blank(part: Component, document: dict[str, Any], where: str) -> Any:
    """The model without memory. Raises SourceError for whatever its library makes of the config."""
    import torch

    with quiet(), torch.device("meta"), _counted():
        try:
            if part.library == "diffusers":
                import diffusers

                return getattr(diffusers, part.class_name).from_config(document)
            if part.library == "stable_diffusion":
                from diffusers.pipelines import stable_diffusion as home
            else:
                import transformers as home

            kind = getattr(home, part.class_name)
            model = kind(kind.config_class.from_dict(document))
            model.tie_weights()  # transformers 5.0 leaves it to `from_pretrained`
            return model
        except Exception as error:  # noqa: BLE001 — whatever a library raises, the config is the reason
            reason = shown(" ".join(str(error).split()), 200) or type(error).__name__
            raise SourceError(f"{where} makes no {part.class_name}: {reason}", hint=HINT) from None


@contextmanager
def _counted() -> Iterator[None]:
    """Stop where there are more modules than any model has."""
    from torch.nn.modules.module import register_module_module_registration_hook

    count = 0

    def count_one(_: Any, __: str, ___: Any) -> None:
        nonlocal count
        count += 1
        if count > MODULES:
            raise MemoryError(f"it asks for more than {MODULES} layers")

    handle = register_module_module_registration_hook(count_one)
    try:
        yield
    finally:
        handle.remove()


def _implied(model: Any) -> list[tuple[list[str], tuple[int, ...]]]:
    """The names of every parameter, several where it is tied, and its shape."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [(names[id(parameter)], tuple(parameter.shape)) for parameter in model.parameters()]


def _plain(name: str, part: Component) -> str:
    """The name without what differs between versions of libraries."""
    if part.library == "transformers":
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        return name
    if part.class_name.startswith("Autoencoder"):
        for former, now in FORMER:
            name = name.replace(former, now)
    return name


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"
