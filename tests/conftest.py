"""Set-up shared by all tests: one thread a worker, no network, GPU tests only where there is a GPU."""

import os

# Before torch is imported: two workers on two cores would otherwise fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_tests = [(item, marker) for item in items if (marker := item.get_closest_marker("gpu"))]
    if not gpu_tests:
        return
    from gpu_support import DEVICE

    if DEVICE.type != "cuda":
        for item, marker in gpu_tests:
            item.add_marker(pytest.mark.skip(reason=f"needs a CUDA device: {marker.args[0]}"))
