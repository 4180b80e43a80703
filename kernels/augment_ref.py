"""Reference: augmented views of clean images, in plain torch. The definition of `augment`.

For view i, with the images a = images[first[i]] and b = images[second[i]] and shares w = weight[i], 1 - w:

    moved(a)[y, x] = a[clip(y + dy, 0, H - 1), clip(x' + dx, 0, W - 1)],  x' = W - 1 - x where mirrored, else x
    view[i, c, y, x] = ((w moved(a) + (1 - w) moved(b))[y, x, c] - mean[c]) / std[c]

The draws come in a `Draws`, made by whoever holds the seed: the same draws give the same views on every machine.
Translating, mirroring and mixing are those of `kdaudit.views` (a test holds the two together), which the product runs:
it draws in numpy because onnxruntime answers on the same arrays, and it zooms photographs, which this does not.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Draws(NamedTuple):
    """What was drawn for each of B views."""

    image: Tensor  # int64 [2, B], positions of both images
    shift: Tensor  # int32 [2, B, 2], dy and dx of both
    mirror: Tensor  # bool [2, B]
    weight: Tensor  # float32 [B], share of the first image


def augment_ref(images: Tensor, draws: Draws, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The views of one training step.

    Args:
        images: uint8 [n, H, W, C].
        draws: B draws.
        mean: float32 [C], in 0..255.
        std: float32 [C], in 0..255.
        dtype: of the views; the arithmetic is float32.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: the images are not uint8 [n, H, W, C].
    """
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 [n, H, W, C], not {images.dtype} {list(images.shape)}")
    first, second = (_moved(images, draws, which) for which in (0, 1))
    w = draws.weight[:, None, None, None]
    views = (w * first + (1 - w) * second - mean) / std
    return views.permute(0, 3, 1, 2).to(dtype).contiguous()


def _moved(images: Tensor, draws: Draws, which: int) -> Tensor:
    """One of the two images of each view, translated and mirrored: float32 [B, H, W, C]."""
    _, height, width, _ = images.shape
    y, x = (torch.arange(side, device=images.device) for side in (height, width))
    shift = draws.shift[which]
    rows = (y + shift[:, :1]).clamp(0, height - 1)
    columns = torch.where(draws.mirror[which][:, None], width - 1 - x, x) + shift[:, 1:]
    columns = columns.clamp(0, width - 1)
    return images[draws.image[which][:, None, None], rows[:, :, None], columns[:, None, :]].float()
