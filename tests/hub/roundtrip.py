"""What a client does with the Hub, run as a script by each client that must be able to.

Run as `python roundtrip.py NAMESPACE` with HF_ENDPOINT, HF_TOKEN and HF_HOME set. Uses only what huggingface_hub
1.x and 2.x have in common.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import sys
import tempfile
from array import array
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    __version__,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

CARD = "---\nlicense: mit\ntags:\n- core-ml\nbase_model: org/base\nbase_model_relation: quantized\n---\n# Card\n"
api = HfApi()
repo = f"{sys.argv[1]}/round-trip"


def safetensors(count: int) -> bytes:
    """A safetensors file of float32 weights: bytes that compress a little, in groups of four."""
    source = random.Random(3)
    values = array("f", [source.gauss(0, 0.02) for _ in range(count)])
    entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}
    header = json.dumps({"weight": entry, "__metadata__": {"format": "pt"}}).encode()
    return struct.pack("<Q", len(header)) + header + values.tobytes()


def expect(error: type[Exception], call, *arguments, **named):
    try:
        call(*arguments, **named)
    except error:
        return
    raise AssertionError(f"{error.__name__} was expected")


def main() -> None:
    assert api.whoami()["name"] == "local"
    expect(RepositoryNotFoundError, api.model_info, repo)
    url = api.create_repo(repo)
    assert (url.repo_id, url.repo_type) == (repo, "model")
    assert api.create_repo(repo, exist_ok=True).repo_id == repo
    expect(HfHubHTTPError, api.create_repo, repo)

    folder = Path(tempfile.mkdtemp())
    noise = random.Random(1)
    contents = {
        "README.md": CARD.encode(),
        "model_index.json": b"{}",
        "empty.bin": b"",
        "unet/diffusion.safetensors": safetensors(120_000),
        "unet/config.json": b'{"a": 1}',
        "words.bin": b"the same words again and again, " * 20_000,
        "large.dat": noise.randbytes(11 * 2**20),
        "ünï/späce d.txt": "grüße".encode(),
        "vae/weights.onnx": noise.randbytes(300_000),
    }
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    first = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="All of it")
    again = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Nothing new")
    assert again.oid == first.oid

    listed = {
        item.path: item for item in api.list_repo_tree(repo, recursive=True, expand=True) if hasattr(item, "size")
    }
    assert listed.keys() == contents.keys() | {".gitattributes"}
    for path, content in contents.items():
        entry = listed[path]
        assert entry.size == len(content), path
        assert entry.last_commit.oid, path
        if path in {"unet/diffusion.safetensors", "words.bin", "large.dat", "vae/weights.onnx"}:
            assert entry.lfs.sha256 == hashlib.sha256(content).hexdigest(), path
        else:
            assert entry.lfs is None, path
            assert entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), path

    fetched = Path(snapshot_download(repo, cache_dir=tempfile.mkdtemp()))
    assert {path: (fetched / path).read_bytes() for path in contents} == contents
    there = Path(snapshot_download(repo, local_dir=tempfile.mkdtemp(), allow_patterns="unet/*"))
    assert (there / "unet/config.json").read_bytes() == contents["unet/config.json"]

    info = api.model_info(repo, files_metadata=True)
    assert info.sha == first.oid
    assert "base_model:quantized:org/base" in info.tags
    assert info.card_data.license == "mit"
    assert info.library_name == "diffusers"
    assert {item.rfilename: item.size for item in info.siblings}["large.dat"] == 11 * 2**20
    metadata = api.parse_safetensors_file_metadata(repo, "unet/diffusion.safetensors")
    assert metadata.tensors["weight"].shape == [120_000]
    card = ModelCard.load(repo)
    assert card.data.license == "mit"
    if int(__version__.split(".")[0]) >= 2:  # 1.x asks huggingface.co whatever the endpoint
        card.validate()
        expect(ValueError, ModelCard("---\nlicense: 1\n---\n").validate)

    cache = tempfile.mkdtemp()
    expect(EntryNotFoundError, hf_hub_download, repo, "absent.txt", cache_dir=cache)
    assert list(Path(cache).rglob(".no_exist/*/absent.txt")), "the absence was not cached"
    expect(RevisionNotFoundError, hf_hub_download, repo, "README.md", revision="absent", cache_dir=cache)
    assert api.file_exists(repo, "README.md")
    assert not api.file_exists(repo, "absent.txt")
    assert [item.path for item in api.get_paths_info(repo, ["unet", "README.md", "absent"])] == [
        "unet",
        "README.md",
    ]

    made = api.create_commit(
        repo,
        [
            CommitOperationAdd("added.txt", b"new"),
            CommitOperationCopy("large.dat", "copies/large.dat"),
            CommitOperationCopy("model_index.json", "copies/model_index.json"),
            CommitOperationDelete("vae/"),
            CommitOperationDelete("words.bin"),
        ],
        commit_message="Several at once",
        parent_commit=first.oid,
    )
    files = set(api.list_repo_files(repo))
    assert {"copies/large.dat", "copies/model_index.json", "added.txt"} <= files
    assert not {"words.bin", "vae/weights.onnx"} & files
    stale = [CommitOperationAdd("added.txt", b"newer")]
    expect(HfHubHTTPError, api.create_commit, repo, stale, commit_message="Stale", parent_commit=first.oid)
    with (folder / "vae/weights.onnx").open("rb") as stream:
        api.upload_file(repo_id=repo, path_or_fileobj=stream, path_in_repo="streamed.bin")
    api.delete_file("streamed.bin", repo)

    pull = api.upload_file(
        repo_id=repo, path_or_fileobj=contents["vae/weights.onnx"], path_in_repo="by-pull.bin", create_pr=True
    )
    assert not api.file_exists(repo, "by-pull.bin")
    assert api.file_exists(repo, "by-pull.bin", revision=pull.pr_revision)
    (folder / "second.bin").write_bytes(noise.randbytes(50_000))
    bundle = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="As a pull", create_pr=True)
    api.comment_discussion(repo, bundle.pr_num, "Looks *good*")
    details = api.get_discussion_details(repo, bundle.pr_num)
    assert details.is_pull_request
    assert "second.bin" in details.diff
    api.merge_pull_request(repo, bundle.pr_num)
    assert api.get_discussion_details(repo, bundle.pr_num).status == "merged"
    assert api.file_exists(repo, "second.bin")
    api.change_discussion_status(repo, pull.pr_num, "closed")
    assert {talk.num for talk in api.get_repo_discussions(repo)} == {pull.pr_num, bundle.pr_num}

    api.create_branch(repo, branch="side/branch", revision=made.oid)
    api.create_branch(repo, branch="side/branch", exist_ok=True)
    api.upload_file(repo_id=repo, path_or_fileobj=b"x", path_in_repo="only-here.txt", revision="side/branch")
    assert not api.file_exists(repo, "only-here.txt")
    assert api.file_exists(repo, "only-here.txt", revision="side/branch")
    api.create_tag(repo, tag="v1.0", revision=first.oid)
    assert api.model_info(repo, revision="v1.0").sha == first.oid
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert {branch.name for branch in refs.branches} == {"main", "side/branch"}
    assert len(refs.pull_requests) == 2
    api.delete_tag(repo, tag="v1.0")
    api.delete_branch(repo, branch="side/branch")
    titles = [commit.title for commit in api.list_repo_commits(repo)]
    assert titles[-2:] == ["All of it", "initial commit"]

    system = HfFileSystem()
    assert (
        system.cat_file(f"{repo}/large.dat", start=5_000_000, end=5_000_100)
        == contents["large.dat"][5_000_000:5_000_100]
    )
    with system.open(f"{repo}/README.md", "r") as stream:
        assert stream.read() == CARD
    assert f"{repo}/unet/config.json" in system.find(repo)

    space = f"{sys.argv[1]}/try-it"
    api.create_repo(space, repo_type="space", space_sdk="gradio", space_secrets=[{"key": "A", "value": "hidden"}])
    api.add_space_variable(space, "NAME", "value")
    assert api.get_space_variables(space)["NAME"].value == "value"
    assert api.get_space_runtime(space).requested_hardware == "cpu-basic"
    assert api.pause_space(space).stage == "PAUSED"
    assert api.restart_space(space).stage == "RUNNING"
    assert api.space_info(space).sdk == "gradio"

    collection = api.create_collection("Round trip", namespace=sys.argv[1])
    collection = api.add_collection_item(collection.slug, item_id=repo, item_type="model", note="here")
    assert [item.item_id for item in api.get_collection(collection.slug).items] == [repo]
    assert [each.slug for each in api.list_collections(owner=sys.argv[1])] == [collection.slug]

    api.update_repo_settings(repo, private=True)
    assert api.model_info(repo).private
    assert repo in {model.id for model in api.list_models(author=sys.argv[1])}
    api.move_repo(repo, f"{repo}-moved")
    assert api.model_info(repo).id == f"{repo}-moved"
    api.delete_repo(f"{repo}-moved")
    api.delete_repo(f"{repo}-moved", missing_ok=True)
    expect(RepositoryNotFoundError, api.model_info, repo)
    sys.stdout.write("round trip done\n")


main()
