"""How a service starts, stops and fails."""

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.runtime import config as configuration
from services.runtime import log, telemetry
from services.runtime.config import Config, ConfigError
from services.runtime.identity import Identity, IdentityError
from services.runtime.reload import Reload

# Offsets to metrics.basePort.
METRICS_PORTS = {"discovery": 0, "tunnel": 1, "relay": 2, "proxy": 3}

# How often credentials are looked at: at least this often, and 12 times in the life of a certificate. Seconds.
# It costs two stat calls, and bounds how long a machine that slept past the end of its certificate stays mute.
REFRESH_PERIOD = 30.0

# A second signal so soon after the first is the same request: timeout(1) signals its child, and then its group. Seconds.
AGAIN = 0.5

# More descriptors than this only make programs slow that walk all of them.
_MAX_DESCRIPTORS = 1 << 20


@dataclass
class Service:
    """What a service is given. stopping: set by SIGTERM and SIGINT; its main then returns. reload: what it can apply
    of a changed configuration."""

    name: str
    config: Config
    identity: Identity
    log: logging.Logger
    stopping: asyncio.Event
    reload: Reload = field(init=False)

    def __post_init__(self) -> None:
        self.reload = Reload(self.name, self.config, self.log)
        for key in ("path", "acceptPaths", "certificateLifetimeSeconds"):
            self.reload.on(f"modules.edgeTunnel.psk.{key}", self.identity.reconfigure)

    @property
    def warnings(self) -> list[str]:
        """For GetStatus: what is not as it should be with the configuration or the node's key."""
        return [*self.reload.warnings, *self.identity.warnings]


Main = Callable[[Service], Awaitable[None]]


def command(name: str, main: Main, arguments: Sequence[str] | None = None) -> int:
    """`python -m services.NAME --config FILE`: loads the configuration and runs; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"causeway {name}", description=f"Run the {name} service in the foreground.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (default: embedded defaults)")
    options = parser.parse_args(arguments)
    try:
        config = configuration.load(options.config)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return run(name, config, main)


def run(name: str, config: Config, main: Main) -> int:
    """Runs `main` until it returns; gives the exit code: 0, or after one clear line on standard error 1, or 2 for a
    variable, a PSK or a certificate that is not good."""
    if not sys.warnoptions:
        # Libraries warn about what strangers send (a certificate with an odd serial number); we judge that.
        warnings.simplefilter("ignore")
    try:
        logger = log.set_up(name, config.node_name)
        raise_descriptor_limit()
        identity = Identity.load(config)
        telemetry.set_up(name, config.node_name)
    except (ValueError, OSError, IdentityError) as error:
        sys.stderr.write(f"causeway {name}: {error}\n")
        return 1 if isinstance(error, OSError) else 2
    for warning in config.warnings:
        # All services of the node read the same file; one of them says it.
        logger.log(logging.WARNING if name == "discovery" else logging.DEBUG, warning)
    try:
        if config.metrics.base_port:
            _serve_metrics(name, config)
        asyncio.run(_run(Service(name, config, identity, logger, asyncio.Event()), main))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        detail = logger.isEnabledFor(logging.DEBUG)
        logger.error("stopped by an error", extra={"error": describe(error)}, exc_info=error if detail else None)
        return 1
    finally:
        telemetry.shut_down()
    return 0


async def _run(service: Service, main: Main) -> None:
    loop = asyncio.get_running_loop()
    asked = 0.0

    def stop(received: signal.Signals) -> None:
        nonlocal asked
        if service.stopping.is_set():
            if loop.time() - asked >= AGAIN:
                os._exit(128 + received)  # asked twice: at once
            return
        asked = loop.time()
        service.log.info("stopping", extra={"reason": received.name})
        service.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    beside = [
        asyncio.create_task(_refresh(service.identity, service.log), name="refresh"),
        asyncio.create_task(service.reload.run(), name="reload"),
    ]
    try:
        await main(service)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


async def _refresh(identity: Identity, logger: logging.Logger) -> None:
    period = min(REFRESH_PERIOD, identity.lifetime / 12)
    while True:
        await asyncio.sleep(period)
        try:
            if identity.refresh():
                logger.info("credentials renewed")
        except Exception as error:
            # Whatever it was, the next attempt may succeed, and the old certificate lives on until then.
            logger.error("credentials not renewed", extra={"error": describe(error)})


def _serve_metrics(name: str, config: Config) -> None:
    from services.runtime import metricsport

    port = config.metrics.base_port + METRICS_PORTS[name]
    listen = config.metrics.listen_address
    try:
        metricsport.serve(listen, port)
    except OSError as error:
        raise OSError(
            f"metrics cannot be served on {listen or '*'} port {port}: {error.strerror}; set metrics.basePort"
        ) from None


def raise_descriptor_limit() -> None:
    """Lifts the soft limit of open files to the hard one: a node holds a descriptor for each stream."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def describe(error: BaseException) -> str:
    """An exception in one line; of a group, its first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())
    return text if text and isinstance(error, OSError) else f"{type(error).__name__}: {text}"
