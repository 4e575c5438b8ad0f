"""The executor a configuration asks for; Ray is imported only where it is asked for."""

from __future__ import annotations

from lipray.config import EstimateConfig
from lipray.errors import UsageError
from lipray.run.executor import Executor
from lipray.run.serial import SerialExecutor
from lipray.run.stop import Stopped, whole


def start_executor(config: EstimateConfig) -> Executor:
    """Start what ``config`` asks for; the caller closes it.

    Raises:
        ClusterError: Ray cannot be started or reached.
        UsageError: the address cannot be understood, or a GPU is asked for where there is none.
    """
    gpus = count_gpus() if config.device == "cuda" and config.address is None else 0
    if config.executor == "serial":
        return SerialExecutor(config.threads)
    from lipray.run.ray.cluster import connect

    threads = config.threads or 1
    cluster = None
    try:
        with whole():
            cluster = connect(config.address, workers=config.workers, threads=threads, gpus=gpus)
    except Stopped:
        if cluster is not None:
            cluster.close()
        raise
    from lipray.run.ray.executor import RayExecutor  # only now: connecting prepares the import of Ray

    return RayExecutor(cluster, threads=threads, elastic=config.elastic, stuck_after=config.stuck_after)


def count_gpus() -> int:
    """How many CUDA devices this process may use.

    Raises:
        UsageError: none.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        built = "finds no CUDA device here" if torch.version.cuda else "was built without CUDA"
        raise UsageError(
            "--device",
            f"cuda was asked for, and PyTorch {torch.__version__} {built}",
            hint="Leave the option out to work on the CPU, or run where PyTorch sees a GPU.",
        )
    return count
