"""What the frontends of a server tell each other, without a server: for tools and tests."""

import os

from albireo.shm import routes, segment
from albireo.shm.routes import Routes


def new_routes(num_replicas: int, num_frontends: int = 1) -> list[Routes]:
    """Of each frontend."""
    fd = segment.create("routes", routes.routes_bytes(num_replicas * num_frontends))
    routes.initialise(fd, num_replicas * num_frontends)
    views = [Routes(fd, num_replicas, index) for index in range(num_frontends)]
    os.close(fd)
    return views
