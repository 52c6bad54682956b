"""Running the graphs of an exported folder with ONNX Runtime or OpenVINO."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError, CheckpointError, MissingPackageError
from ..types import Array
from .manifest import Manifest
from .telemetry import import_openvino

ONCE = ("image", "mask_image")
"""Graphs that run once for an image and need much memory, which they give back."""


class Sessions(ABC):
    """The graphs of an exported folder. Each is read when it is first used, or by ``prepare``.

    Args:
        folder: The folder.
        manifest: Its manifest.
        device: Name of the device; None for the CPU.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: str | None) -> None:
        self.folder, self.manifest = folder, manifest
        self.device = (device or "cpu").lower()
        self._made: dict[str, Future[Any]] = {}
        self._making = threading.Lock()
        self._running = threading.Lock()

    def prepare(self, graphs: Sequence[str]) -> None:
        """Read graphs in another thread, while this one goes on.

        Args:
            graphs: Their names, in the order in which they are needed; those that the folder does
                not have, and those that are read already, are left out.
        """
        new = []
        with self._making:
            for graph in graphs:
                if graph in self.manifest.graphs and graph not in self._made:
                    self._made[graph] = Future()
                    new.append((graph, self._made[graph]))
        if new:
            pool = ThreadPoolExecutor(1, "efficientsam3-graphs")
            for graph, future in new:
                pool.submit(self._make, graph, future)
            pool.shutdown(wait=False)

    def run(self, graph: str, **inputs: Array) -> dict[str, Array]:
        """Run a graph.

        Args:
            graph: Its name.
            **inputs: Inputs by name; those that the graph does not have are left out.

        Returns:
            The outputs by name.

        Raises:
            CheckpointError: The runtime cannot read the graph's file.
        """
        entry = self.manifest.graphs[graph]
        session = self._session(graph)
        feeds = {
            name: np.asarray(inputs[name], about["dtype"])
            for name, about in entry["inputs"].items()
        }
        with self._running:
            found = self._run(session, feeds)
            if graph in ONCE:
                self._release(session)
        return dict(zip(entry["outputs"], found, strict=True))

    def release(self, graph: str) -> None:
        """Give back the memory that a graph keeps for its next run; it is taken again then.

        Args:
            graph: Its name.
        """
        with self._making:
            future = self._made.get(graph)
        if future is not None and future.done() and future.exception() is None:
            with self._running:
                self._release(future.result())

    def replace(self, graph: str, path: Path) -> None:
        """Read a graph from another file.

        Args:
            graph: Its name.
            path: The file.

        Raises:
            CheckpointError: The runtime cannot read the file.
        """
        future: Future[Any] = Future()
        future.set_result(self._open(path))
        with self._making:
            self._made[graph] = future

    def close(self) -> None:
        """Release the graphs that were read, and their files."""
        with self._making:
            made, self._made = self._made, {}
        for future in made.values():
            future.exception()  # what is still being read is done then

    def _session(self, graph: str) -> Any:
        """The graph as the runtime runs it; read now unless it has been."""
        with self._making:
            future = self._made.get(graph)
            mine = future is None
            if future is None:
                future = self._made[graph] = Future()
        if mine:
            self._make(graph, future)
        return future.result()

    def _make(self, graph: str, future: Future[Any]) -> None:
        try:
            future.set_result(self._open(self.folder / self.manifest.graphs[graph]["file"]))
        except Exception as error:  # noqa: BLE001 - whoever waits for the graph gets it
            with self._making:  # the next call tries again
                if self._made.get(graph) is future:
                    del self._made[graph]
            future.set_exception(error)

    def _open(self, path: Path) -> Any:
        try:
            return self._read(path)
        except Exception as error:  # the errors of ONNX Runtime have no common base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise CheckpointError(
                f"{path} cannot be read by {self.manifest.backend} ({reason}); copy the folder "
                "again, or export the model again"
            ) from error

    @abstractmethod
    def _read(self, path: Path) -> Any: ...

    @abstractmethod
    def _run(self, session: Any, feeds: dict[str, Array]) -> list[Array]: ...

    def _release(self, session: Any) -> None:
        """Give back what a graph keeps between runs, where the runtime can."""
        return


def threads() -> int:
    """Threads that ``OMP_NUM_THREADS`` asks for, as it does in PyTorch; 0 if it is not set."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() else 0


class OnnxSessions(Sessions):
    """Graphs run by ONNX Runtime.

    Args:
        folder: The folder of an exported model.
        manifest: Its manifest.
        device: A device of ONNX Runtime, such as "cpu". None: the CPU.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        ArgumentError: ONNX Runtime does not know the device.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: str | None) -> None:
        super().__init__(folder, manifest, device)
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingPackageError(
                f"{folder} is run by ONNX Runtime, which is not installed: pip install onnxruntime"
            ) from error
        self._runtime = onnxruntime
        known = {p.removesuffix("ExecutionProvider").lower(): p for p in providers()}
        if self.device not in known:
            raise ArgumentError(
                f"device={device!r} is not known to this ONNX Runtime; it has {', '.join(known)}"
            )
        self._providers = list(dict.fromkeys([known[self.device], known["cpu"]]))

    def _read(self, path: Path) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads()
        return self._runtime.InferenceSession(str(path), options, providers=self._providers)

    def _run(self, session: Any, feeds: dict[str, Array]) -> list[Array]:
        return list(session.run(None, feeds))


def providers() -> list[str]:
    """The execution providers of the installed ONNX Runtime."""
    import onnxruntime

    return list(onnxruntime.get_available_providers())


HINTS = {"float32": "f32", "float16": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""The arithmetic of each precision. Half-precision files are for size: few processors compute in
float16."""


_core_lock = threading.Lock()
_cores: list[Any] = []


def _openvino_core(openvino: Any) -> Any:
    """The one ``Core`` of this process, which is never released.

    A core gives the thread that makes it another stack for signal handlers. Its end unmaps that
    stack. It restores the earlier stack only in the thread that ends it, and only if no later core
    has replaced it. Where a model ends in another thread, or two models end in the order in which
    they were loaded, the next signal (Ctrl-C, the end of a child process) ends the process with a
    segmentation fault.
    """
    with _core_lock:
        if not _cores:
            _cores.append(openvino.Core())
        return _cores[0]


class OpenVinoSessions(Sessions):
    """Graphs run by OpenVINO.

    Args:
        folder: The folder of an exported model.
        manifest: Its manifest.
        device: A device of OpenVINO, such as "cpu". None: the CPU.

    Raises:
        MissingPackageError: OpenVINO is not installed.
        ArgumentError: OpenVINO does not know the device.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: str | None) -> None:
        super().__init__(folder, manifest, device)
        try:
            openvino = import_openvino()
        except ImportError as error:
            raise MissingPackageError(
                f"{folder} is run by OpenVINO, which is not installed: pip install openvino"
            ) from error
        self._core = _openvino_core(openvino)
        known = [name.lower() for name in self._core.available_devices]
        if self.device not in known:
            raise ArgumentError(
                f"device={device!r} is not known to OpenVINO here; it has {', '.join(known)}"
            )
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[manifest.precision],
        }
        if self.device == "cpu" and threads():
            self._settings["INFERENCE_NUM_THREADS"] = threads()

    def _read(self, path: Path) -> Any:
        made = self._core.compile_model(str(path), self.device.upper(), self._settings)
        _return_freed_memory()
        return made

    def _run(self, session: Any, feeds: dict[str, Array]) -> list[Array]:
        found = session(feeds)
        return [found[index] for index in range(len(session.outputs))]

    def _release(self, session: Any) -> None:
        session.release_memory()
        _return_freed_memory()


def _return_freed_memory() -> None:
    """Give freed memory back to the system: the allocator of glibc keeps it after large graphs."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except AttributeError:  # another C library
            return


SESSIONS: dict[str, type[Sessions]] = {"onnx": OnnxSessions, "openvino": OpenVinoSessions}


def open_sessions(folder: Path, manifest: Manifest, device: str | None = None) -> Sessions:
    """Open the graphs of an exported folder.

    Args:
        folder: The folder.
        manifest: Its manifest.
        device: Name of the device; None for the CPU.

    Raises:
        MissingPackageError: The runtime is not installed.
        ArgumentError: The runtime does not know the device.
    """
    return SESSIONS[manifest.backend](folder, manifest, device)
