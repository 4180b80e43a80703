"""Teachers and controls for measuring speed: real architectures, random weights, cached as ONNX in the laboratory.

And decoding alone, for the same; and a matrix product, which says what the machine can do at all.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from benchmarks import lab
from kdaudit.admission import admit
from kdaudit.decoder import open_decoder
from kdaudit.export import export_network
from kdaudit.preprocess import Preprocess
from kdaudit.sample import Decoder, Geometry, Record
from kdaudit.signature import Signature
from kdaudit.student import StudentSpec, _torchvision_models, build, choose_architecture


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def resnet20(classes: int) -> nn.Module:
    """ResNet-20 for 32 px (He et al., 2016, section 4.2): 16, 32 and 64 channels, three blocks each, 41 M MACs."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [_Block(a, b, 2 if a != b else 1) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


@dataclass(frozen=True)
class Networks:
    """A teacher and a control, in torch (channels last, evaluation mode) and as ONNX, and how they are fed.

    `operations`: of both for one image, multiplications and additions.
    """

    teacher: nn.Module
    student: nn.Module
    teacher_onnx: bytes
    student_onnx: bytes
    signature: Signature
    preprocess: Preprocess
    operations: int


class _Fed(nn.Module):
    """A control behind the teacher's standardised input, as `kdaudit.export` writes it."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(preprocess.scale.mean).view(1, -1, 1, 1) / 255)
        self.register_buffer("std", torch.tensor(preprocess.scale.std).view(1, -1, 1, 1) / 255)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x * self.std + self.mean)
        return found


def networks(size: int, classes: int, some: Sequence[Record], device: str = "cpu") -> Networks:
    """Teacher and control for images of a size; norms take their statistics from some images.

    For a GPU the teacher at 224 px is a ResNet-50 and the control what is distilled there; else a ResNet-18 and the
    lighter control.
    """
    on_gpu = device != "cpu"
    preprocess = Preprocess.parse(f"{size}x{size}x3-stretch-RGB-NCHW-{'cifar10' if size == 32 else 'imagenet'}")
    x = torch.from_numpy(preprocess.apply(open_decoder().decode([r.data for r in some], preprocess.geometry).pixels))
    torch.manual_seed(0)
    large = _torchvision_models().resnet50 if on_gpu else _torchvision_models().resnet18
    teacher = resnet20(classes) if size == 32 else large(weights=None, num_classes=classes)
    spec = StudentSpec(choose_architecture(size, size, on_gpu=on_gpu), 3, size, size, classes, (0.5,) * 3, (0.25,) * 3)
    student = _Fed(build(spec, 0), preprocess)
    written = []
    for name, net in (("teacher", teacher), ("student", student)):
        net.train()
        with (
            torch.no_grad()
        ):  # random weights without the statistics of their inputs answer with one class, or overflow
            for part in x.split(32):
                net(part)
        net.eval().requires_grad_(requires_grad=False)
        path = lab.LAB / "throughput" / f"{name}-{size}-{classes}-{spec.architecture}{'-gpu' * on_gpu}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(export_network(net, x[:2], "input", "logits").SerializeToString())
        written.append(admit(path))
        net.to(memory_format=torch.channels_last)
    first, second = written
    operations = 2 * (first.multiplications + second.multiplications)
    return Networks(teacher, student, first.model, second.model, first.signature, preprocess, operations)


def decode_alone(decoder: Decoder, records: Sequence[Record], geometry: Geometry, batch: int, workers: int) -> int:
    """Decode images in memory, a thread a batch; their number."""
    chunks = [[record.data for record in records[i : i + batch]] for i in range(0, len(records), batch)]
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(lambda chunk: len(decoder.decode(chunk, geometry).pixels), chunks))


class Product:
    """A product of two square matrices in onnxruntime, float32, one thread: the most that its kernels get of a core."""

    SIDE = 1024

    def __init__(self) -> None:
        a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.SIDE] * 2) for name in "abc")
        graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        matrix = np.random.default_rng(0).random((self.SIDE, self.SIDE), np.float32)
        self._matrices = {"a": matrix, "b": matrix.T.copy()}

    def worth(self, operations: float, workers: int) -> None:
        """Multiply until so many multiplications and additions are done, in so many threads."""
        times = max(1, round(operations / (2 * self.SIDE**3)))
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda _: self._session.run(None, self._matrices), range(times)):
                pass
