"""Record work on a GPU as a CUDA graph: the same kernels on the same memory, launched together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run the block on a separate stream, as CUDA requires for the warm-up before a recording."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@contextmanager
def forbid_synchronisation() -> Iterator[None]:
    """Raise RuntimeError when code in the block waits for the GPU, for instance to read a number.

    Such code cannot be recorded. Run it in this block before recording it: a recording that fails leaves older
    versions of torch in an invalid state.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def capture(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """Record the kernels that the block launches into `graph`, without running them.

    Raises:
        RuntimeError: The block does something that cannot be recorded.
    """
    with torch.cuda.device(device):
        before = torch.cuda.current_stream(device)
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"):
                yield
        except BaseException:
            torch.cuda.set_stream(before)
            raise
