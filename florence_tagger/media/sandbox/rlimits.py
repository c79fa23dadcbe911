"""The memory of this process, and the most that it may take."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = resource.getpagesize()


def memory() -> tuple[int, int]:
    """Address space and resident memory of this process, bytes (proc(5), statm)."""
    size, resident = Path("/proc/self/statm").read_text().split()[:2]
    return int(size) * PAGE, int(resident) * PAGE


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """In the block the process's address space may grow by so many bytes; beyond, allocating fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = memory()[0] + more
    if soft == resource.RLIM_INFINITY or wanted < soft:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
