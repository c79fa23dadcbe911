"""State that the routes of an application share."""

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
    """The model's name with the start of its hash, and the device of each graph."""

    model: str = ""
    device: str = ""


@dataclass(frozen=True)
class Service:
    """The parts of a running service.

    Attributes:
        settings: of the service.
        scheduler: runs the model.
        pipeline: processes the documents of a request.
        request_slots: permits for requests to `/process`; fewer than threads, so that other routes always have some.
        byte_budget: for the bodies of requests.
        metrics: of the service.
        model_info: returns the model and its devices, which are known once the model is loaded.
        jobs: of the service, running and ended.
    """

    settings: Settings
    scheduler: Scheduler
    pipeline: Pipeline
    request_slots: BoundedSemaphore
    byte_budget: ByteBudget
    metrics: Metrics
    model_info: Callable[[], ModelInfo]
    jobs: JobRegistry = field(default_factory=JobRegistry)


def request_slots_for(threads: int) -> BoundedSemaphore:
    """Return permits for all threads except a tenth, and except two at least."""
    return BoundedSemaphore(threads - max(threads // 10, 2))


def install(app: Flask, service: Service) -> None:
    """Make `service` available to the routes of `app`."""
    app.extensions[_NAME] = service


def current_service() -> Service:
    """Return the service of the application that handles the current request."""
    service: Service = current_app.extensions[_NAME]
    return service
