"""The gunicorn server of the application: one worker process with one model and many threads."""

import ctypes
import logging
import os
import resource
import shlex
import sys
import time
from contextlib import suppress
from dataclasses import replace

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from florence_tagger.assembly import start_decoder_pool
from florence_tagger.config import SAMPLES, Settings
from florence_tagger.errors import RESTARTED, NotReadyError
from florence_tagger.florence.manifest import ModelManifest
from florence_tagger.media.sandbox.pool import DecoderPool
from florence_tagger.scheduler import Model, Scheduler
from florence_tagger.web.app import create_app
from florence_tagger.web.logs import Logs
from florence_tagger.web.metrics import Metrics
from florence_tagger.web.state import ModelInfo
from florence_tagger.web.worker import Worker

logger = logging.getLogger(__name__)

SAMPLE = SAMPLES / "street.png"
M_ARENA_MAX = -8  # mallopt(3)
MAX_DESCRIPTORS = 16_384  # that are used, even if the system allows more
RESERVED_DESCRIPTORS = 200  # for everything but connections: decoders, files of the model, event queues
EXIT_MODEL_HUNG = 70  # exit code of a worker whose model hangs; gunicorn starts another one
ABORT_SECONDS = 2  # for answering the requests of a model that hangs


class Server(BaseApplication):  # type: ignore[misc]
    """The HTTP server of a model folder, until a signal stops it."""

    def __init__(self, settings: Settings, manifest: ModelManifest) -> None:
        self.settings = settings
        self.manifest = manifest
        self.decoders: DecoderPool | None = None
        self.scheduler: Scheduler | None = None
        self._model_info = ModelInfo(f"{manifest.name} ({manifest.sha256[:12]})")
        self._hung_since: float | None = None
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options: one worker with threads, in which the model is loaded, never before a fork."""
        options = {
            "bind": f"{url_host(self.settings.host)}:{self.settings.port}",
            "workers": 1,
            "worker_class": Worker,
            "threads": self.settings.http_threads,
            "worker_connections": max_connections_for(raise_descriptor_limit()),
            "preload_app": False,
            "graceful_timeout": int(self.settings.stop_seconds),
            # No answer depends on the scheme or on the proxy of a request. By default gunicorn reads both from the
            # headers of a proxy on this machine and refuses a request whose headers contradict each other.
            "forwarded_allow_ips": "",
            "secure_scheme_headers": {},
            "forwarder_headers": "",
            "worker_exit": lambda server, worker: self.close(),
            "logger_class": Logs,
            "loglevel": "warning",
            "proc_name": "florence_tagger",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Return the application, in the worker; its model loads in the background."""
        share_one_heap()
        self.decoders = start_decoder_pool(self.settings, self.manifest.image_size)  # before the model is loaded
        metrics = Metrics()
        self.scheduler = Scheduler(self.load_model, self.settings.queue_size, stop_service, metrics)
        return create_app(self.settings, self.decoders, self.scheduler, metrics, lambda: self._model_info)

    def load_model(self) -> Model:
        """Load the model and print a command that uses the service."""
        from florence_tagger.florence.model import load_model  # OpenVINO must not be loaded before the fork

        started = time.monotonic()
        florence2 = load_model(self.manifest, self.settings)
        devices = ", ".join(f"{name} on {device}" for name, device in florence2.devices.items())
        seconds = time.monotonic() - started
        self._model_info = replace(self._model_info, device=devices)
        logger.info("%s is ready after %.1f s: %s", self._model_info.model, seconds, devices)
        print(startup_message(self.settings), flush=True)
        return florence2

    def watch(self) -> None:
        """End the worker if a step of the model takes too long: a thread that hangs in a library can't be stopped.

        It is called about once a second, in a thread that never blocks. Loading the model is not watched, because its
        first compilation for a GPU takes minutes.
        """
        if self._hung_since is not None:
            if time.monotonic() - self._hung_since > ABORT_SECONDS:
                end_worker(EXIT_MODEL_HUNG)
        elif self.scheduler is not None and self.scheduler.busy_seconds > self.settings.hang_seconds:
            logger.critical("The model has not answered for %.0f s; it is started anew.", self.scheduler.busy_seconds)
            self._hung_since = time.monotonic()
            self.scheduler.abort_all(NotReadyError(RESTARTED))

    def close(self) -> None:
        """End the model's thread and the decoder processes; waiting documents are answered as not processed."""
        if self.scheduler is not None:
            self.scheduler.close()
        if self.decoders is not None:
            self.decoders.close()


def share_one_heap() -> None:
    """Make all threads allocate from one heap, if the C library is glibc.

    By default each of the many threads keeps its freed memory in its own heap: after a hundred photos of 12 megapixels
    the service holds 200 MB more than with one heap (`python -m benchmarks.table` measures it).
    """
    with suppress(OSError, AttributeError):  # another C library, without this setting
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors, for this process and its children; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def max_connections_for(descriptors: int) -> int:
    """Return the maximum number of open connections; a third as many may linger after their answer."""
    return (descriptors - min(RESERVED_DESCRIPTORS, descriptors // 2)) * 3 // 4


def stop_service(error: Exception) -> None:
    """End worker and server because the model can't be loaded, for which a restart would not help."""
    logger.critical("The model can't be loaded: %s", error, exc_info=error.__cause__)
    end_worker(Arbiter.APP_LOAD_ERROR)  # on this code gunicorn stops instead of starting another worker


def end_worker(code: int) -> None:
    """End the process at once, without waiting for its threads."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def url_host(host: str) -> str:
    """Return a host as in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def startup_message(settings: Settings) -> str:
    """Return a message with the address of the service and a command that counts the objects in a sample picture."""
    host = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    url = f"http://{url_host(host)}:{settings.port}"
    key = ' -H "X-API-Key: $FLORENCE_API_KEY"' if settings.api_key else ""
    return (
        f"\nflorence_tagger counts at {url}. Try it from another terminal:\n\n"
        """  printf '{"documents": [{"id": "street", "source": {"content": "%s"}}]}' """
        f'"$(base64 -w0 {shlex.quote(str(SAMPLE))})" |\n'
        f"    curl -s -H 'Content-Type: application/json'{key} -d @- {url}/process\n"
    )
