"""What huggingface_hub keeps of its downloads, bounded."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

logger = logging.getLogger(__name__)


def clear_downloads(most: int, folder: Path | None = None, keep: Collection[str] = ()) -> int:
    """Remove commits from a cache (default: huggingface_hub's usual one), least recently used first, until `most`
    bytes are left; returns the bytes that went. Those of `keep` stay.
    """
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        found = scan_cache_dir(folder)
    except CacheNotFound:
        return 0
    used = {
        each.commit_hash: max((file.blob_last_accessed for file in each.files), default=each.last_modified)
        for repo in found.repos
        for each in repo.revisions
    }
    going: list[str] = []
    freed = 0
    for commit in sorted(used.keys() - set(keep), key=lambda each: used[each]):
        if found.size_on_disk - freed <= most:
            break
        going.append(commit)
        freed = found.delete_revisions(*going).expected_freed_size
    if going:
        found.delete_revisions(*going).execute()
        logger.info("cleared %d commits, %d bytes", len(going), freed)
    return freed
