"""A question to a service, put again until it is answered.

A service drops an answer whose reader it has not discovered within 0.1 s (rmw_fastrtps), and to see the service says
nothing about that. So what changes nothing is asked more than once; a change never is.
"""

import time
from typing import Any


class Question:
    """One request that may be repeated. Nothing waits in here: whoever spins the client's node calls `poll`."""

    def __init__(self, client: Any, request: Any, again: float) -> None:
        """again: seconds without an answer after which the request is sent once more; infinite for a change."""
        self._client, self._request, self._again = client, request, again
        self._futures: list[Any] = []
        self._asked = 0.0  # time.monotonic() of the last request

    def poll(self) -> Any:
        """The first answer that came, to whichever of the requests; None so far. The first call asks."""
        for future in self._futures:
            if future.done():
                return future.result()
        if not self._futures or time.monotonic() > self._asked + self._again:
            self._futures.append(self._client.call_async(self._request))
            self._asked = time.monotonic()
        return None
