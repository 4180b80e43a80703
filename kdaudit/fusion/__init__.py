"""The audit graph: teacher, control and the comparison of their answers as one ONNX graph, from pixels to columns.

`blueprint` says what it is made of, `graph` composes it, `parts` writes what stands before and behind the networks,
`confined` does that in a worker behind walls, because the teacher came from somebody else. What runs it is
`kdaudit.onegraph`.
"""

from kdaudit.fusion.blueprint import Blueprint, Fused, NotFused

__all__ = ["Blueprint", "Fused", "NotFused"]
"""Loads no onnx: that is for the worker."""
