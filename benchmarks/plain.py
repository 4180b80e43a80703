"""The plain loop: what somebody would write to compare two classifiers over a set of images, written with care.

A PyTorch DataLoader with worker processes, Pillow, torchvision's transforms, two models in eager mode, inference mode,
channels last, one softmax each. It does the cheap pass only: no interventions, no digests, no table, no confinement.
"""

import gc
import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kdaudit.preprocess import Preprocess
from kdaudit.student import _torchvision_models


class Encoded(Dataset[Tensor]):
    """Encoded images in memory, decoded one by one as torchvision's own data sets do."""

    def __init__(self, data: Sequence[bytes], preprocess: Preprocess) -> None:
        self.data = data
        _torchvision_models()  # declares the operators that its import misses beside a CPU-only torch
        from torchvision import transforms

        side, scale = preprocess.geometry.height, preprocess.scale
        mean, std = ([v / 255 for v in values] for values in (scale.mean, scale.std))
        steps: list[object] = [transforms.ToTensor(), transforms.Normalize(mean, std)]
        if side != 32:  # CIFAR-10 is stored at the size that its networks take
            steps.insert(0, transforms.Resize((side, side)))
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        found: Tensor = self.transform(Image.open(io.BytesIO(self.data[index])).convert("RGB"))
        return found


def plain_loop(
    images: Encoded,
    teacher: nn.Module,
    student: nn.Module,
    *,
    batch: int,
    workers: int,
    threads: int,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Compare two networks [B, 3, H, W] -> [B, K] over the images.

    Args:
        images: the data set.
        teacher: in evaluation mode, channels last.
        student: the same.
        batch: images per batch.
        workers: processes that decode.
        threads: of torch in this process.
        device: where both networks are.

    Returns:
        Columns [n, 3]: the two answers, and log p_T(k) - log p_S(k) for the teacher's answer k.
    """
    torch.set_num_threads(threads)
    gc.freeze()  # a forked process that cleared away what is the GPU's, of our own benches, would be ended by DALI
    loader = DataLoader(
        images, batch, num_workers=workers, pin_memory=torch.cuda.is_available(), worker_init_fn=lambda _: gc.disable()
    )
    rows = []
    with torch.inference_mode():
        for found in loader:
            x = found.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            log_t, log_s = (torch.log_softmax(net(x), 1) for net in (teacher, student))
            k = log_t.argmax(1)
            gap = (log_t - log_s).gather(1, k[:, None])[:, 0]
            rows.append(torch.stack([k.float(), log_s.argmax(1).float(), gap], 1))
    return torch.cat(rows).cpu().numpy()
