"""What the service is at and was at: one job a request, the newest first, the oldest that ended forgotten."""

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

MAX_JOBS = 100  # of each status that ended, so that refusals do not drive out what was treated

Status = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Job:
    """A request to `/process`.

    Attributes:
        documents, documents_done: of the request, None until its body is read; how many are done with, one way or the
            other.
        frames_done: pictures, pages and frames of videos that are done with.
        started: when it came, ISO 8601 in UTC.
        seconds: how long it took, None while it waits or runs.
        model, device: that it is treated with; empty where it never came so far.
    """

    uid: str
    started: str
    type_job: Literal["process"] = "process"
    status: Status = "waiting"
    documents: int | None = None
    documents_done: int = 0
    frames_done: int = 0
    seconds: float | None = None
    model: str = ""
    device: str = ""


class JobRegistry:
    """The jobs of this process, for any thread."""

    def __init__(self, most: int = MAX_JOBS) -> None:
        self._most = most
        self._jobs: dict[str, Job] = {}
        self._since: dict[str, float] = {}  # those that have not ended
        self._lock = threading.Lock()

    def open(self) -> str:
        """Notes a new job and returns its id."""
        job = Job(str(uuid.uuid4()), datetime.now(UTC).isoformat(timespec="milliseconds"))
        with self._lock:
            self._jobs[job.uid] = job
            self._since[job.uid] = time.monotonic()
        return job.uid

    def change(self, uid: str, **fields: Any) -> None:
        """Notes what became known of a job."""
        self._change(uid, lambda job: replace(job, **fields))

    def run(self, uid: str) -> None:
        """Notes that a job waits no longer."""
        self._change(uid, lambda job: replace(job, status="running"))

    def count_document(self, uid: str) -> None:
        """Notes that one more document of a job is done with."""
        self._change(uid, lambda job: replace(job, status="running", documents_done=job.documents_done + 1))

    def count_frame(self, uid: str) -> None:
        """Notes that one more frame of a job is done with."""
        self._change(uid, lambda job: replace(job, frames_done=job.frames_done + 1))

    def end(self, uid: str, status: Status) -> Job:
        """Notes that a job ended, forgets the oldest that ended so, and returns it as it is now; once for each job."""
        with self._lock:
            seconds = round(time.monotonic() - self._since.pop(uid), 3)
            job = self._jobs[uid] = replace(self._jobs[uid], status=status, seconds=seconds)
            alike = [one.uid for one in self._jobs.values() if one.status == status]
            for old in alike[: max(len(alike) - self._most, 0)]:
                del self._jobs[old]
        return job

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
            if uid in self._since:  # a frame may be done with when its job has ended
                self._jobs[uid] = change(self._jobs[uid])
