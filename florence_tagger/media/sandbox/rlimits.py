"""Memory usage and resource limits of the current process."""

import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = resource.getpagesize()
PR_SET_PDEATHSIG = 1  # prctl(2)


class MemoryUsage(NamedTuple):
    """Address space and resident memory of a process, bytes."""

    address_space: int
    resident: int


def memory_usage() -> MemoryUsage:
    """Return the memory usage of this process (proc(5), statm)."""
    size, resident = Path("/proc/self/statm").read_text().split()[:2]
    return MemoryUsage(int(size) * PAGE_BYTES, int(resident) * PAGE_BYTES)


def restrict_process(parent_pid: int, memory_bytes: int) -> None:
    """Limit the resources of this process and make it die with its parent.

    Args:
        parent_pid: id of the parent; if it has died already, this process exits.
        memory_bytes: maximum growth of the address space.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent died before prctl took effect
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the process group; the service ends this process itself
        signal.signal(number, signal.SIG_IGN)
    max_bytes = memory_usage().address_space + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would write a user's document to disk


@contextmanager
def address_space_limit(extra_bytes: int) -> Iterator[None]:
    """Limit the growth of this process's address space inside the block; beyond it, allocations fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    max_bytes = memory_usage().address_space + extra_bytes
    if soft == resource.RLIM_INFINITY or max_bytes < soft:
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
