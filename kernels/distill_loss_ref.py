"""Reference: the distillation loss, in plain torch. The definition of `distill_loss`, and what distillation uses.

    loss = tau^2 / B * sum over rows of KL(softmax(t / tau) || softmax(s / tau))        nats
    d loss / d s = tau / B * (softmax(s / tau) - softmax(t / tau))

t, s: teacher and student logits [B, K]. Hinton et al., 2015; the batch mean, as in Yoshida and Fujino, 2020, section 4.
"""

import torch.nn.functional as F
from torch import Tensor


def distill_loss_ref(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The loss, a scalar in the logits' own type; differentiable with respect to the student.

    Args:
        student: logits [B, K].
        teacher: logits [B, K].
        temperature: tau, above 0.
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
