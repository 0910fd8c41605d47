"""Ways to publish: commits, pull requests, branches, names, dry runs, collections gates; only building is fake."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from sdhub.checkpoint.checkpoint import License
from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import LicenseError, UsageError
from sdhub.demo import emoji_sd
from sdhub.workflow.options import Options
from sdhub.workflow.publish import publish
from tests.publishing.fakes import FAILS, fake_backend, gated

BOTH = ("fake-one", "fake-two")


@pytest.fixture
def api(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "any")
    return HfApi(endpoint=hub, token="any")


@pytest.fixture
def source():
    return resolve("demo")


@pytest.fixture
def publishing(hub, api, tmp_path, monkeypatch, source, request):
    namespace = f"n{abs(hash(request.node.name)) % 10**8}"
    with fake_backend(tmp_path / "home", monkeypatch):

        def go(checkpoint=source, dry_run=False, **options):
            wanted = Options(**{"namespace": namespace, "variants": BOTH, **options})
            return publish(checkpoint, options=wanted, hub=hub, dry_run=dry_run)

        go.namespace = namespace
        yield go


def files_of(api, repo, revision="main"):
    tree = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {each.path: each.size for each in tree if hasattr(each, "size") and each.path != ".gitattributes"}


def card_of(api, repo, revision="main"):
    from pathlib import Path

    return Path(api.hf_hub_download(repo, "README.md", revision=revision)).read_text()


def test_a_dry_run_says_exactly_what_is_written(api, publishing):
    dry = publishing(dry_run=True)
    assert not list(api.list_models(author=publishing.namespace))
    assert not list(api.list_collections(owner=publishing.namespace))
    real = publishing()
    for seen, done in zip(dry.variants, real.variants, strict=True):
        assert seen.status == "dry-run"
        assert done.status == "published", done.reason
        assert seen.files == done.files == files_of(api, done.repo)
        assert seen.changes == done.changes == dict.fromkeys(done.files, "added")
        assert seen.uploaded_bytes == done.uploaded_bytes == sum(done.files.values())
    again = publishing(dry_run=True)
    assert [(each.changes, each.uploaded_bytes) for each in again.variants] == [({}, 0)] * 2
    assert {each.status for each in publishing().variants} == {"unchanged"}


def test_a_dry_run_of_a_change_names_what_changes_and_what_goes(api, publishing, source):
    publishing(variants=("fake-one",))
    api.upload_file(
        repo_id=f"{publishing.namespace}/emoji-sd-fake-one",
        path_or_fileobj=b'{"files": {"old.txt": {}}}',
        path_in_repo="sdhub.json",
    )
    api.upload_file(
        repo_id=f"{publishing.namespace}/emoji-sd-fake-one", path_or_fileobj=b"x", path_in_repo="old.txt"
    )
    (seen,) = publishing(variants=("fake-one",), dry_run=True).variants
    (done,) = publishing(variants=("fake-one",)).variants
    assert seen.changes == done.changes == {"sdhub.json": "changed", "old.txt": "removed"}
    assert seen.uploaded_bytes == done.uploaded_bytes


def test_one_pull_request_for_a_source_and_recipe_which_is_updated(api, publishing, source):
    repo = f"{publishing.namespace}/emoji-sd-fake-one"
    api.create_repo(repo)
    first = publishing(variants=("fake-one",), create_pr=True).variants[0]
    assert first.status == "proposed"
    again = publishing(variants=("fake-one",), create_pr=True).variants[0]
    assert (again.pull_request, again.uploaded_bytes) == (first.pull_request, 0)
    other = replace(source, license=License("mit"))  # the same source and recipe, another card
    updated = publishing(other, variants=("fake-one",), create_pr=True).variants[0]
    assert updated.pull_request == first.pull_request
    assert updated.commit != first.commit
    assert updated.changes == {"README.md": "changed", "sdhub.json": "changed"}
    (pull,) = api.get_repo_discussions(repo)
    assert pull.status == "open"
    assert pull.title.startswith("fake-one of emoji-sd at ")
    assert files_of(api, repo) == {}
    assert files_of(api, repo, f"refs/pr/{pull.num}") == updated.files
    newer = replace(source, sha="f" * 40)  # another state of the source
    assert publishing(newer, variants=("fake-one",), create_pr=True).variants[0].pull_request != first.pull_request
    api.change_discussion_status(repo, pull.num, "closed")
    reopened = publishing(other, variants=("fake-one",), create_pr=True).variants[0]
    assert reopened.pull_request not in {first.pull_request, None}


def test_a_branch_for_each_variant(api, publishing):
    report = publishing(branches=True)
    repo = f"{publishing.namespace}/emoji-sd-fake"
    assert [(each.repo, each.branch) for each in report.variants] == [(repo, "one"), (repo, "two")]
    assert {each.name for each in api.list_repo_refs(repo).branches} == {"main", "one", "two"}
    for each in report.variants:
        assert files_of(api, repo, each.branch) == each.files
        card = card_of(api, repo, each.branch)
        assert f"revision='{each.branch}'" in card
        assert f"# emoji-sd-fake-{each.branch}" in card
    assert set(files_of(api, repo)) == {"README.md"}
    index = card_of(api, repo)
    assert "| `fake-one` |" in index
    assert "branch two" in index
    assert yaml.safe_load(index.split("---")[1])["base_model"] == "emoji-sd"
    assert {each.status for each in publishing(branches=True).variants} == {"unchanged"}
    with pytest.raises(UsageError):
        publishing(branches=True, create_pr=True)


def test_names_of_ones_own(api, publishing):
    report = publishing(template="{model}-mine-{treatment}")
    assert [each.repo.rpartition("/")[2] for each in report.variants] == ["emoji-sd-mine-one", "emoji-sd-mine-two"]
    with pytest.raises(UsageError, match="several variants one repository"):
        publishing(template="{model}-mine")
    with pytest.raises(UsageError, match="no field"):
        publishing(template="{owner}-{treatment}")


def test_a_collection_ties_variants_together_and_cards_show_them(api, publishing):
    first = publishing(variants=("fake-one",))
    assert "## Variants" not in card_of(api, first.variants[0].repo)
    second = publishing(variants=("fake-two",))
    assert second.collection == first.collection
    (collection,) = api.list_collections(owner=publishing.namespace)
    items = api.get_collection(collection.slug).items
    assert [each.item_id.rpartition("/")[2] for each in items] == ["emoji-sd-fake-one", "emoji-sd-fake-two"]
    assert "PSNR 38.0 dB" in items[0].note
    card = card_of(api, second.variants[0].repo)
    table = card.partition("## Variants")[2].partition("## ")[0]
    assert "`fake-one`" in table
    assert "`fake-two` (this one)" in table
    both = publishing()
    assert [each.status for each in both.variants] == ["published", "unchanged"]
    assert both.variants[0].changes == {"README.md": "changed", "sdhub.json": "changed"}
    assert {each.status for each in publishing().variants} == {"unchanged"}


def test_what_others_put_into_a_collection_does_no_harm(api, publishing):
    publishing(variants=("fake-one",))
    (collection,) = api.list_collections(owner=publishing.namespace)
    for name, manifest in (("broken", b"["), ("empty", None), ("other", b'{"source": {"identity": "x"}}')):
        repo = f"{publishing.namespace}/{name}"
        api.create_repo(repo)
        api.add_collection_item(collection.slug, item_id=repo, item_type="model")
        if manifest:
            api.upload_file(repo_id=repo, path_or_fileobj=manifest, path_in_repo="sdhub.json")
    assert publishing(variants=("fake-one",)).variants[0].status == "unchanged"


def test_a_hub_without_collections_is_no_failure(api, publishing, monkeypatch):
    def none(*_, **__):
        raise HfHubHTTPError("no", response=httpx.Response(404, request=httpx.Request("GET", "http://hub.test")))

    monkeypatch.setattr(HfApi, "list_collections", none)
    report = publishing(variants=("fake-one",))
    assert report.collection is None
    assert report.variants[0].status == "published"


def test_one_failure_does_not_stop_the_others(api, publishing):
    report = publishing(variants=("fake-one", FAILS, "fake-two"))
    assert [each.status for each in report.variants] == ["published", "failed", "published"]
    assert report.variants[1].reason == "it cannot be built"
    assert FAILS not in card_of(api, report.variants[0].repo)


def test_gated_sources_stay_closed_unless_allowed(api, publishing, source):
    closed = publishing(gated(source), variants=("fake-one",)).variants[0]
    assert api.model_info(closed.repo).private
    open_ = publishing(gated(source), variants=("fake-two",), allow_public=True).variants[0]
    info = api.model_info(open_.repo)
    assert not info.private
    assert info.gated == "auto"
    card = card_of(api, open_.repo)
    assert yaml.safe_load(card.split("\n---\n")[0])["extra_gated_prompt"] == "Be kind.\n---\nevil: true"
    assert "is gated: those who use this variant have to accept its terms" in card


def test_licence_and_notices_come_along(api, publishing, tmp_path):
    import shutil

    folder = tmp_path / "mine"
    shutil.copytree(emoji_sd(), folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n")
    for name in ("LICENSE", "NOTICE", "USE_POLICY.md", "notes.txt", "NOTICE.py"):
        (folder / name).write_text(f"text of {name}")
    (done,) = publishing(resolve(str(folder)), variants=("fake-one",)).variants
    assert {"LICENSE", "NOTICE", "USE_POLICY.md"} <= set(done.files)
    assert not {"notes.txt", "NOTICE.py"} & set(done.files)
    card = card_of(api, done.repo)
    assert "Comes with it: [`NOTICE`](NOTICE)" in card
    assert yaml.safe_load(card.split("---")[1])["license_name"] == "mine"
    (folder / "README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n")
    with pytest.raises(LicenseError) as refused:
        publishing(resolve(str(folder)))
    assert refused.value.exit_code == 3
    assert refused.value.hint
