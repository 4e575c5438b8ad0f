"""The executor a configuration asks for; Ray is imported only where it is asked for."""

from __future__ import annotations

from lipray.config import EstimateConfig
from lipray.run.executor import Executor
from lipray.run.serial import SerialExecutor


def start_executor(config: EstimateConfig) -> Executor:
    """Start what ``config`` asks for; the caller closes it.

    Raises:
        ClusterError: Ray cannot be started or reached.
        UsageError: the address cannot be understood.
    """
    if config.executor == "serial":
        return SerialExecutor(config.threads)
    from lipray.run.ray_cluster import connect

    threads = config.threads or 1
    cluster = connect(config.address, workers=config.workers, threads=threads)
    from lipray.run.ray_executor import RayExecutor  # only now: connecting prepares the import of Ray

    return RayExecutor(cluster, threads=threads)
