from __future__ import annotations

import io
import json
import logging
import shutil
from itertools import count

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from sdhub.core.errors import HubError, PrivacyError
from sdhub.core.hub import Hub
from sdhub.publishing import push as pushing
from sdhub.publishing.package import regular_files
from sdhub.publishing.push import push
from tests.publishing.conftest import TOKEN


@pytest.fixture
def send(hub, folder, repo_id):
    def send(**changes):
        return push(folder, **{"repo_id": repo_id, "hub": Hub(hub, TOKEN), "message": "one", **changes})

    return send


def _add(api, repo_id, name, content=b"theirs"):
    return api.create_commit(repo_id, [CommitOperationAdd(name, io.BytesIO(content))], commit_message="theirs")


def test_everything_arrives_in_one_commit(api, send, folder, repo_id, tmp_path):
    pushed = send()
    assert pushed.status == "published"
    assert pushed.commit == api.model_info(repo_id).sha
    assert pushed.url == f"{api.endpoint}/{repo_id}"
    assert pushed.uploaded_bytes == sum(path.stat().st_size for path in regular_files(folder).values())
    titles = [commit.title for commit in api.list_repo_commits(repo_id)]
    assert titles.count("one") == 1
    copy = tmp_path / "copy"
    api.snapshot_download(repo_id, local_dir=copy, cache_dir=tmp_path / "cache")
    shutil.rmtree(copy / ".cache")
    (copy / ".gitattributes").unlink(missing_ok=True)
    assert {name: path.read_bytes() for name, path in regular_files(copy).items()} == {
        name: path.read_bytes() for name, path in regular_files(folder).items()
    }


def test_a_second_push_changes_nothing(api, send, repo_id):
    first, second = send(), send()
    assert (second.status, second.commit, second.uploaded_bytes) == ("unchanged", first.commit, 0)
    assert len([each for each in api.list_repo_commits(repo_id) if each.title == "one"]) == 1


def test_only_what_changed_is_sent_and_what_went_is_deleted(api, send, folder, repo_id):
    send()
    _add(api, repo_id, "theirs.txt")
    (folder / "scheduler/scheduler_config.json").unlink()
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_bytes(b"{}")
    pushed = send(message="two")
    assert (pushed.status, pushed.uploaded_bytes) == ("published", 2)
    names = set(api.list_repo_files(repo_id)) - {".gitattributes"}
    assert names == {*regular_files(folder), "theirs.txt"}
    assert send().status == "unchanged"


def test_files_of_others_are_not_deleted_even_where_the_manifest_is_broken(api, send, folder, repo_id):
    send()
    _add(api, repo_id, "theirs.txt")
    for broken in (b"no json", b"[]", b'{"files": 3}', b"[" * 100_000):
        _add(api, repo_id, "sdhub.json", broken)
        assert send().status == "published"
        assert set(api.list_repo_files(repo_id)) - {".gitattributes"} == {*regular_files(folder), "theirs.txt"}


def test_a_commit_in_between_is_noticed(api, send, folder, repo_id, monkeypatch):
    send()
    (folder / "unet/openvino_model.xml").unlink()
    (folder / "unet/openvino_model.xml").write_bytes(b"<changed/>")
    original, calls = HfApi.create_commit, []

    def interfering(self, *args, **kwargs):
        calls.append(kwargs["parent_commit"])
        if len(calls) == 1:
            original(api, repo_id, [CommitOperationAdd("between.txt", b"1")], commit_message="between")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", interfering)
    assert send(message="two").status == "published"
    assert len(calls) == 2
    assert calls[0] != calls[1]
    assert "between.txt" in api.list_repo_files(repo_id)
    assert [each.title for each in api.list_repo_commits(repo_id)][:2] == ["two", "between"]


def test_one_who_is_always_overtaken_gives_up(api, send, folder, repo_id, monkeypatch):
    send()
    (folder / "new.txt").write_text("new")
    original, numbers = HfApi.create_commit, count()

    def interfering(self, *args, **kwargs):
        content = str(next(numbers)).encode()
        original(api, repo_id, [CommitOperationAdd("between.txt", content)], commit_message="between")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", interfering)
    with pytest.raises(HubError, match="changed by someone else"):
        send()
    assert "new.txt" not in api.list_repo_files(repo_id)


@pytest.mark.parametrize("failure", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_a_first_commit_that_fails_leaves_no_repository(api, send, repo_id, monkeypatch, failure):
    def failing(*_, **__):
        raise failure

    monkeypatch.setattr(HfApi, "create_commit", failing)
    with pytest.raises((HubError, KeyboardInterrupt)):
        send()
    assert not api.repo_exists(repo_id)


def test_where_even_removing_fails_the_first_failure_is_told(send, monkeypatch):
    def failing(*_, **__):
        raise OSError("the line is dead")

    monkeypatch.setattr(HfApi, "create_commit", failing)
    monkeypatch.setattr(HfApi, "delete_repo", failing)
    with pytest.raises(HubError, match="cannot publish to") as failed:
        send()
    assert "is left empty" in failed.value.hint


def test_a_repository_that_was_there_stays_when_a_commit_fails(api, send, repo_id, monkeypatch):
    api.create_repo(repo_id)
    monkeypatch.setattr(HfApi, "create_commit", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(HubError, match="gone"):
        send()
    assert api.repo_exists(repo_id)


def test_a_new_repository_that_someone_filled_meanwhile_stays(api, send, repo_id, monkeypatch):
    original = HfApi.create_commit

    def filling(self, *args, **kwargs):
        original(api, repo_id, [CommitOperationAdd("theirs.txt", b"1")], commit_message="theirs")
        raise OSError("gone")

    monkeypatch.setattr(HfApi, "create_commit", filling)
    with pytest.raises(HubError):
        send()
    assert "theirs.txt" in api.list_repo_files(repo_id)


def test_a_pull_request_holds_the_folder_and_is_made_once(api, send, folder, repo_id):
    api.create_repo(repo_id)
    _add(api, repo_id, "theirs.txt")
    head = api.model_info(repo_id).sha
    first = send(create_pr=True)
    assert first.status == "proposed"
    assert first.pull_request_url
    assert api.model_info(repo_id).sha == head
    number = int(first.pull_request_url.rpartition("/")[2])
    assert set(api.list_repo_files(repo_id, revision=f"refs/pr/{number}")) >= {
        *regular_files(folder),
        "theirs.txt",
    }
    again = send(create_pr=True)
    assert (again.status, again.uploaded_bytes) == ("proposed", 0)
    assert again.pull_request_url == first.pull_request_url
    api.merge_pull_request(repo_id, number)
    assert send(create_pr=True).status == "unchanged"


def test_private_stays_private(api, send, repo_id):
    send(private=True)
    assert api.model_info(repo_id).private
    assert send(private=True).status == "unchanged"
    assert send().status == "unchanged"


def test_nothing_private_goes_to_a_public_repository(api, send, repo_id):
    api.create_repo(repo_id, private=False)
    with pytest.raises(PrivacyError):
        send(private=True)
    assert "README.md" not in api.list_repo_files(repo_id)


def test_large_files_go_to_lfs_and_are_not_sent_again(api, send, folder, repo_id, monkeypatch):
    monkeypatch.setattr(pushing, "ALONE", 2**20)
    (folder / "large.bin").write_bytes(bytes(range(256)) * 2**16)
    send()
    (info,) = api.get_paths_info(repo_id, ["large.bin"])
    assert info.lfs is not None
    assert info.size == 2**24
    assert send().status == "unchanged"


def test_nothing_is_printed_about_xet_or_progress(send, caplog, capsys):
    with caplog.at_level(logging.WARNING):
        send()
    assert capsys.readouterr() == ("", "")
    assert "Xet" not in caplog.text
    assert not logging.getLogger("huggingface_hub._commit_api").filters


def test_without_a_token_nothing_is_written(hub, folder, repo_id):
    with pytest.raises(HubError) as refused:
        push(folder, repo_id, hub=Hub(hub), message="one")
    assert "\n" not in refused.value.message
    with pytest.raises(HfHubHTTPError):
        HfApi(endpoint=hub, token=TOKEN).model_info(repo_id)


def test_the_manifest_on_the_hub_says_what_is_there(api, send, repo_id, tmp_path):
    send()
    manifest = json.loads(open(api.hf_hub_download(repo_id, "sdhub.json", cache_dir=tmp_path)).read())  # noqa: PTH123, SIM115
    assert set(manifest["files"]) == set(api.list_repo_files(repo_id)) - {"sdhub.json", ".gitattributes"}
