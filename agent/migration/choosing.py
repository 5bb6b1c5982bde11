"""Which way a container's memory goes: at the beginning of its move, and when a restarted agent takes it up again."""

from collections.abc import Callable

from agent.migration.run import Run
from agent.strategy import Strategy
from agent.strategy.cold import Cold
from agent.strategy.postcopy import PostCopy
from protocol.commands import Migrate

strategies: dict[str, Callable[[], Strategy]] = {Cold.name: Cold, PostCopy.name: PostCopy}


def strategy_for(request: Migrate) -> str:
    """Which strategy a request gets; `auto` is the one that risks nothing."""
    return request.strategy if request.strategy in strategies else Cold.name


def strategy_of(run: Run) -> Strategy:
    """The strategy of a migration that is taken up again."""
    return strategies[run.record.get("strategy", Cold.name)]()
