"""DeepSpeed on the CPU, without the kernel that it would compile first, for a minute: only inference calls it."""

import importlib


def leave_out() -> None:
    """In this process, and in those that are forked from it."""
    backend = importlib.import_module("deepspeed.comm.torch")  # `from deepspeed.comm` would give PyTorch
    assert callable(backend.build_shm_op)
    backend.build_shm_op = lambda: None
