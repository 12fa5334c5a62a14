"""Whether a folder lies on a disk that keeps the promises of a journal."""

from __future__ import annotations

from pathlib import Path

_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "lustre", "glusterfs")


def network_filesystem(folder: Path) -> str | None:
    """Return the type of a network or FUSE file system that holds `folder`, else None."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    place = folder.resolve()
    best, kind = -1, ""
    for line in lines:
        _, mount, found, *_ = line.split(" ")
        mount = mount.replace("\\040", " ")
        if place.is_relative_to(mount) and len(mount) > best:
            best, kind = len(mount), found
    return kind if kind in _NETWORK or kind.startswith("fuse") else None
