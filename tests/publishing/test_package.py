from __future__ import annotations

import os
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from sdhub.core.errors import UnsafeError
from sdhub.publishing import package
from sdhub.publishing.package import Limits, pack, sums, unpack


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "folder"
    for name in ("b.bin", "a/z.txt", "a/Ä.txt", "empty"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(name.encode() * 1000 if name != "empty" else b"")
    return made


def test_zips_are_the_same_bytes_whatever_times_modes_and_order(folder, tmp_path):
    first = pack(folder, tmp_path / "x.zip")
    copy = tmp_path / "copy"
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            target = copy / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            target.chmod(0o755)
            os.utime(target, (1, 1))
    (tmp_path / "again").mkdir()
    second = pack(copy, tmp_path / "again" / "x.zip")
    assert second == first
    assert (tmp_path / "again" / "x.zip").read_bytes() == (tmp_path / "x.zip").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_layout(folder, tmp_path):
    pack(folder, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as zipped:
        entries = zipped.infolist()
        assert zipped.testzip() is None
    assert [entry.filename for entry in entries] == ["x/a/z.txt", "x/a/Ä.txt", "x/b.bin", "x/empty"]
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert {entry.extract_version for entry in entries} == {20}
    assert {entry.external_attr >> 16 for entry in entries} == {stat.S_IFREG | 0o644}


def test_round_trip(folder, tmp_path):
    pack(folder, tmp_path / "x.zip")
    unpack(tmp_path / "x.zip", tmp_path / "out")
    files = package.regular_files(folder)
    assert list(package.regular_files(tmp_path / "out" / "x")) == list(files)
    for name, path in files.items():
        assert (tmp_path / "out" / "x" / name).read_bytes() == path.read_bytes()


def test_zip64_where_it_is_needed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    pack(folder, tmp_path / "x.zip")
    monkeypatch.undo()
    with zipfile.ZipFile(tmp_path / "x.zip") as zipped:
        assert zipped.testzip() is None
        assert zipped.getinfo("x/b.bin").extract_version == 45


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs GNU coreutils")
def test_sums_are_those_of_coreutils(folder, tmp_path):
    packed = pack(folder, tmp_path / "x.zip")
    (tmp_path / "SHA256SUMS").write_text(sums([packed]))
    check = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 0
    with (tmp_path / "x.zip").open("r+b") as stream:
        stream.write(b"!")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode != 0


def test_links_are_not_packed(folder, tmp_path):
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeError, match="link"):
        pack(folder, tmp_path / "x.zip")
    assert not list(tmp_path.glob("*.zip"))


def _zip(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for name, content in entries:
            zipped.writestr(name, content)
    return path


def _special(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = mode << 16
    return entry


def _flagged(path: Path, flag: int) -> Path:
    content = bytearray(_zip(path, ("a", b"secret")).read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 8 : central + 10] = flag.to_bytes(2, "little")
    content[6:8] = flag.to_bytes(2, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "//x",
        "a//b",
        "./x",
        "a/./b",
        "..",
        "C:/x",
        "c:x",
        "a\\b",
        "a/..\\x",
        "a\x01b",
        "a\u202eb",
        "x" * 300,
        "a./b",
        "a /b",
        "con*",
        'q"',
        "a?b",
        "a<b",
        "a|b",
    ],
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    _refused(tmp_path, _zip(tmp_path / "x.zip", ("ok/good.txt", b"1"), (name, b"2")))


@pytest.mark.parametrize(
    "entries",
    [
        [("a", b"1"), ("a", b"2")],
        [("a", b"1"), ("A", b"2")],
        [("dir/a", b"1"), ("DIR/b", b"2")],
        [("stra\u00dfe", b"1"), ("strasse", b"2")],
        [("\u00e9", b"1"), ("e\u0301", b"2")],
        [("a", b"1"), ("a/b", b"2")],
        [("a/b", b"1"), ("a", b"2")],
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_clash_are_refused(tmp_path, entries):
    _refused(tmp_path, _zip(tmp_path / "x.zip", *entries), "twice, or clashes")


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_links_and_special_files_are_refused(tmp_path, mode):
    _refused(tmp_path, _zip(tmp_path / "x.zip", (_special("a", mode), b"/etc/passwd")), "special file")


def test_encrypted_dense_large_many_and_damaged_are_refused(tmp_path):
    for flag in (0x1, 0x41):
        _refused(tmp_path, _flagged(tmp_path / "x.zip", flag), "encrypted")
    bomb = _zip(tmp_path / "x.zip", ("a", bytes(2**24)), compression=zipfile.ZIP_DEFLATED)
    _refused(tmp_path, bomb, "times its size")
    _refused(tmp_path, _zip(tmp_path / "x.zip", ("a", bytes(2000))), "2000 bytes", Limits(bytes=1999))
    _refused(tmp_path, _zip(tmp_path / "x.zip", ("a", b""), ("b", b"")), "2 entries", Limits(entries=1))
    _refused(tmp_path, _zip(tmp_path / "x.zip", ("a", b"1"), compression=zipfile.ZIP_LZMA), "unusual")
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 nothing")
    _refused(tmp_path, tmp_path / "x.zip", "no sound zip")


def test_an_entry_whose_bytes_are_not_what_it_says_leaves_nothing(tmp_path):
    archive = _zip(tmp_path / "x.zip", ("a", b"1" * 100), ("b", b"2" * 100))
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"2" * 100, b"3" * 100))
    _refused(tmp_path, archive, "no sound zip")


def test_overlapping_entries_are_refused(tmp_path):
    """A bomb whose central directory names one stored file many times (Fifield 2019)."""
    content = _zip(tmp_path / "x.zip", ("a", bytes(5000))).read_bytes()
    central, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entry = content[central:end]
    many = b"".join(entry[:-1] + letter for letter in (b"a", b"b", b"c"))
    tail = bytearray(content[end:])
    tail[8:12] = (3).to_bytes(2, "little") * 2
    tail[12:16] = len(many).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(content[:central] + many + tail)
    _refused(tmp_path, tmp_path / "x.zip", "overlap")


def test_only_into_a_new_folder(folder, tmp_path):
    pack(folder, tmp_path / "x.zip")
    with pytest.raises(UnsafeError, match="not empty"):
        unpack(tmp_path / "x.zip", folder)
    (tmp_path / "empty").mkdir()
    unpack(tmp_path / "x.zip", tmp_path / "empty")
    assert (tmp_path / "empty" / "x" / "b.bin").exists()


def _refused(tmp_path: Path, archive: Path, reason: str = "", limits: Limits | None = None) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafeError) as refused:
        unpack(archive, tmp_path / "out", limits=limits)
    assert reason in refused.value.message
    assert "\n" not in refused.value.message
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "x").exists()
