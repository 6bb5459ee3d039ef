"""Passes as CUDA graphs, one per shape of pack.

A step on short texts is some thousands of kernels, and launching them takes longer than running them. A graph is one
launch. It computes at fixed addresses, so packs are copied into its inputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from lorabench.errors import first_line
from lorabench.machine.meters import is_out_of_memory
from lorabench.packed.internals import leave_failed_capture
from lorabench.packed.packs import Pack
from lorabench.packed.passes import PackedPasses

# Passes that are timed, and seconds from which one of them will do.
TIMED = 5
LONG_PASS_S = 0.1


class CaptureError(RuntimeError):
    """A pass does something that a graph cannot hold."""


class CompileError(RuntimeError):
    """A pass fails where it is compiled; on some machines there is no C compiler."""


@dataclass(frozen=True)
class _Captured:
    """A graph with its inputs and its output."""

    graph: torch.cuda.CUDAGraph
    inputs: Pack
    losses: torch.Tensor


def _shape(pack: Pack) -> tuple[int, int]:
    return pack.length, len(pack.labels)


class GraphedPasses:
    """Passes as CUDA graphs, one per shape of pack; all share one memory pool, since they never run at once."""

    def __init__(self, passes: PackedPasses) -> None:
        self._passes = passes
        self._graphs: dict[tuple[int, int], _Captured] = {}
        self._pool: Any = None
        # One for all captures: cuBLAS keeps a workspace for every stream that it has ever seen.
        self._stream = torch.cuda.Stream(passes.loss.device)
        self._makes_on_device = False

    def run(self, pack: Pack) -> torch.Tensor:
        """One pass. Returns the weighted losses of the pack's texts, [texts], which the next pass overwrites.

        Raises:
            CompileError: the first pass of this shape cannot be compiled; gradients and random numbers are as before.
            CaptureError: it cannot be captured; likewise.
        """
        self.capture(pack)
        captured = self._graphs[_shape(pack)]
        captured.inputs.copy_(pack.pinned())
        captured.graph.replay()
        return captured.losses

    def time(self, pack: Pack) -> float:
        """Seconds of a pass on the device, the least of a few; all that passes leave behind stays as it was.

        Raises:
            CompileError, CaptureError: see `run`.
        """
        with self._left_as_it_was():
            self.run(pack)
            seconds = self._run_timed(pack)
            if seconds < LONG_PASS_S:
                seconds = min(seconds, *(self._run_timed(pack) for _ in range(TIMED - 1)))
        return seconds

    def _run_timed(self, pack: Pack) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.run(pack)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def capture(self, pack: Pack) -> None:
        """Capture the pass of this shape, if it is not yet; raises what `run` does."""
        if _shape(pack) not in self._graphs:
            self._graphs[_shape(pack)] = self._capture(pack)

    def forget(self, pack: Pack) -> None:
        """Give up the graph for packs of this shape."""
        self._graphs.pop(_shape(pack), None)

    def release(self) -> None:
        """Give back the graphs' memory; they are captured anew when they are needed."""
        self._graphs.clear()
        self._pool = None
        torch.cuda.empty_cache()

    def _capture(self, pack: Pack) -> _Captured:
        """Some models make small tensors on the CPU in each pass, as MPNet its distances of positions.

        A graph cannot copy them to the device. Made there they need no copy, while numbers that other models turn into
        tensors would need one then: so this is a second way, kept once a first capture has asked for it.
        """
        try:
            return self._warm_up_and_capture(pack)
        except CaptureError:
            if self._makes_on_device:
                raise
            self._makes_on_device = True
            return self._warm_up_and_capture(pack)

    def _warm_up_and_capture(self, pack: Pack) -> _Captured:
        device = self._passes.loss.device
        inputs = pack.to(device)
        # When a graph is captured must not show in the numbers: a run that is resumed captures at other steps.
        with self._left_as_it_was(), device if self._makes_on_device else nullcontext():
            self._stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(self._stream):
                self._warm_up(inputs)
            torch.cuda.current_stream(device).wait_stream(self._stream)
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()  # what the warm-up took is in another pool than the graph's
            # A capture that fails leaves its own stream the current one.
            with torch.cuda.stream(torch.cuda.current_stream(device)):
                captured = self._capture_into_graph(inputs)
        self._pool = self._pool or captured.graph.pool()
        return captured

    def _capture_into_graph(self, inputs: Pack) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads of NCCL may look at events meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                losses = self._passes.run(inputs)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            leave_failed_capture()
            raise CaptureError(first_line(error)) from error
        return _Captured(graph, inputs, losses)

    def _warm_up(self, inputs: Pack) -> None:
        """One pass as it is, which compiles, and loads what may not be loaded while a graph is captured."""
        try:
            self._passes.run(inputs)
        except Exception as error:  # a compiler may fail in any way
            if not self._passes.compiled or is_out_of_memory(error):
                raise
            raise CompileError(first_line(error)) from error

    @contextmanager
    def _left_as_it_was(self) -> Iterator[None]:
        """Passes inside, also ones that fail, leave gradients, losses and dropout's random numbers as they were."""
        device = self._passes.loss.device
        random = torch.cuda.get_rng_state(device)
        kept = [(tensor, tensor.clone()) for tensor in self._passes.accumulators]
        try:
            yield
        finally:
            torch.cuda.set_rng_state(random, device)
            for tensor, value in kept:
                tensor.copy_(value)
