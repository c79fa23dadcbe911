"""Registry of jobs: one per request to `/process`, running and ended, of which the oldest are dropped."""

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

MAX_JOBS = 100  # ended ones of each status, so that refused requests do not displace successful ones

Status = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Job:
    """A request to `/process`.

    Attributes:
        documents: number of documents in the request, None until its body is read.
        documents_done: number of documents with an outcome, be it a result or an error.
        frames_done: number of finished pictures, pages and frames of videos.
        started: time of arrival, ISO 8601 in UTC.
        seconds: duration, None while it waits or runs.
        model, device: that process it; empty if it failed before.
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
    """The jobs of this process; thread-safe."""

    def __init__(self, max_jobs: int = MAX_JOBS) -> None:
        self._max_jobs = max_jobs
        self._jobs: dict[str, Job] = {}
        self._started: dict[str, float] = {}  # monotonic time of arrival of waiting and running jobs
        self._lock = threading.Lock()

    def open(self) -> str:
        """Add a new job and return its id."""
        job = Job(str(uuid.uuid4()), datetime.now(UTC).isoformat(timespec="milliseconds"))
        with self._lock:
            self._jobs[job.uid] = job
            self._started[job.uid] = time.monotonic()
        return job.uid

    def change(self, uid: str, **fields: Any) -> None:
        """Set fields of a job."""
        self._change(uid, lambda job: replace(job, **fields))

    def run(self, uid: str) -> None:
        """Set the status of a job to running."""
        self._change(uid, lambda job: replace(job, status="running"))

    def count_document(self, uid: str) -> None:
        """Add one to the finished documents of a job."""
        self._change(uid, lambda job: replace(job, status="running", documents_done=job.documents_done + 1))

    def count_frame(self, uid: str) -> None:
        """Add one to the finished frames of a job."""
        self._change(uid, lambda job: replace(job, frames_done=job.frames_done + 1))

    def end(self, uid: str, status: Status) -> Job:
        """Set the final status of a job, drop the oldest job of this status if there are too many, and return the job.

        It is called once for each job.
        """
        with self._lock:
            seconds = round(time.monotonic() - self._started.pop(uid), 3)
            job = self._jobs[uid] = replace(self._jobs[uid], status=status, seconds=seconds)
            same_status = [other.uid for other in self._jobs.values() if other.status == status]
            for oldest in same_status[: max(len(same_status) - self._max_jobs, 0)]:
                del self._jobs[oldest]
        return job

    def all(self) -> dict[str, dict[str, Any]]:
        """Return the jobs by their ids, the newest first."""
        with self._lock:
            return {uid: asdict(job) for uid, job in reversed(self._jobs.items())}

    def get(self, uid: str) -> dict[str, dict[str, Any]] | None:
        """Return one job by its id, None if there is no such job."""
        with self._lock:
            job = self._jobs.get(uid)
        return None if job is None else {uid: asdict(job)}

    def _change(self, uid: str, change: Callable[[Job], Job]) -> None:
        with self._lock:
            if uid in self._started:  # a frame can finish after its job has ended
                self._jobs[uid] = change(self._jobs[uid])
