"""With the gate taken away, the same mischief is seen: by the canary, and by the hook in every process."""

import pytest

from tests.hostile.control import DOORS
from tests.hostile.running import run

SEEN = {
    "source": ("own", "exec "),
    "variant": ("own", "exec "),
    "forked": ("forked", "pickle.find_class ('builtins', 'eval')"),
    "fresh": ("fresh", "pickle.find_class ('builtins', 'eval')"),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_is_executed_is_seen(tmp_path, door):
    said = run("control", tmp_path, door)
    process, event = SEEN[door]
    seen = [each.partition(": ")[2] for each in said["events"] if each.startswith(f"{process}: ")]
    assert said["canary"]
    assert any(each[1:].startswith(event) for each in seen), seen
    assert any(each[1:].startswith(f"open {tmp_path / 'canary'}") for each in seen), seen
