"""Recording work on a GPU as a CUDA graph: the same kernels on the same memory, launched together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """On a stream of its own, as what precedes a recording has to run."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Work that waits for the GPU, to read a number say, raises RuntimeError.

    To be tried before a recording: one that breaks off leaves older versions of torch in disorder.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """What is launched inside becomes the graph's and does not run. Raises RuntimeError where that cannot be."""
    with torch.cuda.device(device):
        before = torch.cuda.current_stream(device)
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"):
                yield
        except BaseException:
            torch.cuda.set_stream(before)
            raise
