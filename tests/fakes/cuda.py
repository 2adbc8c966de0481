"""A CUDA runtime without a GPU: it executes, and it enforces the rules that a real one punishes with garbage.

Memory is real memory, so that copies and kernels really happen. Work runs only when somebody waits for it, and then as
unfavourably as the rules allow: the stream that is waited for first, others only when an event asks for them. Clocks
tell which work is ordered before which, so that a race is found even where the result happens to be right.
"""

import ctypes
from collections import defaultdict
from enum import IntEnum
from types import SimpleNamespace

import numpy as np

NO_DRIVER, OUT_OF_MEMORY, UNSUPPORTED, UNJOINED = 35, 2, 900, 904


class RuleBroken(AssertionError):
    """What would be undefined behaviour on a GPU."""


class Error(int):
    """An error code that knows whether anybody looked at it."""

    read = False

    def __int__(self):
        self.read = True
        return int.__int__(self)

    @property
    def name(self):
        return f"cudaErrorFake{int(self)}"


class Answer:
    """A True or False that knows whether anybody looked at it."""

    def __init__(self, value):
        self.value, self.read = value, False

    def __bool__(self):
        self.read = True
        return bool(self.value)


class MemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class CaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class Operation:
    """A piece of work: what it does, what it reads, writes and uses exclusively, and where it stands."""

    def __init__(self, name, run, *, reads=(), writes=()):
        self.name, self.run, self.reads, self.writes = name, run, tuple(reads), tuple(writes)


class Stream:
    def __init__(self, handle):
        self.handle = handle
        self.queue = []
        self.clock = defaultdict(int)


class Capture:
    def __init__(self, origin, mode):
        self.origin, self.mode = origin, mode
        self.queues = {origin.handle: []}
        self.clocks = {origin.handle: defaultdict(int)}
        self.recorded = {}
        self.last_use = {}
        self.broken = None


class FakeCuda:
    """Stands in for ``cuda.bindings.runtime``. ``fail`` maps function names to (call number, error code)."""

    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaMemcpyKind = MemcpyKind
    cudaStreamCaptureMode = CaptureMode

    def __init__(self, *, fail=None, devices=1, misalign=False):
        self.fail, self.devices, self.misalign = dict(fail or {}), devices, misalign
        self.calls = []
        self.counts = defaultdict(int)
        self.device, self.host = {}, {}
        self.streams, self.events, self.graphs, self.executables = {}, {}, {}, {}
        self.capture = None
        self.next = 100
        self.last_use = {}
        self.freed = set()
        self.unread = None  # the last call, while its answer may still be read

    # -- bookkeeping ---------------------------------------------------------------------------------------------
    @staticmethod
    def cudaError_t(code):
        return Error(code)

    def __getattribute__(self, name):
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or name in ("cudaError_t",) or isinstance(value, type):
            return value

        def called(*arguments):
            self.check_read()
            self.calls.append(name)
            self.counts[name] += 1
            when, code = self.fail.get(name, (0, 0))
            if when == self.counts[name]:
                result = (Error(code), *([None] * (name in VALUES)))
            else:
                result = value(*arguments)
                if not isinstance(result, tuple):
                    result = (Error(0), result) if name in VALUES else (Error(0),)
            self.answered(name, result[0])
            return result

        return called

    def handle(self):
        self.next += 1
        return self.next

    def answered(self, name, answer):
        """Remember what somebody must look at before the next call; on the way out errors have no reader."""
        if name not in RELEASES:
            self.unread = (name, answer)
        return answer

    def check_read(self):
        """Raise RuleBroken where the answer to the last call was dropped."""
        last, self.unread = self.unread, None
        if last is not None and not last[1].read:
            raise RuleBroken(f"nobody read what {last[0]} answered")

    def live(self):
        """Everything that is not released yet."""
        self.check_read()
        kinds = (self.device, self.host, self.streams, self.events, self.graphs, self.executables)
        return sum(map(len, kinds))

    def refuse_in_capture(self, what):
        if self.capture is not None:
            self.capture.broken = what
            return (Error(UNSUPPORTED), None) if what in VALUES else (Error(UNSUPPORTED),)
        return None

    # -- device --------------------------------------------------------------------------------------------------
    def cudaGetDeviceCount(self):
        return (Error(0), self.devices) if self.devices is not None else (Error(NO_DRIVER), None)

    def cudaGetDeviceProperties(self, device):
        return SimpleNamespace(name=b"Imaginary 9000", major=8, minor=9)

    def cudaDriverGetVersion(self):
        return 13000

    def cudaRuntimeGetVersion(self):
        return 13050

    # -- memory --------------------------------------------------------------------------------------------------
    def allocate(self, size, table):
        raw = np.full(size + 512, 0xA5, np.uint8)  # never zero, as on a device
        address = -(-raw.ctypes.data // 256) * 256 + (64 if self.misalign else 0)
        table[address] = (raw, size)
        for place in [place for place in self.last_use if address <= place < address + size]:
            del self.last_use[place]  # what was done with freed memory that lay here
        return address

    def cudaMalloc(self, size):
        return self.refuse_in_capture("cudaMalloc") or self.allocate(size, self.device)

    def cudaMallocHost(self, size):
        return self.refuse_in_capture("cudaMallocHost") or self.allocate(size, self.host)

    def cudaFree(self, address):
        raw, _ = self.device.pop(address)
        raw[:] = 0xEE
        self.freed.add(address)

    def cudaFreeHost(self, address):
        self.freed.add(address)
        self.host.pop(address)

    def check_address(self, address, size, *, device):
        for start, (_, length) in self.device.items():
            if start <= address and address + size <= start + length:
                if not device:
                    raise RuleBroken(f"device address {address} where a host address is needed")
                return start
        if device:
            raise RuleBroken(f"address {address} is no live device memory")
        for start, (_, length) in self.host.items():
            if start <= address and address + size <= start + length:
                return start
        return None

    def cudaMemcpyAsync(self, target, source, count, kind, stream):
        up = kind == MemcpyKind.cudaMemcpyHostToDevice
        device, host = (target, source) if up else (source, target)
        pinned = self.check_address(host, count, device=False)
        if pinned is None and self.capture is not None:
            raise RuleBroken("a copy in a graph from memory that is not page-locked")
        self.check_address(device, count, device=True)

        def run():
            self.check_address(device, count, device=True)
            ctypes.memmove(target, source, count)

        # Pageable memory is read before the call returns, and what has its address later is something else.
        places = [place for place in (source, target) if place != host or pinned is not None]
        reads, writes = [p for p in places if p == source], [p for p in places if p == target]
        self.enqueue(stream, Operation("copy", run, reads=reads, writes=writes))

    # -- streams and events --------------------------------------------------------------------------------------
    def cudaStreamCreateWithFlags(self, flags):
        if flags != self.cudaStreamNonBlocking:
            raise RuleBroken("a stream that waits for the default stream")
        handle = self.handle()
        self.streams[handle] = Stream(handle)
        return handle

    def cudaStreamDestroy(self, stream):
        del self.streams[int(stream)]

    def cudaEventCreateWithFlags(self, flags):
        handle = self.handle()
        self.events[handle] = None
        return handle

    def cudaEventDestroy(self, event):
        del self.events[event]

    def cudaEventRecord(self, event, stream):
        stream = self.known(stream)
        if self.capture is not None and stream.handle in self.capture.queues:
            queue, clock = self.capture.queues[stream.handle], self.capture.clocks[stream.handle]
            queue.append(("record", event))
            self.capture.recorded[event] = (stream.handle, len(queue), dict(clock))
            return
        stream.queue.append(("record", event))
        self.events[event] = (stream.handle, dict(stream.clock))

    def cudaStreamWaitEvent(self, stream, event, flags):
        stream = self.known(stream)
        capture = self.capture
        if capture is not None and event in capture.recorded:
            if stream.handle not in capture.queues:  # it joins the capture here
                capture.queues[stream.handle] = []
                capture.clocks[stream.handle] = defaultdict(int)
            capture.queues[stream.handle].append(("wait", event))
            merge(capture.clocks[stream.handle], capture.recorded[event][2])
            return
        if self.events.get(event) is None:
            return  # an event that was never recorded is complete
        stream.queue.append(("wait", event))
        merge(stream.clock, self.events[event][1])

    def known(self, stream):
        if not stream:
            raise RuleBroken("the default stream")
        return self.streams[int(stream)]

    def enqueue(self, stream, operation):
        stream = self.known(stream)
        capture = self.capture
        if capture is not None and stream.handle not in capture.queues:
            raise RuleBroken(f"{operation.name} on a stream that was not forked into the capture")
        if capture is not None:
            queue, clock, uses = capture.queues[stream.handle], capture.clocks[stream.handle], capture.last_use
        else:
            queue, clock, uses = stream.queue, stream.clock, self.last_use
        clock[stream.handle] += 1
        for place in (*operation.reads, *operation.writes):
            before = uses.get(place, [])
            for handle, count, wrote in before:
                if (wrote or place in operation.writes) and clock[handle] < count:
                    raise RuleBroken(f"{operation.name} is not ordered after other work on the same memory")
        for place in operation.writes:
            uses[place] = [(stream.handle, clock[stream.handle], True)]
        for place in operation.reads:
            uses.setdefault(place, []).append((stream.handle, clock[stream.handle], False))
        queue.append(("run", operation))

    def cudaStreamSynchronize(self, stream):
        refused = self.refuse_in_capture("cudaStreamSynchronize")
        if refused:
            return refused
        drain({handle: one.queue for handle, one in self.streams.items()}, self.known(stream).handle)
        for one in self.streams.values():  # whoever synchronised knows of everything that has run
            if not one.queue:
                for other in self.streams.values():
                    other.clock[one.handle] = max(other.clock[one.handle], one.clock[one.handle])
        return (Error(0),)

    # -- graphs --------------------------------------------------------------------------------------------------
    def cudaStreamBeginCapture(self, stream, mode):
        stream = self.known(stream)
        if stream.queue:
            raise RuleBroken("capture begins while the stream still has work")
        self.capture = Capture(stream, mode)

    def cudaStreamEndCapture(self, stream):
        capture, self.capture = self.capture, None
        if capture.broken:
            return (Error(901), None)
        if self.known(stream) is not capture.origin:
            return (Error(908), None)
        seen = capture.clocks[capture.origin.handle]
        for handle, clock in capture.clocks.items():
            if seen[handle] < clock[handle]:
                return (Error(UNJOINED), None)
        handle = self.handle()
        self.graphs[handle] = capture
        return handle

    def cudaGraphInstantiate(self, graph, flags):
        handle = self.handle()
        self.executables[handle] = self.graphs[graph]
        return handle

    def cudaGraphUpload(self, executable, stream):
        self.known(stream)
        assert executable in self.executables

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]

    def cudaGraphExecDestroy(self, executable):
        del self.executables[executable]

    def cudaGraphLaunch(self, executable, stream):
        capture = self.executables[executable]

        def run():
            drain({handle: list(queue) for handle, queue in capture.queues.items()}, capture.origin.handle)

        self.known(stream).queue.append(("run", Operation("graph", run)))


RELEASES = {
    "cudaFree",
    "cudaFreeHost",
    "cudaStreamDestroy",
    "cudaEventDestroy",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
}
VALUES = {
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaDriverGetVersion",
    "cudaRuntimeGetVersion",
    "cudaMalloc",
    "cudaMallocHost",
    "cudaStreamCreateWithFlags",
    "cudaEventCreateWithFlags",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
}


def merge(clock, other):
    for handle, count in other.items():
        clock[handle] = max(clock[handle], count)


def drain(queues, first):
    """Empty the queue of ``first``; others advance only where an event of theirs is waited for."""
    done = set()
    pending = {event for queue in queues.values() for kind, event in queue if kind == "record"}

    def advance(handle, until=None):
        queue = queues[handle]
        while queue:
            kind, what = queue[0]
            if kind == "wait" and what in pending and what not in done:
                owner = next(h for h, q in queues.items() if ("record", what) in q)
                if owner == handle:
                    raise RuleBroken("a stream waits for itself")
                advance(owner, what)
            queue.pop(0)
            if kind == "record":
                done.add(what)
                if what == until:
                    return
            elif kind == "run":
                what.run()

    advance(first)
