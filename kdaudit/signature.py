"""What a classifier takes and gives, read off its graph: words shared by admission, session and export."""

from dataclasses import dataclass
from typing import Literal

Layout = Literal["NCHW", "NHWC", "flat", "flatCHW"]
"""Where the channels stand. "flat" is [N, pixels] or [N, pixels, 1] with a pixel's channels side by side (as
NHWC), "flatCHW" the same with one channel after the other (as NCHW); they differ for three channels only."""
InputType = Literal["float32", "float16", "uint8"]
OutputKind = Literal["logits", "probabilities", "log-probabilities"]


@dataclass(frozen=True, slots=True)
class Signature:
    """Input and output of a classifier.

    Attributes:
        input_name: name of the one image input.
        input_type: its element type.
        input_shape: declared shape; None for a free dimension (the first is the batch).
        layout: where the channels stand; a flat input of three channels is "flat" until `fitting` has found
            out which of the two it is.
        batch: declared batch size; None when it is free.
        height: pixels; None when the graph leaves it open.
        width: pixels; None when the graph leaves it open.
        channels: 1 or 3.
        output_name: the tensor that holds the class scores.
        output_type: its element type, float32 or float16.
        output_shape: its declared shape, [N, K] or with trailing ones; None for a free dimension.
        output_kind: what the scores are; found on images where the graph does not say.
        classes: K.
        class_names: the model's own names in output order, where its metadata or ZipMap carries them.
        label_output: name of a separate top-1 label output, if there is one.
        map_output: name of a ZipMap output (sequence of maps), if there is one; `output_name` is then the
            tensor that feeds it.
        features: name of the tensor that the last linear layer reads, a further output of the canonical copy; None
            where the graph shows none.
    """

    input_name: str
    input_type: InputType
    input_shape: tuple[int | None, ...]
    layout: Layout
    batch: int | None
    height: int | None
    width: int | None
    channels: Literal[1, 3]
    output_name: str
    output_type: Literal["float32", "float16"]
    output_shape: tuple[int | None, ...]
    output_kind: OutputKind
    classes: int
    class_names: tuple[str, ...] | None = None
    label_output: str | None = None
    map_output: str | None = None
    features: str | None = None

    @property
    def side(self) -> int | None:
        """The longer side of what it takes, pixels; None where the graph leaves one open."""
        return None if self.height is None or self.width is None else max(self.height, self.width)


def named(answer: int, names: tuple[str, ...] | None) -> str:
    """A class by its number, and by its name where it has one."""
    return f"{answer} ({names[answer]})" if names and 0 <= answer < len(names) else str(answer)
