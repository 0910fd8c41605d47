from __future__ import annotations

import math
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image

from sdhub.core.errors import CheckError, HubError
from sdhub.core.hub import Hub
from sdhub.publishing.check import check
from sdhub.publishing.push import push
from sdhub.publishing.repository import assemble
from tests.publishing.publications import picture, publication

TOKEN = "hf_very_secret"
_numbers = count()
DRAW = """\
from huggingface_hub import hf_hub_download
from PIL import Image
path = hf_hub_download({repo!r}, "evidence/variant-0.png")
Image.open(path).save("picture.png")
"""


@pytest.fixture
def published(hub, tmp_path):
    """Publishes a repository whose card has these lines; returns its id, lines and evidence picture."""

    def publish(lines=DRAW, **changes):
        repo_id = f"local/checked-{next(_numbers)}"
        root = tmp_path / repo_id.rpartition("/")[2]
        (root / "out").mkdir(parents=True)
        usage = lines.replace("{repo!r}", repr(repo_id))
        made = replace(publication(root), repo_id=repo_id, usage=usage)
        assemble(made, root / "out")
        pushed = push(root / "out", repo_id, hub=Hub(hub, TOKEN), message="one", **changes)
        return repo_id, usage, made.pictures["variant-0.png"], pushed

    return publish


def test_the_cards_lines_draw_the_evidences_picture(hub, published, tmp_path):
    repo_id, usage, expect, pushed = published()
    checked = check(
        repo_id,
        pushed.commit,
        hub=Hub(hub, TOKEN),
        folder_for_picture=tmp_path / "kept",
        expect=expect,
        usage=usage,
    )
    assert checked.commit == pushed.commit
    assert (checked.width, checked.height) == (64, 64)
    assert checked.psnr_db == math.inf
    with Image.open(checked.picture) as kept, Image.open(expect) as wanted:
        assert np.array_equal(np.asarray(kept), np.asarray(wanted))


def test_psnr_against_another_picture(hub, published, tmp_path):
    repo_id, _, expect, _ = published()
    with Image.open(expect) as image:
        pixels = np.asarray(image).astype(int)
    Image.fromarray(np.where(pixels < 128, pixels + 16, pixels - 16).astype(np.uint8)).save(tmp_path / "off.png")
    checked = check(repo_id, hub=Hub(hub), expect=tmp_path / "off.png")
    assert checked.psnr_db == pytest.approx(20 * math.log10(255 / 16))
    assert checked.picture is None
    with pytest.raises(CheckError, match="pixels"):
        check(repo_id, hub=Hub(hub), expect=picture(tmp_path / "large.png", side=32))


def test_private_repositories_and_pull_requests(hub, published, capsys):
    repo_id, usage, expect, _ = published(private=True)
    assert check(repo_id, hub=Hub(hub, TOKEN), expect=expect, usage=usage).psnr_db == math.inf
    repo_id, usage, expect, pushed = published(create_pr=True)
    number = pushed.pull_request_url.rpartition("/")[2]
    assert "README.md" not in HfApi(endpoint=hub, token=TOKEN).list_repo_files(repo_id)
    for revision in (pushed.commit, f"refs/pr/{number}"):
        checked = check(repo_id, revision, hub=Hub(hub, TOKEN), expect=expect, usage=usage)
        assert checked.psnr_db == math.inf
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("import sdhub\n" + DRAW, "must not need sdhub"),
        ("import sdhub.core.errors\n" + DRAW, "must not need sdhub"),
        ("print('nothing')\n", "0 PNG pictures"),
        ("raise ValueError('no\\nsuch thing')\n", "no | such thing"),
        ("import os, sys\nsys.exit(str(sorted(os.environ)))\n", "HF_HOME"),
        ("from PIL import Image\nImage.new('RGB', (8, 8)).save('x.png')\n", "flat colour"),
        ("open('x.png', 'wb').write(b'no picture')\n", "does not open"),
        ("this is no python\n", "SyntaxError"),
        ("import os\nos._exit(3)\n", "without a word"),
    ],
)
def test_what_does_not_work_is_said_in_one_line(hub, published, lines, why):
    repo_id, *_ = published(lines)
    with pytest.raises(CheckError) as failed:
        check(repo_id, hub=Hub(hub, TOKEN))
    assert why in failed.value.message.replace("ValueError: ", "")
    assert "\n" not in failed.value.message


def test_secrets_are_neither_given_nor_told(hub, published, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-value")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    names = "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"
    tell = f"import os, sys\nsys.exit(' '.join(f'{{k}}={{os.environ.get(k)}}' for k in {names}))\n"
    for changes, given in (({}, False), ({"private": True}, True)):
        repo_id, *_ = published(tell, **changes)
        with pytest.raises(CheckError) as failed:
            check(repo_id, hub=Hub(hub, TOKEN))
        assert "hidden-value" not in failed.value.message
        assert TOKEN not in failed.value.message
        assert ("HF_TOKEN=***" in failed.value.message) is given


def test_lines_other_than_ours_are_not_run(hub, published, tmp_path):
    mark = tmp_path / "ran"
    repo_id, *_ = published(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(CheckError, match="other lines"):
        check(repo_id, hub=Hub(hub, TOKEN), usage=DRAW)
    assert not mark.exists()


def test_lines_that_do_not_end_are_ended(hub, published):
    repo_id, *_ = published("import time\ntime.sleep(600)\n")
    with pytest.raises(CheckError, match="did not end within"):
        check(repo_id, hub=Hub(hub, TOKEN), time_limit=1)


def test_what_is_not_there_cannot_be_checked(hub):
    with pytest.raises(HubError, match="cannot download local/nothing"):
        check("local/nothing", hub=Hub(hub, TOKEN))


def test_where_lines_need_another_machine_sdhub_draws_instead(hub, published, tmp_path):
    """The lines are not run; sdhub is, on the download: these files are no network."""
    mark = tmp_path / "ran"
    repo_id, usage, expect, pushed = published(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(CheckError, match=r"sdhub's drawing with .*does not open"):
        check(repo_id, pushed.commit, hub=Hub(hub, TOKEN), expect=expect, usage=usage, draws="sdhub")
    assert not mark.exists()
