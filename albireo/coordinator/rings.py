"""The coordinator's ends of the rings, where workers may have been at work for long."""

from albireo.config import CoordinatorConfig
from albireo.shm.plan_ring import PlanRing, PlanWriter
from albireo.shm.token_ring import TokenReader, TokenRing


class EngineRings:
    """One plan ring, and a token ring of each rank."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self.plans: PlanWriter = PlanRing(config.scheduler, config.num_workers).writer(config.segments.plan_ring)
        self.tokens: list[TokenReader] = [TokenRing(config.scheduler).reader(fd) for fd in config.segments.token_rings]

    def take_over(self) -> bool:
        """False while the workers still run steps that another coordinator has planned. Then nothing of them is left:
        their results are for requests that nobody knows."""
        if not self.plans.is_consumed:
            return False
        for ring in self.tokens:
            ring.skip()
        return True
