"""Ops on logits and pixels, installed as `kdaudit.kernels`; README.md beside this file says which exist and why.

What is public here is what kdaudit runs: the references. The kernels stand beside them (`kdaudit.kernels.divergence`
and so on), need triton, and become public when a scan is seen to gain by them.
"""

from kdaudit.kernels.augment_ref import augment_ref
from kdaudit.kernels.distill_loss_ref import distill_loss_ref
from kdaudit.kernels.divergence_ref import divergence_ref, jensen_shannon_ref

__all__ = ["augment_ref", "distill_loss_ref", "divergence_ref", "jensen_shannon_ref"]
