"""What the program does where someone looks: in a terminal, a real pseudo-terminal here."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from sdhub.core import nextsteps
from tests.runs import environment, sdhub

pytest.importorskip("pty", reason="no pseudo-terminals on this system")

# `sdhub demo` of what was published before: building it anew would take minutes.
DEMO = """
import sys
from types import SimpleNamespace
import sdhub.workflow.publish
from sdhub.cli import main

figures = {"bytes": 1, "base_bytes": 2, "psnr_db": 40.0, "ssim": 1.0, "latency": None}
variant = SimpleNamespace(
    name="openvino-int8", status="unchanged", url=sys.argv[1], repo="demo/mine", branch=None, folder=None,
    pull_request=None, evidence=figures, error=None,
)
report = SimpleNamespace(variants=[variant], collection=None)
sdhub.workflow.publish.publish = lambda *_, **__: report
sys.argv = ["sdhub", "demo"]
main()
"""


class Terminal:
    """A program that runs in a terminal of its own."""

    def __init__(self, command: list[str], variables: dict[str, str]) -> None:
        import pty

        self.said = ""
        self.pid, self._side = pty.fork()
        if not self.pid:
            os.execvpe(command[0], command, variables)

    def until(self, words: str, seconds: float = 60.0) -> None:
        """Read until it says `words`."""
        end = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < end, self.said
            if not self._read(1.0):
                raise AssertionError(f"it ended: {self.said}")

    def type(self, keys: bytes) -> None:
        """As from a keyboard."""
        os.write(self._side, keys)

    def end(self, seconds: float = 30.0) -> int:
        """Its exit code."""
        until = time.monotonic() + seconds
        while self._read(0.2):
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
        os.close(self._side)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self, seconds: float) -> bool:
        if not select.select([self._side], [], [], seconds)[0]:
            return True
        try:
            found = os.read(self._side, 65536)
        except OSError:  # the other side is closed
            return False
        self.said += found.decode(errors="replace")
        return bool(found)


def session(number: int) -> list[str]:
    """Processes of a session that live."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if sid == str(number) and state != "Z":
            found.append(entry.name)
    return found


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks into /proc")
def test_the_hub_runs_while_someone_looks(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    said = sdhub("push", str(folder), "demo/mine", "--hub", "local", home=tmp_path).stdout
    (url,) = re.findall(r"^  (http\S+)$", said, re.MULTILINE)
    with socket.socket() as probe:  # the usual port may be another test's by now
        probe.bind(("127.0.0.1", 0))
        url = re.sub(r":\d+/", f":{probe.getsockname()[1]}/", url)
    terminal = Terminal([sys.executable, "-c", DEMO, url], environment(tmp_path))
    terminal.until("for as long as you look (Ctrl-C ends it)")
    terminal.until(f"  {url}\r\n")
    with urllib.request.urlopen(url) as page:
        assert "demo/mine" in page.read().decode()
    before = len(terminal.said)
    terminal.type(b"\x03")
    code = terminal.end()
    rest = terminal.said[before:].replace("^C", "").split("\r\n")
    assert (code, [line for line in rest if line]) == (
        0,
        [f"The embedded Hub has ended; open its pages again with: {nextsteps.serve(url)}"],
    )
    assert session(terminal.pid) == []
    with pytest.raises(OSError):
        urllib.request.urlopen(url)
