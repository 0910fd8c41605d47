"""What does not pass its check never becomes the branch that people read, whatever is killed when."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import pytest

from sdhub.core.errors import CheckError
from sdhub.core.hub import Hub
from sdhub.publishing.push import push
from sdhub.publishing.remote import compare
from tests.publishing.conftest import TOKEN


@pytest.fixture
def send(hub, repo_id):
    def send(folder, check, **changes):
        wanted = {"hub": Hub(hub, TOKEN), "message": "one", "check": check, **changes}
        return push(folder, repo_id, **wanted)

    return send


def fails(commit):
    raise CheckError("it draws another picture")


def branches(api, repo_id):
    return {each.name: each.target_commit for each in api.list_repo_refs(repo_id).branches}


def changed(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "README.md").write_text((other / "README.md").read_text() + "\nbad\n")
    return other


def test_the_check_sees_all_files_before_the_branch_has_any(api, send, folder, repo_id):
    seen = []

    def check(commit):
        assert [each.title for each in api.list_repo_commits(repo_id)] == ["initial commit"]
        assert not compare(api, repo_id, commit, folder)
        seen.append(commit)

    pushed = send(folder, check)
    assert pushed.status == "published" and len(seen) == 1
    assert branches(api, repo_id) == {"main": pushed.commit}
    assert not compare(api, repo_id, "main", folder)
    assert send(folder, seen.append).status == "unchanged"
    assert seen[1] == pushed.commit  # what is there already is checked where it is


@pytest.mark.parametrize("branch", ["main", "int8"])
def test_a_check_that_fails_leaves_the_good_variant(api, send, folder, repo_id, tmp_path, branch):
    good = send(folder, lambda commit: None, branch=branch)
    before = branches(api, repo_id)
    with pytest.raises(CheckError) as caught:
        send(changed(folder, tmp_path), fails, branch=branch)
    assert f"{branch} of {repo_id} is as it was" in caught.value.hint
    assert branches(api, repo_id) == before
    assert before[branch] == good.commit
    assert not compare(api, repo_id, branch, folder)


def test_a_check_that_fails_leaves_no_repository_where_there_was_none(api, send, folder, repo_id):
    with pytest.raises(CheckError) as caught:
        send(folder, fails)
    assert not api.repo_exists(repo_id)
    assert "is removed again" in caught.value.hint


def test_a_repository_that_was_there_empty_stays(api, send, folder, repo_id):
    api.create_repo(repo_id)
    before = branches(api, repo_id)
    with pytest.raises(CheckError):
        send(folder, fails)
    assert branches(api, repo_id) == before


def test_an_interrupt_during_the_check_undoes_as_well(api, send, folder, repo_id):
    def interrupt(commit):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(folder, interrupt)
    assert not api.repo_exists(repo_id)


KILLED = """
import os, pathlib, signal, sys
from sdhub.core.hub import Hub
from sdhub.publishing.push import push

def check(commit):
    os.kill(os.getpid(), signal.SIGKILL)

folder, repo_id, endpoint = sys.argv[1:]
push(pathlib.Path(folder), repo_id, hub=Hub(endpoint, "local"), message="one", check=check)
"""


def killed(folder, repo_id, hub):
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), repo_id, hub], check=False)
    assert done.returncode == -9


def test_killed_between_push_and_check_the_next_run_checks_the_same_commit(
    api, hub, send, folder, repo_id, tmp_path
):
    killed(folder, repo_id, hub)
    (left,) = set(branches(api, repo_id).items()) - {("main", branches(api, repo_id)["main"])}
    seen = []
    pushed = send(folder, seen.append)
    assert seen == [left[1]]
    assert branches(api, repo_id) == {"main": pushed.commit}

    killed(changed(folder, tmp_path), repo_id, hub)
    assert branches(api, repo_id)["main"] == pushed.commit
    with pytest.raises(CheckError):
        send(tmp_path / "other", fails)
    assert branches(api, repo_id) == {"main": pushed.commit}


def test_killed_at_the_first_and_failing_then_the_repository_is_gone(api, hub, send, folder, repo_id):
    killed(folder, repo_id, hub)
    assert len(branches(api, repo_id)) == 2
    with pytest.raises(CheckError):
        send(folder, fails)
    assert not api.repo_exists(repo_id)


def test_a_pull_request_that_fails_is_closed(api, send, folder, repo_id, tmp_path):
    good = send(folder, lambda commit: None)
    with pytest.raises(CheckError):
        send(changed(folder, tmp_path), fails, create_pr=True)
    (pull,) = [each for each in api.get_repo_discussions(repo_id) if each.is_pull_request]
    assert pull.status == "closed"
    assert api.model_info(repo_id).sha == good.commit


def test_two_runs_at_a_time_do_not_take_the_branch_from_each_other(api, send, folder, repo_id, tmp_path):
    """The second begins and ends while the first is at its check; what the first checked is still there."""
    send(folder, lambda commit: None)
    other = changed(folder, tmp_path)

    def during(commit):
        send(folder, lambda unchanged: None)
        third = tmp_path / "third"
        shutil.copytree(folder, third)
        (third / "README.md").write_text((third / "README.md").read_text() + "\nthird\n")
        with pytest.raises(CheckError):
            send(third, fails)
        staged = set(branches(api, repo_id)) - {"main"}
        assert len(staged) == 1 and branches(api, repo_id)[staged.pop()] == commit
        assert not compare(api, repo_id, commit, other)

    pushed = send(other, during)
    assert branches(api, repo_id) == {"main": pushed.commit}
    assert not compare(api, repo_id, "main", other)


def test_of_a_run_elsewhere_what_is_old_goes_and_what_may_be_in_use_stays(api, send, folder, repo_id):
    api.create_repo(repo_id)
    old, new = (f"sdhub-unchecked-main-{int(time.time()) - age:08x}01234567" for age in (9 * 86_400, 60))
    for name in (old, new, "sdhub-unchecked-main-mine"):
        api.create_branch(repo_id, branch=name)
    send(folder, lambda commit: None)
    assert set(branches(api, repo_id)) == {"main", new, "sdhub-unchecked-main-mine"}
