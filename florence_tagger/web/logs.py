"""The form of the log's lines, each with the job that it is about. The only user of python-json-logger."""

import logging
from contextvars import ContextVar
from typing import Any, Literal

from gunicorn.glogging import Logger
from pythonjsonlogger.json import JsonFormatter

job_id: ContextVar[str] = ContextVar("job_id", default="")  # of the request that the thread at hand treats

TEXT = "%(asctime)s %(levelname)s %(name)s%(in_job)s: %(message)s"
RENAMED = {"levelname": "level", "name": "logger", "asctime": "time"}


class JobFilter(logging.Filter):
    """Adds the job to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        job = job_id.get()
        record.in_job = f" job {job}" if job else ""
        if job:
            record.job = job
        return True


class JsonLines(JsonFormatter):
    """One JSON object a line."""

    def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
        log_data.pop("in_job", None)
        return log_data


def configure_logs(log_format: Literal["text", "json"]) -> None:
    """Sends the log to standard error in the form that is wanted."""
    handler = logging.StreamHandler()
    handler.addFilter(JobFilter())
    if log_format == "json":
        handler.setFormatter(JsonLines("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=RENAMED))
    else:
        handler.setFormatter(logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class Logs(Logger):  # type: ignore[misc]
    """gunicorn's own lines, sent where all others go."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
