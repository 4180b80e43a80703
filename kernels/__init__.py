"""Ops on logits and pixels, installed as `kdaudit.kernels`; README.md beside this file says which exist and why."""

from kdaudit.kernels.divergence_ref import jensen_shannon_ref

__all__ = ["jensen_shannon_ref"]
