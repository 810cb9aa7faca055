"""The composition root: builds a node and its API, owns the root nursery, and ends both on a signal."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial

import trio
from structlog.typing import FilteringBoundLogger

from finode.api import build_app, serve_api
from finode.config import Config, Trust
from finode.daemon.home import lock_home, node_secret, remove_api_address, write_api_address
from finode.daemon.logs import configure
from finode.errors import FinodeError
from finode.identity import Identity
from finode.node.node import Node, open_node
from finode.node.secret import NodeSecret
from finode.wire.message import MIB


def run(config: Config) -> int:
    """Run the daemon in the foreground until SIGINT or SIGTERM; return its exit status.

    Raises a `FinodeError` when it cannot start: a home in use, no identity, an address that is taken.
    """
    log = configure(config.log.level, config.log.format)
    with lock_home(config.home):
        identity = Identity.load(config.identity_path)
        secret = NodeSecret(node_secret(config.home))
        try:
            trio.run(_main, config, identity, secret, log, strict_exception_groups=True)
        except BaseExceptionGroup as group:
            ours = _only_ours(group)
            if ours is None:
                raise
            raise ours from None
    return 0


def _only_ours(group: BaseExceptionGroup[BaseException]) -> FinodeError | None:
    """Return the one `FinodeError` that a group stands for, None if it holds a bug."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, FinodeError) else None


async def _main(config: Config, identity: Identity, secret: NodeSecret, log: FilteringBoundLogger) -> None:
    if config.federation.trust is Trust.OPEN:
        log.warning("trust is OPEN: any peer may join, and organization names prove nothing")
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with open_node(config, identity, secret, log) as node, trio.open_nursery() as nursery:
            app = build_app(node, token=config.api.token, max_body_bytes=config.api.max_body_mb * MIB, log=log)
            bound = await nursery.start(partial(serve_api, app, config.api.bind, log=log))
            with ExitStack() as cleanup:
                write_api_address(config.home, bound)
                cleanup.callback(remove_api_address, config.home)
                log.info(
                    "ready",
                    peer=identity.peer_id,
                    organization=node.status().organization,
                    roles=[role.value for role in config.node.roles],
                    addresses=node.status().addresses,
                    api=bound,
                )
                await _until_stopped(signals, node, nursery, log)
            nursery.cancel_scope.cancel()
    log.info("stopped")


async def _until_stopped(
    signals: AsyncIterator[int], node: Node, nursery: trio.Nursery, log: FilteringBoundLogger
) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            nursery.start_soon(_reload, node, log)
            continue
        log.info("stopping", signal=signal.Signals(number).name)
        return


async def _reload(node: Node, log: FilteringBoundLogger) -> None:
    try:
        await node.reload()
    except FinodeError as error:
        log.error("reload failed; the old roster and models stay", error=str(error))
