"""One module per resource; each declares its `ROUTES`, and `ROUTES` here is all of them."""

from typing import Final

from s3mgrd.api.resources import (
    actions,
    archived,
    cache,
    conflicts,
    events,
    mounts,
    observation,
    operations,
    queue,
    system,
)
from s3mgrd.api.routes import AnyRoute

ROUTES: Final[tuple[AnyRoute, ...]] = (
    *mounts.ROUTES,
    *actions.ROUTES,
    *observation.ROUTES,
    *conflicts.ROUTES,
    *queue.ROUTES,
    *archived.ROUTES,
    *cache.ROUTES,
    *operations.ROUTES,
    *events.ROUTES,
    *system.ROUTES,
)
