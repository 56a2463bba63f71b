"""Memory on the GPU for outputs, lent again once nothing refers to it."""

from __future__ import annotations

import heapq
import sys
from collections import defaultdict

from engines.runtime.device.cuda import CudaStream
from specs.errors import PreflightError


class Block:
    """Device memory that goes back to its pool with the last reference."""

    __slots__ = ("_pool", "address", "size_bytes")

    def __init__(self, address: int, size_bytes: int, pool: BlockPool) -> None:
        self.address, self.size_bytes, self._pool = address, size_bytes, pool

    def __del__(self) -> None:
        self._pool.give_back(self.address, self.size_bytes)


class BlockPool:
    """Memory for outputs, lent again once it is given back, so that calls in a row allocate nothing.

    Sizes are rounded up to powers of two: as many heaps as there are magnitudes, whatever shapes come. The lowest
    address goes first, in whatever order they were given back: so a loop whose outputs are its next inputs alternates
    between two sets of places, and with them between two CUDA graphs.
    """

    def __init__(self, stream: CudaStream) -> None:
        self._stream = stream
        self._idle: defaultdict[int, list[int]] = defaultdict(list)
        self._closed = False

    def take(self, size_bytes: int) -> Block:
        """At least `size_bytes`, aligned to 256. Raises PreflightError when the GPU is full."""
        size = 1 << max(size_bytes - 1, 255).bit_length()
        idle = self._idle[size]
        if not idle:
            return Block(self._allocate(size), size, self)
        return Block(heapq.heappop(idle), size, self)

    def give_back(self, address: int, size_bytes: int) -> None:
        """Any thread may get here, in the middle of anything, since the last reference may go anywhere."""
        if not self._closed:
            heapq.heappush(self._idle[size_bytes], address)  # in C, on integers: nothing comes between
        elif not sys.is_finalizing():
            self._stream.make_current()
            self._stream.free(address)

    def close(self) -> None:
        """Free what nothing refers to, and the rest as soon as nothing does."""
        self._closed = True
        self.free_idle()

    def free_idle(self) -> None:
        for idle in list(self._idle.values()):
            while idle:
                self._stream.free(idle.pop())

    def _allocate(self, size_bytes: int) -> int:
        try:
            return self._stream.allocate(size_bytes)
        except PreflightError:
            self.free_idle()  # of other sizes
            return self._stream.allocate(size_bytes)
