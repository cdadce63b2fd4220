"""Which replica gets a request. Loaded by Ray's proxies, by name."""

import random
import time
from collections import Counter
from typing import Any, Final

from ray.serve.request_router import FIFOMixin, RequestRouter

CHOICE_TTL_S: Final = 1.0
"""A choice whose request has not been sent by then is one that Ray has made nothing of."""


class ShortQueueRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray's types are not here
    """The replica with the shortest queue, wherever it is. One in each proxy; its event loop calls all methods.

    Ray's own router takes those on the proxy's node, and others only when these take no more. An engine takes
    thousands, so the others would idle: of 16 streams at once one of two replicas got 13.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        self._own: Counter[Any] = Counter()
        """This proxy's requests at each replica: what a replica said of its queue is older than the last of them."""
        self._chosen: list[tuple[float, Any]] = []
        """When, and which, of requests that are about to be sent: Ray asks for several before it sends the first."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Ray tries them in this order.

        It would ask those of which it has heard nothing for 10 s, and take the next one where 0.1 s bring no answer; on
        a busy node all 16 streams went to one. Every answer to a request says how long the queue is, so none is asked.
        """
        for replica in candidate_replicas:
            if self.replica_queue_len_cache.get(replica.replica_id) is None:
                self.on_new_queue_len_info(replica.replica_id, self._own[replica.replica_id])
        now_s = time.monotonic()
        self._chosen = [each for each in self._chosen if now_s - each[0] < CHOICE_TTL_S]
        about = Counter(replica_id for _, replica_id in self._chosen)
        shuffled = random.sample(candidate_replicas, len(candidate_replicas))
        ranked = sorted(shuffled, key=lambda each: self._queue_length(each.replica_id) + about[each.replica_id])
        self._chosen += [(now_s, each.replica_id) for each in ranked[:1]]
        return [[replica] for replica in ranked]

    def _queue_length(self, replica_id: Any) -> int:
        return max(self.replica_queue_len_cache.get(replica_id) or 0, self._own[replica_id])

    def on_send_request(self, replica_id: Any) -> None:
        super().on_send_request(replica_id)
        self._own[replica_id] += 1
        at = next((index for index, each in enumerate(self._chosen) if each[1] == replica_id), None)
        if at is not None:
            del self._chosen[at]

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        super().on_request_completed(replica_id, internal_request_id)
        self._own[replica_id] = max(0, self._own[replica_id] - 1)
