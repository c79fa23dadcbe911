"""What the routes of an application share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import BoundedSemaphore

from flask import Flask, current_app

from florence_tagger.config import Settings
from florence_tagger.pipeline import Pipeline
from florence_tagger.scheduler import Scheduler
from florence_tagger.web.body import ByteBudget
from florence_tagger.web.jobs import JobRegistry
from florence_tagger.web.metrics import Metrics

_NAME = "florence_tagger"


@dataclass(frozen=True)
class ModelInfo:
    """What treats the documents: the model's name with the start of its hash, and the device of each graph."""

    model: str = ""
    device: str = ""


@dataclass(frozen=True)
class Service:
    """The parts of a running service.

    Attributes:
        places: of requests to `/process`; fewer than threads, so that some are always left for the others.
        room: for the bytes of their bodies.
        metrics: what is counted.
        about: tells what treats the documents; the devices are known once the model is loaded.
    """

    settings: Settings
    scheduler: Scheduler
    pipeline: Pipeline
    places: BoundedSemaphore
    room: ByteBudget
    metrics: Metrics
    about: Callable[[], ModelInfo]
    jobs: JobRegistry = field(default_factory=JobRegistry)


def request_slots_for(threads: int) -> BoundedSemaphore:
    """All but a tenth of the threads, and all but two at least."""
    return BoundedSemaphore(threads - max(threads // 10, 2))


def install(app: Flask, service: Service) -> None:
    """Makes `service` what the routes of `app` find."""
    app.extensions[_NAME] = service


def current_service() -> Service:
    """The service of the application that treats the request at hand."""
    service: Service = current_app.extensions[_NAME]
    return service
