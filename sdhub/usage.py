"""The lines that a card shows, and that the check runs: load the variant, draw, save."""

from __future__ import annotations

from collections.abc import Sequence

from sdhub.evidence.sampling import Sampling


def usage(loading: Sequence[str], sampling: Sampling) -> str:
    """Python that draws the first prompt of the evidence as the evidence did, into `picture.png`.

    `loading` are a backend's lines that make `pipe`.
    """
    first = sampling.prompts[0]
    return "\n".join(
        [
            "import torch",
            *loading,
            "image = pipe(",
            f"    {first.text!r},",
            f"    num_inference_steps={sampling.steps},",
            f"    guidance_scale={sampling.guidance!r},",
            f"    width={sampling.width},",
            f"    height={sampling.height},",
            f"    generator=torch.Generator().manual_seed({first.seed}),",
            ").images[0]",
            'image.save("picture.png")',
            "",
        ]
    )
