"""What the service is at and was at: one job a request, the newest first, the oldest that ended forgotten."""

import threading
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

MOST_JOBS = 100

Status = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Job:
    """A request to `/process`.

    Attributes:
        started: when it came, ISO 8601 in UTC; seconds: how long it took, None while it runs.
        documents, documents_done: of the request, and how many are done with, one way or the other.
    """

    uid: str
    documents: int
    started: str
    type_job: str = "process"
    status: Status = "running"
    documents_done: int = 0
    seconds: float | None = None


class Jobs:
    """The jobs of this process, for any thread."""

    def __init__(self, most: int = MOST_JOBS) -> None:
        self._most = most
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, documents: int) -> str:
        """Notes a new job and returns its id."""
        job = Job(str(uuid.uuid4()), documents, datetime.now(UTC).isoformat(timespec="milliseconds"))
        with self._lock:
            self._jobs[job.uid] = job
            ended = [uid for uid, one in self._jobs.items() if one.seconds is not None]
            for uid in ended[: max(len(self._jobs) - self._most, 0)]:
                del self._jobs[uid]
        return job.uid

    def count_done(self, uid: str) -> None:
        """Notes that one more document of the job is done with."""
        self._change(uid, lambda job: replace(job, documents_done=job.documents_done + 1))

    def end(self, uid: str, status: Status, seconds: float) -> None:
        """Notes that the job ended, after so many seconds."""
        self._change(uid, lambda job: replace(job, status=status, seconds=round(seconds, 3)))

    def all(self) -> dict[str, dict[str, Any]]:
        """The jobs by their ids, the newest first."""
        with self._lock:
            return {uid: asdict(job) for uid, job in reversed(self._jobs.items())}

    def one(self, uid: str) -> dict[str, dict[str, Any]] | None:
        """The job of an id, in the same form; None where it is not known."""
        with self._lock:
            job = self._jobs.get(uid)
        return None if job is None else {uid: asdict(job)}

    def _change(self, uid: str, change: Callable[[Job], Job]) -> None:
        with self._lock:
            if uid in self._jobs:
                self._jobs[uid] = change(self._jobs[uid])
