"""A connection to a Ray cluster, or a small cluster on this machine, that reports to nobody."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING

from rxtone.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KNOCK_SECONDS = 10.0
ATTEMPTS = 5
"""Nodes or processes that one piece of work may lose before it counts as failed: it may be what kills them."""
WAIT_SECONDS = 5.0
"""Longest wait for a result before the cluster is looked at anew: nodes come and go."""
_RESOURCES = (("CPU", "num_cpus"), ("GPU", "num_gpus"))


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Be connected to a cluster.

    Args:
        address: A running cluster (`auto`, `ray://host:10001`, `host:6379`); None starts one on this machine, which
            ends with the block. A connection that is there already is used and kept.

    Yields:
        Nothing: Ray's connection belongs to the process.

    Raises:
        RecipeError: If Ray is not installed or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError:
        msg = "--engine ray: ray is not installed; install rxtone[cluster]"
        raise RecipeError(msg) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here reports to nobody
    # Ray's own order: what `auto` finds, the variable names; without it, whatever runs on this machine.
    named = (os.environ.get("RAY_ADDRESS") if address == "auto" else address) or ""
    here = not ray.is_initialized()
    if here:
        try:
            _knock(named)
            dashboard = False if address is None else None  # a cluster that stands has its own
            # "local": without an address Ray would join any cluster that it finds on this machine.
            ray.init(
                address=address or "local", include_dashboard=dashboard, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            found = f" (RAY_ADDRESS={named})" if address == "auto" and named else ""
            msg = f"--address {address}{found}: the cluster cannot be reached: {reason}"
            raise RecipeError(msg) from None
    try:
        yield
    finally:
        if here:
            ray.shutdown()


def slots(options: Mapping[str, float]) -> int:
    """Tasks that the cluster can hold now, nodes that came and went included.

    Args:
        options: What a task takes: `num_cpus`, `num_gpus`.

    Returns:
        At least 1: a task that finds no room is kept by Ray until a node comes.
    """
    import ray

    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = [int(there.get(name, 0.0) // options[option]) for name, option in _RESOURCES if options[option]]
    return max(1, min(fits, default=1))


def check_room(options: Mapping[str, float], address: str | None) -> None:
    """Say so where a task would wait for ever, or for a node that may come.

    Args:
        options: What a task takes: `num_cpus`, `num_gpus`.
        address: The cluster; None where it is this machine, which grows no node.

    Raises:
        RecipeError: If this machine is too small.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if any(all(there.get(name, 0.0) >= options[option] for name, option in _RESOURCES) for there in nodes):
        return
    asked = f"--cpus {options['num_cpus']:g} --gpus {options['num_gpus']:g}"
    if address is None:
        most = ", ".join(f"{nodes[0].get(name, 0.0):g} {name}s" for name, _ in _RESOURCES)
        msg = f"{asked}: this machine has {most}; ask for less, or name a cluster with --address"
        raise RecipeError(msg)
    logging.getLogger("rxtone.ray").warning("%s: no node of the cluster has so much; waiting for one", asked)


def _knock(address: str) -> None:
    """Fail at once where nobody listens: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
