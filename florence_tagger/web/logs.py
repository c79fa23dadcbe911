"""Format of the log's lines, each with the id of its job. The only module that uses python-json-logger."""

import logging
from contextvars import ContextVar
from typing import Any, Literal

from gunicorn.glogging import Logger
from pythonjsonlogger.json import JsonFormatter

job_id: ContextVar[str] = ContextVar("job_id", default="")  # of the request that the current thread handles

TEXT = "%(asctime)s %(levelname)s %(name)s%(in_job)s: %(message)s"
RENAMED = {"levelname": "level", "name": "logger", "asctime": "time"}


class JobFilter(logging.Filter):
    """A filter that adds the id of the job to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id of the job and keep the record."""
        job = job_id.get()
        record.in_job = f" job {job}" if job else ""
        if job:
            record.job = job
        return True


class JsonLines(JsonFormatter):
    """A format of one JSON object per line."""

    def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
        """Drop the field of the text format."""
        log_data.pop("in_job", None)
        return log_data


def configure_logs(log_format: Literal["text", "json"]) -> None:
    """Write the log to standard error in the given format."""
    handler = logging.StreamHandler()
    handler.addFilter(JobFilter())
    if log_format == "json":
        handler.setFormatter(JsonLines("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=RENAMED))
    else:
        handler.setFormatter(logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class Logs(Logger):  # type: ignore[misc]
    """The logger of gunicorn, whose lines go to the log of the service."""

    def setup(self, cfg: Any) -> None:
        """Replace gunicorn's handlers by those of the root logger."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
