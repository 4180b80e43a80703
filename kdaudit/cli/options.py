"""The options that several commands share, each one decorator, so that a command reads as a stack of words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


def stack(*decorators: Decorator[Any]) -> Decorator[Any]:
    """Several options as one; they show in the help in the order given."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _path(**more: Any) -> click.Path:
    return click.Path(path_type=Path, **more)


# Paths are checked by the rooms that open them: their sentences say what to do.
model_argument = click.argument("model", type=_path())
data_argument = click.argument("data", type=_path())
clean_option = click.option(
    "--clean",
    type=_path(),
    metavar="DIR",
    help="Clean pool: trusted images, no labels needed. [default: DATA/clean or DATA/unlabeled]",
)
run_option = click.option(
    "-o",
    "--output",
    "run",
    type=_path(),
    default=Path("kdaudit-run"),
    show_default=True,
    metavar="RUN",
    help="Run directory; the same command on it goes on where it stopped.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "html", "sarif", "junit", "markdown", "github"]),
    default="text",
    show_default=True,
    help="What stdout gets.",
)
file_option = click.option(
    "-o",
    "--output",
    type=_path(),
    metavar="FILE",
    help="Write to FILE instead of stdout.",
)

machine_options = stack(
    click.option("--seed", type=int, help="Makes a run repeatable.  [default: 0]"),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="Where the control is trained.  [default: auto]",
    ),
    click.option(
        "--provider",
        type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
        help="onnxruntime's execution provider.  [default: auto]",
    ),
    click.option("--gpus", type=int, metavar="N", help="GPUs that share the images of the comparison.  [default: 1]"),
    click.option("--fp16", is_flag=True, default=None, help="Let TensorRT round to float16."),
    click.option("--tf32", is_flag=True, default=None, help="Let CUDA round to TensorFloat-32."),
    click.option("--require-gpu", is_flag=True, default=None, help="Exit 3 unless everything runs on a GPU."),
    click.option(
        "--decoder",
        type=click.Choice(["auto", "pillow", "simplejpeg", "dali"]),
        help="Image decoder.  [default: auto]",
    ),
    click.option("--batch-size", type=int, help="Images per batch of the comparison.  [default: 64, fewer if large]"),
    click.option("--workers", type=int, help="Threads of the comparison.  [default: one per core]"),
    click.option(
        "--preprocess",
        metavar="RECIPE",
        help="Preprocessing, as an earlier run printed it, or a scale's name.  [default: found]",
    ),
)
control_options = stack(
    click.option("--budget", type=float, metavar="MINUTES", help="Time for distilling the control."),
    click.option("--steps", type=int, help="Distillation steps, instead of a budget.  [default: by pool size]"),
    click.option("--temperature", type=float, help="Distillation temperature.  [default: 4]"),
    click.option(
        "--backbone",
        type=_path(),
        metavar="ONNX",
        help="A network that you trust, of another origin: the control stands on its features.",
    ),
    click.option("--max-clean", type=int, help="Clean images used at most.  [default: 20000]"),
)
gate_options = stack(
    click.option(
        "--fail-on",
        type=click.Choice(["low", "medium", "high", "critical", "never"]),
        help="Findings of this severity or above exit 1.  [default: high]",
    ),
    click.option(
        "--max-flagged-rate",
        type=float,
        metavar="RATE",
        help="Exit 1 if a larger share of the images is flagged.",
    ),
    click.option(
        "--baseline", type=_path(), metavar="RUN", help="An earlier run or report.json: only what is new fails."
    ),
    click.option("--exit-zero", is_flag=True, default=None, help="Exit 0 whatever was found; errors still exit 2."),
)
judging_options = stack(
    click.option(
        "--rule",
        type=click.Choice(["divergence", "score", "argmax"]),
        help="What flags an image.  [default: divergence]",
    ),
    click.option(
        "--graph",
        type=click.Choice(["auto", "one", "two"]),
        help="Both networks as one graph, with --rule score and argmax.  [default: auto]",
    ),
    click.option("--fdr", type=float, help="Innocent share of the flags to stay under.  [default: 0.05]"),
    click.option("--sensitivity", type=float, metavar="RATE", help="Poison rate that must be visible, or exit 3."),
    click.option("--min-fidelity", type=float, help="Agreement with the teacher that a control needs.  [default: 0.5]"),
    click.option("--min-coverage", type=float, help="Share of images that must be read.  [default: 0.99]"),
    gate_options,
)
repair_options = stack(
    click.option("--repair/--no-repair", default=None, help="Tune the control and export it.  [default: repair]"),
    click.option("--repair-epochs", type=float, help="Passes over the kept images.  [default: 25, fewer of many]"),
)
