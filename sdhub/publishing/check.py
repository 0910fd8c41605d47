"""The check after publishing: download the repository afresh, and draw.

Usually with its card's lines and without sdhub; where those need another machine, with sdhub.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdhub.core.device import AUTO
from sdhub.core.documents import shown
from sdhub.core.errors import CheckError, SdhubError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress
from sdhub.core.scratch import temporary
from sdhub.publishing.card import extract_usage
from sdhub.publishing.download import silent_bar

TIME_LIMIT = 1800.0
LINES = 3
ALIKE_DB = 20.0  # the same prompt and seed on the same machine: other pictures have about 10
INHERITED = (
    *("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)

# Runs as `python -I -c`: neither the current folder nor the user's packages are importable, and sdhub is not.
FOLLOW = """
import os, sys, threading

def follow():
    while os.read(0, 1):
        pass
    os._exit(1)

threading.Thread(target=follow, daemon=True).start()
"""
RUNNER = f"""{FOLLOW}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sdhub":
            raise ModuleNotFoundError("the published variant must not need sdhub", name=name)

sys.meta_path.insert(0, Absent())
with open(sys.argv[1], encoding="utf-8") as stream:
    lines = compile(stream.read(), "usage.py", "exec")
exec(lines, {{"__name__": "__main__"}})
if "sdhub" in sys.modules:
    raise SystemExit("the published variant must not need sdhub")
"""
STAND_IN = f"""{FOLLOW}
from sdhub.cli import main

main()
"""


@dataclass(frozen=True)
class Checked:
    """What the card's lines drew.

    `psnr_db` is against the expected picture (8 bit, peak 255): None without one, infinite where they are equal.
    """

    commit: str
    picture: Path | None
    width: int
    height: int
    psnr_db: float | None


def check(
    repo_id: str,
    revision: str | None = None,
    *,
    hub: Hub,
    folder_for_picture: Path | None = None,
    expect: Path | None = None,
    usage: str | None = None,
    lines: str | None = None,
    draws: Literal["usage", "sdhub"] = "usage",
    branch: str = "main",
    device: str = AUTO,
    time_limit: float = TIME_LIMIT,
    progress: Progress = SILENT,
) -> Checked:
    """Do what a user without sdhub does: run the downloaded card's "Use it" lines in a fresh process.

    The cache is empty, so everything comes from the Hub. `revision` is the commit or pull request to check;
    one that is not the head of `branch` is put into the cache as its head first. `usage`, if given, is what the
    card must say, so that nothing but our own lines is run; `lines`, what is run in their place: the same, as the
    evidence was drawn. `draws` "sdhub": the lines need another machine, so sdhub opens the download and draws the
    first prompt of its evidence on `device` instead. `expect` is the evidence's picture of the same prompt and
    seed. The picture is kept in `folder_for_picture` as `downloaded.png`. Raises CheckError.
    """
    with (
        temporary("check") as home,
        progress.task(f"checking {repo_id}: download and draw"),
    ):
        doing, cache = f"download {repo_id}", home / "hf"
        commit, needs_token, offline = hub.ask(
            doing, lambda: _download(repo_id, revision, branch, cache, hub), progress
        )
        card = hub.ask(doing, lambda: _card(repo_id, commit, cache, hub), progress)
        said = extract_usage(card)
        if usage is not None and said.strip() != usage.strip():
            raise CheckError(f"the card of {repo_id} has other lines than were published")
        if draws == "sdhub":
            snapshot = hub.ask(doing, lambda: _snapshot(repo_id, commit, cache / "hub", hub), progress)
            command, what = [STAND_IN, *_generate(repo_id, snapshot, device)], f"sdhub's drawing with {repo_id}"
            needs_token, offline = False, True
        else:
            (home / "usage.py").write_text(lines or said, encoding="utf-8")
            command, what = [RUNNER, str(home / "usage.py")], f"the card's lines of {repo_id}"
        environment = _environment(home, hub if needs_token else Hub(hub.url), offline=offline)
        picture = _run(what, command, home, environment, time_limit, hub)
        width, height = _sound(repo_id, picture)
        psnr = likeness(repo_id, expect, picture) if expect else None
        if psnr is not None and psnr < ALIKE_DB:
            raise CheckError(f"{repo_id} draws another picture than its evidence shows (PSNR {psnr:.1f} dB)")
        kept = _keep(picture, folder_for_picture) if folder_for_picture else None
    return Checked(commit, kept, width, height, psnr)


def _download(repo_id: str, revision: str | None, branch: str, cache: Path, hub: Hub) -> tuple[str, bool, bool]:
    """The commit, whether reading needs a token, and whether the cache was filled with it for offline use."""
    api = hub.api
    head = api.model_info(repo_id, revision=branch)
    needs_token = bool(head.private or head.gated)
    commit = api.model_info(repo_id, revision=revision).sha if revision else head.sha
    if commit is None:
        raise CheckError(f"{repo_id} is empty")
    if commit == head.sha:
        return commit, needs_token, False
    refs = _snapshot(repo_id, commit, cache / "hub", hub).parents[1] / "refs"
    refs.mkdir(exist_ok=True)
    (refs / branch).write_text(commit)
    return commit, needs_token, True


def _snapshot(repo_id: str, commit: str, cache: Path, hub: Hub) -> Path:
    """The commit's files but its zips, downloaded."""
    path = hub.api.snapshot_download(
        repo_id, revision=commit, cache_dir=cache, ignore_patterns=["*.zip"], tqdm_class=silent_bar()
    )
    return Path(path)


def _generate(repo_id: str, snapshot: Path, device: str) -> list[str]:
    """Arguments of sdhub that draw the first picture of a downloaded variant's evidence."""
    from sdhub.evidence.sampling import evidence_sampling

    try:
        sampling = evidence_sampling(snapshot)
    except SdhubError as error:
        raise CheckError(f"the evidence of {repo_id} cannot be read: {error.message}") from None
    if sampling is None:
        raise CheckError(f"{repo_id} has no evidence")
    prompt, size = sampling.prompts[0], f"{sampling.width}x{sampling.height}"
    settings = ["--seed", str(prompt.seed), "--steps", str(sampling.steps), "--size", size]
    return ["generate", str(snapshot), *settings, "--device", device, "-o", "picture.png", "--", prompt.text]


def _card(repo_id: str, commit: str, cache: Path, hub: Hub) -> str:
    path = hub.api.hf_hub_download(repo_id, "README.md", revision=commit, cache_dir=cache / "card")
    return Path(path).read_text(encoding="utf-8")


def _environment(home: Path, hub: Hub, *, offline: bool) -> dict[str, str]:
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if hub.token:
        environment["HF_TOKEN"] = hub.token
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def _run(
    what: str, command: list[str], home: Path, environment: dict[str, str], time_limit: float, hub: Hub
) -> Path:
    """Run Python code with arguments in a folder of its own; the one PNG that it leaves there."""
    folder, said = home / "run", home / "said.txt"
    folder.mkdir()
    with said.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 — this interpreter, with the lines that were published
            [sys.executable, "-I", "-c", *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,  # closed when this process ends, whatever ends it
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = process.wait(time_limit)
        except subprocess.TimeoutExpired:
            raise CheckError(f"{what} did not end within {time_limit:g} s") from None
        finally:
            _end(process)
    if code != 0:
        raise CheckError(f"{what} failed: {_last(said, hub)}")
    pictures = sorted(folder.glob("*.png"))
    if len(pictures) != 1:
        raise CheckError(f"{what} saved {len(pictures)} PNG pictures, not one")
    return pictures[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _last(said: Path, hub: Hub) -> str:
    """The last lines that a process said, as one."""
    with said.open("rb") as stream:
        stream.seek(max(0, said.stat().st_size - 16_384))
        text = hub.redact(stream.read().decode(errors="replace"))
    lines = [shown(line, 300) for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-LINES:]) or "without a word"


def _sound(repo_id: str, picture: Path) -> tuple[int, int]:
    """Width and height of a PNG that opens and shows something."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(picture, formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise CheckError(f"the picture of {repo_id} does not open: {shown(error, 300)}") from None
    if (pixels == pixels[0, 0]).all():
        raise CheckError(f"the picture of {repo_id} is one flat colour")
    return pixels.shape[1], pixels.shape[0]


def likeness(repo_id: str, expect: Path, picture: Path) -> float:
    """PSNR in dB of two PNGs (8 bit, peak 255). Raises CheckError where their sizes differ."""
    import numpy as np
    from PIL import Image

    from sdhub.evidence.metrics import psnr

    with Image.open(expect) as wanted, Image.open(picture, formats=["PNG"]) as drawn:
        if wanted.size != drawn.size:
            raise CheckError(f"the picture of {repo_id} has {drawn.size} pixels, not {wanted.size}")
        reference, other = (np.asarray(each.convert("RGB"), np.float32) for each in (wanted, drawn))
    return psnr(reference, other, peak=255.0)


def _keep(picture: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "downloaded.png"
    kept.write_bytes(picture.read_bytes())
    return kept
