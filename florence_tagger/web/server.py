"""gunicorn around the application: one worker, whose threads wait for the one model that is loaded in it."""

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
from florence_tagger.errors import STARTED_ANEW, NotReadyError
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
MAX_DESCRIPTORS = 16_384  # that are used, however many the system gives
OWN_DESCRIPTORS = 200  # for all that is no connection: decoders, files of the model, event queues
HUNG = 70  # exit code of a worker whose model hangs; gunicorn starts another one
ANSWERING_SECONDS = 2  # in which the requests of a model that hangs are answered


class Server(BaseApplication):  # type: ignore[misc]
    """Serves a model folder until it is told to stop."""

    def __init__(self, settings: Settings, folder: ModelManifest) -> None:
        self.settings = settings
        self.folder = folder
        self.decoders: DecoderPool | None = None
        self.scheduler: Scheduler | None = None
        self._about = ModelInfo(f"{folder.name} ({folder.sha256[:12]})")
        self._hung_since: float | None = None
        super().__init__()

    def load_config(self) -> None:
        """gunicorn's settings: one gthread worker, the model loaded in it and never before a fork."""
        options = {
            "bind": f"{in_url(self.settings.host)}:{self.settings.port}",
            "workers": 1,
            "worker_class": Worker,
            "threads": self.settings.http_threads,
            "worker_connections": connections_for(raise_descriptors()),
            "preload_app": False,
            "graceful_timeout": int(self.settings.stop_seconds),
            # No answer depends on the scheme or on who forwarded a request. By default gunicorn reads both from a proxy
            # on this machine and refuses what it finds contradictory.
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
        """The application, in the worker; its model loads in the background."""
        share_one_heap()
        self.decoders = start_decoder_pool(self.settings, self.folder.image_size)  # before there is a model
        measures = Metrics()
        self.scheduler = Scheduler(self.load_model, self.settings.queue_size, give_up, measures)
        return create_app(self.settings, self.decoders, self.scheduler, measures, lambda: self._about)

    def load_model(self) -> Model:
        """Loads the model and tells how to use it."""
        from florence_tagger.florence.model import load_model  # OpenVINO must not be loaded before the fork

        started = time.monotonic()
        florence2 = load_model(self.folder, self.settings)
        devices = ", ".join(f"{name} on {device}" for name, device in florence2.devices.items())
        seconds = time.monotonic() - started
        self._about = replace(self._about, device=devices)
        logger.info("%s is ready after %.1f s: %s", self._about.model, seconds, devices)
        print(invitation(self.settings), flush=True)
        return florence2

    def watch(self) -> None:
        """Ends the worker where the model has not come back for too long: nothing else frees what it is stuck in.

        Called about once a second, in no thread that waits for anything. Loading the model is not watched: the first
        time on a GPU it compiles for minutes.
        """
        if self._hung_since is not None:
            if time.monotonic() - self._hung_since > ANSWERING_SECONDS:
                end_worker(HUNG)
        elif self.scheduler is not None and self.scheduler.busy_seconds > self.settings.hang_seconds:
            logger.critical("The model has not answered for %.0f s; it is started anew.", self.scheduler.busy_seconds)
            self._hung_since = time.monotonic()
            self.scheduler.abort_all(NotReadyError(STARTED_ANEW))

    def close(self) -> None:
        """Ends the model's thread, what waits for it being answered as not treated, and the decoder processes."""
        if self.scheduler is not None:
            self.scheduler.close()
        if self.decoders is not None:
            self.decoders.close()


def share_one_heap() -> None:
    """Has all threads allocate from one heap, where the C library is glibc.

    By default each of the many threads keeps what it has freed for itself: after a hundred photos of 12 megapixels the
    service held 200 MB more than it does with one heap (`python -m benchmarks.table` measures it).
    """
    with suppress(OSError, AttributeError):  # another C library, without such a setting
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def raise_descriptors() -> int:
    """Takes as many descriptors as the system gives without asking, for this process and its children; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def connections_for(descriptors: int) -> int:
    """The most connections at a time; a third as many may linger after their answer."""
    return (descriptors - min(OWN_DESCRIPTORS, descriptors // 2)) * 3 // 4


def give_up(error: Exception) -> None:
    """Ends worker and server: without its model a service is no use, and a restart would not help."""
    logger.critical("The model can't be loaded: %s", error, exc_info=error.__cause__)
    end_worker(Arbiter.APP_LOAD_ERROR)  # gunicorn halts on this code instead of starting another worker


def end_worker(code: int) -> None:
    """Ends the process at once, whatever its threads are at."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def in_url(host: str) -> str:
    """A host as it stands before a port: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def invitation(settings: Settings) -> str:
    """Where the service is, and a command that counts what is in a sample picture."""
    host = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    url = f"http://{in_url(host)}:{settings.port}"
    key = ' -H "X-API-Key: $FLORENCE_API_KEY"' if settings.api_key else ""
    return (
        f"\nflorence_tagger counts at {url}. Try it from another terminal:\n\n"
        """  printf '{"documents": [{"id": "street", "source": {"content": "%s"}}]}' """
        f'"$(base64 -w0 {shlex.quote(str(SAMPLE))})" |\n'
        f"    curl -s -H 'Content-Type: application/json'{key} -d @- {url}/process\n"
    )
