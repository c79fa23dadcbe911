"""gunicorn around the application: one worker, whose threads wait for the one model that is loaded in it."""

import logging
import os
import sys
import time
from pathlib import Path

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from florence_tagger.batching import Batcher, Model
from florence_tagger.config import Settings
from florence_tagger.florence.folder import ModelFolder
from florence_tagger.web.app import create_app

logger = logging.getLogger(__name__)

SAMPLE = Path(__file__).parent / "samples" / "street.png"
GRACEFUL_SECONDS = 30


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """Serves a model folder until it is told to stop."""

    def __init__(self, settings: Settings, folder: ModelFolder) -> None:
        self.settings = settings
        self.folder = folder
        self.batcher: Batcher | None = None
        super().__init__()

    def load_config(self) -> None:
        """gunicorn's settings: one gthread worker, the model loaded in it and never before a fork."""
        options = {
            "bind": f"{self.settings.host}:{self.settings.port}",
            "workers": 1,
            "worker_class": "gthread",
            "threads": self.settings.http_threads,
            "preload_app": False,
            "graceful_timeout": GRACEFUL_SECONDS,
            "worker_exit": lambda server, worker: self.close(),
            "loglevel": "warning",
            "proc_name": "florence_tagger",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """The application, in the worker; its model loads in the background."""
        self.batcher = Batcher(self.load_model, self.settings.queue_size, give_up)
        return create_app(self.settings, self.batcher, self.folder.image_size)

    def load_model(self) -> Model:
        """Loads the model and tells how to use it."""
        from florence_tagger.florence.detector import load_detector  # OpenVINO must not be loaded before the fork

        started = time.monotonic()
        detector = load_detector(self.folder, self.settings)
        devices = ", ".join(f"{name} on {device}" for name, device in detector.devices.items())
        logger.info(
            "%s (%s) is ready after %.1f s: %s",
            self.folder.name,
            self.folder.sha256[:12],
            time.monotonic() - started,
            devices,
        )
        print(invitation(self.settings.port), flush=True)
        return detector

    def close(self) -> None:
        if self.batcher is not None:
            self.batcher.close()


def give_up(error: Exception) -> None:
    """Ends worker and server: without its model a service is no use, and a restart would not help."""
    logger.critical("The model can't be loaded: %s", error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(Arbiter.APP_LOAD_ERROR)  # from a thread; gunicorn halts on this code instead of starting another worker


def invitation(port: int) -> str:
    """Where the service is, and a command that counts what is in a sample picture."""
    url = f"http://localhost:{port}"
    return (
        f"\nflorence_tagger counts at {url}. Try it from another terminal:\n\n"
        """  printf '{"documents": [{"id": "street", "source": {"content": "%s"}}]}' """
        f'"$(base64 -w0 {SAMPLE})" |\n'
        f"    curl -s -H 'Content-Type: application/json' -d @- {url}/process\n"
    )
