"""A notebook with a real kernel: cells run one by one, and the stop button works."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from launching import offline_environment, wait_for_lines
from limits import HANG_S
from nbclient import NotebookClient


class ThisPython(KernelSpecManager):
    """Whatever kernels are installed, and whatever they are called: the kernel is this very interpreter."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(argv=make_ipkernel_cmd(), display_name="Python", language="python")


class Notebook:
    """A notebook whose kernel runs. A cell that fails raises nbclient's `CellExecutionError`."""

    def __init__(self, client: NotebookClient) -> None:
        self._client = client

    def run(self, code: str) -> str:
        """A new cell. Returns what it printed, and what its last line is worth."""
        self._client.nb.cells.append(nbformat.v4.new_code_cell(code))
        cell = self._client.execute_cell(self._client.nb.cells[-1], len(self._client.nb.cells) - 1)
        return "".join(output.get("text") or output["data"].get("text/plain", "") for output in cell.outputs)

    def value(self, expression: str) -> Any:
        """What an expression is worth in the kernel, by way of JSON."""
        return json.loads(self.run(f"import json; print(json.dumps({expression}))"))

    @contextmanager
    def stopped_at(self, path: Path, lines: int) -> Iterator[None]:
        """Inside, the stop button is pressed once a file that grows has so many lines."""

        def stop() -> None:
            wait_for_lines(path, lines)
            asyncio.run(self._client.km.interrupt_kernel())  # SIGINT to the kernel's process group

        with ThreadPoolExecutor(1) as pool:
            pressed = pool.submit(stop)
            yield
            pressed.result()


@contextmanager
def open_notebook(folder: Path, **environment: str) -> Iterator[Notebook]:
    """A notebook with a fresh kernel that works in `folder`, without a network."""
    # A socket's path may have a hundred characters, which the folder of a test can need for itself.
    with tempfile.TemporaryDirectory(prefix="lorabench-") as short:
        manager = AsyncKernelManager(
            kernel_spec_manager=ThisPython(), transport="ipc", connection_file=f"{short}/kernel.json"
        )
        limits: dict[str, Any] = {"timeout": int(HANG_S), "startup_timeout": int(HANG_S), "iopub_timeout": int(HANG_S)}
        client = NotebookClient(nbformat.v4.new_notebook(), km=manager, **limits)
        variables = offline_environment(IPYTHONDIR=short, **environment)
        with client.setup_kernel(env=variables, cwd=str(folder), cleanup_kc=True):
            yield Notebook(client)
