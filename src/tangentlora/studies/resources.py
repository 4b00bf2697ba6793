"""What there is to work with: memory, and room on the disk."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import torch


def usable_memory(device: torch.device) -> int:
    """Return the bytes that this process holds on the device and those that are available beside them.

    Of a CPU that is what /proc/meminfo tells, elsewhere the physical memory; processes that torchrun started
    on one machine share it evenly. Limits of a container are not seen. Where nothing can be asked there is no
    end to it.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + held_memory(device)
    try:
        found = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1]) // _neighbours() + held_memory(device)
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _neighbours()
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def _neighbours() -> int:
    """Return how many processes of this run there are on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def held_memory(device: torch.device) -> int:
    """Return the bytes that this process holds on the device now, network and libraries with it."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(most if sys.platform == "darwin" else 1024 * most)


def free_disk(folder: Path) -> int:
    """Return the bytes that are free on the disk of a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
