"""Detection of clients that have closed the connection of a request."""

import select
from collections.abc import Mapping
from typing import Any

# The end of what the client sends is seen even where a further request waits to be read before it. One that has only
# ended its own side and still reads can't be told from one that is gone.
ENDED = select.POLLRDHUP | select.POLLHUP | select.POLLERR


def is_gone(environ: Mapping[str, Any]) -> bool:
    """Return True if the client of a request has closed its connection, as far as the server's socket shows."""
    connection = environ.get("gunicorn.socket")
    if connection is None:
        return False
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return any(events & ENDED for _, events in poll.poll(0))
