"""Where plans are evaluated and where accuracies are kept. Nothing here changes an accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..common.command import check_writable, require_packages
from ..common.device import check_device, processors
from ..common.settings import Count, Settings
from .pool import Backend

SQLITE = b"SQLite format 3\0"
"""The first bytes of a cache file."""
BackendName = Literal["local", "processes", "ray"]


@dataclass(frozen=True)
class Resources(Settings):
    """The hardware, processes and cache file that an evaluator uses.

    Raises:
        ValueError: A field has a value that is not allowed, or the device is not available.
        OSError: The cache cannot be written.
        ImportError: The backend is ray and Ray is not installed.
    """

    device: str = "cpu"
    """Device of all networks, by torch's name: cpu, cuda, cuda:1."""
    backend: BackendName = "local"
    """Where plans are evaluated: in this process, in worker processes on this machine, or in Ray actors (on the
    cluster that RAY_ADDRESS names). Workers pay off when several episodes are played at once."""
    workers: Count | None = None
    """Number of worker processes or actors; None for one per processor."""
    cache: Path | None = None
    """SQLite file that keeps accuracies for later runs and other processes on the same problem. Not allowed with a
    custom metric, nor with a custom loss when `finetune_batches` is set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None and self.backend == "local":
            raise ValueError(f'workers={self.workers} needs backend="processes" or backend="ray"')
        if self.backend == "ray":
            require_packages(["ray"], 'backend="ray"', "ray")
        check_device(self.device)
        if self.cache is not None:
            check_writable("cache", self.cache)
            if self.cache.is_file():
                with self.cache.open("rb") as file:
                    if file.read(len(SQLITE)) not in (b"", SQLITE):
                        raise ValueError(f"cache {self.cache} is another file, not a cache; give another name")

    def make_backend(self) -> Backend | None:
        """Return the backend of worker processes or actors, or None for this process.

        Raises:
            WorkerError: The backend is ray, and the cluster cannot be reached or has no room.
        """
        if self.backend == "processes":
            from .process_workers import Processes

            return Processes(self.workers or processors())
        if self.backend == "ray":
            from .ray_workers import RayActors

            return RayActors(self.workers, gpu=str(self.device).startswith("cuda"))
        return None
