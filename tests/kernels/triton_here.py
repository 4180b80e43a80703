"""Whether triton is installed; asked without importing it, since that would settle how its kernels run."""

import importlib.util

import pytest

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
