"""What a request carries through all stages: its deadline, whether it is canceled, and who observes it."""

import math
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import TypeVar

from florence_tagger.errors import ClientDisconnectedError, DocumentError
from florence_tagger.schemas import DocumentResult

T = TypeVar("T")
Outcome = DocumentResult | DocumentError

POLL_SECONDS = 0.25  # how often a waiting thread checks whether its request is canceled


class RequestObserver:
    """Callbacks about the progress of a request, from any thread; these do nothing."""

    def on_start(self) -> None:
        """Note that the model begins with a frame."""

    def on_frame_done(self) -> None:
        """Note that a frame was processed, failed or was canceled."""

    def on_document_done(self, outcome: Outcome) -> None:
        """Note what became of a document; called in the order of the documents."""


@dataclass(frozen=True)
class RequestContext:
    """Deadline, cancellation and observer of a request, for any of its threads.

    Attributes:
        deadline: monotonic time, in seconds, at which the request is answered with what is done.
        is_canceled: returns whether the client has left.
        observer: of the request's progress.
    """

    deadline: float = math.inf
    is_canceled: Callable[[], bool] = lambda: False
    observer: RequestObserver = field(default_factory=RequestObserver)

    @classmethod
    def within(cls, seconds: float) -> "RequestContext":
        """Return the context of a request that may take `seconds` from now on and can't be canceled."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Return the seconds until the deadline, 0 after it."""
        return max(self.deadline - time.monotonic(), 0.0)

    def check(self) -> None:
        """Raise ClientDisconnectedError if the request is canceled, TimeoutError if its deadline has passed."""
        self.poll(lambda seconds: seconds > 0 or None)

    def poll(self, attempt: Callable[[float], T | None]) -> T:
        """Return the first result of `attempt` that is not None; it is called with how many seconds it may wait.

        Raises:
            ClientDisconnectedError: the request is canceled.
            TimeoutError: the deadline has passed.
        """
        while True:
            if self.is_canceled():
                raise ClientDisconnectedError("The client is gone.")
            seconds = self.remaining()
            result = attempt(min(seconds, POLL_SECONDS))
            if result is not None:
                return result
            if seconds == 0:
                raise TimeoutError

    def wait(self, future: Future[T]) -> T:
        """Return the result of a future, or raise what it raises; otherwise errors as of `poll`."""
        return self.poll(lambda seconds: future if is_done_within(future, seconds) else None).result()


def is_done_within(future: Future[T], seconds: float) -> bool:
    """Return whether a future is done or canceled within `seconds`."""
    try:
        future.exception(seconds)
    except CancelledError:
        return True
    except TimeoutError:
        return future.done()
    return True
