"""Subject kept: whether a variant's picture still shows what its base's shows, which PSNR does not see.

Pictures are turned into vectors by an encoder of the user's choice. The subject of a picture is kept where, of all
the base's pictures, the one of its own prompt is the nearest to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdhub.core.documents import shown
from sdhub.core.errors import EvidenceError, MissingExtraError, UsageError
from sdhub.core.nearly import nearest
from sdhub.core.quiet import quiet

Picture = npt.NDArray[np.float32]
Encoder = Callable[[Sequence[Picture]], npt.NDArray[np.float32]]

PIXELS = "pixels"
JUDGES = f"a judge is {PIXELS}, or a CLIP or SigLIP model: its folder or Hub id, as openai/clip-vit-base-patch32"
HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
SIDE = 16  # of the pictures that are compared by their pixels
BATCH = 8


@dataclass(frozen=True)
class PromptSubject:
    """Cosine similarity of a picture to its base's, and to the nearest of the other base pictures."""

    similarity: float
    runner_up: float

    @property
    def kept(self) -> bool:
        """Whether its own base picture is the nearest."""
        return self.similarity > self.runner_up


@dataclass(frozen=True)
class Subject:
    """Over all prompts, in order; `among` base pictures, by the encoder called `encoder`."""

    encoder: str
    among: int
    prompts: tuple[PromptSubject, ...]

    @property
    def kept(self) -> int:
        """How many pictures keep their subject."""
        return sum(each.kept for each in self.prompts)

    @property
    def similarity(self) -> float:
        """The mean over prompts."""
        return float(np.mean([each.similarity for each in self.prompts]))

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "encoder": self.encoder,
            "among": self.among,
            "kept": self.kept,
            "of": len(self.prompts),
            "similarity": round(self.similarity, 5),
            "prompts": [
                {"kept": each.kept, "similarity": round(each.similarity, 5), "runner_up": round(each.runner_up, 5)}
                for each in self.prompts
            ],
        }


def subject_kept(
    base: Sequence[Picture],
    variant: Sequence[Picture],
    encoder: Encoder,
    *,
    name: str,
    others: Sequence[Picture] = (),
) -> Subject:
    """Judge `variant` by `base`, picture by picture of the same prompts, each (H, W, 3) float32 in [0, 1].

    `others`: further pictures of the base, of other prompts, among which a lost subject may find a nearer one; the
    more there are, the stricter the judge. Raises EvidenceError where counts differ or there is nothing to tell a
    picture from.
    """
    if len(base) != len(variant) or len(base) + len(others) < 2:
        raise EvidenceError(f"{len(base)} and {len(variant)} pictures, and {len(others)} others, tell no subjects")
    known, found = _unit(encoder([*base, *others])), _unit(encoder(variant))
    likeness = found @ known.T
    own = likeness[np.arange(len(base)), np.arange(len(base))].copy()
    likeness[np.arange(len(base)), np.arange(len(base))] = -np.inf
    rows = tuple(
        PromptSubject(float(first), float(second)) for first, second in zip(own, likeness.max(axis=1), strict=True)
    )
    return Subject(name, len(known), rows)


def pixels(pictures: Sequence[Picture]) -> npt.NDArray[np.float32]:
    """Vectors of plain, small pictures: means over squares, about the mean of each picture's colours.

    It tells simple drawings apart, such as the built-in checkpoint's, and needs no other model.
    """
    return np.stack([_small(picture) for picture in pictures])


def vet_encoder(name: str) -> None:
    """Raises UsageError, before anything is loaded, for what names neither pixels, nor a folder, nor a Hub id."""
    if name == PIXELS or (Path(name) / "config.json").is_file():
        return
    if Path(name).is_dir():
        raise UsageError(f"{shown(name)} is no judge: the folder has no config.json", hint=JUDGES)
    if not HUB_ID.fullmatch(name):
        near = nearest(name, [PIXELS])
        raise UsageError(
            f"{shown(name)} is no judge: no folder is called so, and it is no Hub id (org/name)",
            hint=f"did you mean {near}?" if near else JUDGES,
        )


def encoder(name: str) -> Encoder:
    """The encoder that `name` means: "pixels", or a CLIP-like model of transformers: a Hub id or a folder.

    Its weights are read from safetensors, and none of its code is run. Raises UsageError for a model that encodes
    no images, MissingExtraError without transformers.
    """
    vet_encoder(name)
    if name == PIXELS:
        return pixels
    try:
        import torch
        from transformers import AutoImageProcessor, AutoModel
    except ImportError as error:
        raise MissingExtraError("torch", error.name or "transformers") from None
    try:
        with quiet():
            settings: dict[str, Any] = {"trust_remote_code": False}
            model = AutoModel.from_pretrained(name, use_safetensors=True, **settings).eval()
            processor = AutoImageProcessor.from_pretrained(name, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        place = "in this folder" if Path(name).is_dir() else "under this name on the Hub"
        why = shown(error, 200)
        raise UsageError(f"{shown(name)} is no judge: no model was read {place} ({why})", hint=JUDGES) from None
    features = getattr(model, "get_image_features", None)
    if features is None:
        raise UsageError(f"{shown(name)} is no judge: it encodes no images", hint=JUDGES)

    def encode(pictures: Sequence[Picture]) -> npt.NDArray[np.float32]:
        found = []
        for start in range(0, len(pictures), BATCH):
            batch = [np.round(each.clip(0, 1) * 255).astype(np.uint8) for each in pictures[start : start + BATCH]]
            with torch.no_grad():
                vectors = features(**processor(images=batch, return_tensors="pt"))
            # transformers 5 gives the model's output, 4 the vectors themselves
            vectors = getattr(vectors, "pooler_output", vectors)
            found.append(vectors.float().numpy())
        return np.concatenate(found)

    return encode


def _small(picture: Picture) -> npt.NDArray[np.float32]:
    height, width = picture.shape[:2]
    rows = np.linspace(0, height, min(SIDE, height) + 1).astype(int)[:-1]
    columns = np.linspace(0, width, min(SIDE, width) + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(picture.astype(np.float64), rows, axis=0), columns, axis=1)
    counts = np.diff([*rows, height])[:, None, None] * np.diff([*columns, width])[None, :, None]
    means = sums / counts
    small: npt.NDArray[np.float32] = (means - means.mean(axis=(0, 1))).ravel().astype(np.float32)
    return small


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    units: npt.NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1.0)
    return units
