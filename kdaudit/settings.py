"""Every setting of kdaudit in one model: options, KDAUDIT_ variables, kdaudit.toml and pyproject.toml meet here.

Order of precedence: options, then environment, then `kdaudit.toml`, then `[tool.kdaudit]` in `pyproject.toml`, both
in the working directory; then the defaults below.
"""

import difflib
import os
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from kdaudit.errors import UsageError

Rule = Literal["divergence", "score", "argmax"]
Step = Annotated[str, Field(pattern=r"^(blend|cut)-0?\.\d*[1-9]\d*$")]
"""An intervention: `blend-0.65` or `cut-0.5`."""
FailOn = Literal["low", "medium", "high", "critical", "never"]

PREFIX = "KDAUDIT_"
FOREIGN = frozenset({"KDAUDIT_SHARED", "KDAUDIT_LAB"})
"""Variables of that prefix that are no settings: where the tests and benchmarks find their data. Any other name is a
mistake, and a setting that is silently not applied is worse than a refusal."""


class Ignore(BaseModel):
    """A finding that the gate lets pass until a date, with the reason that somebody gave.

    Attributes:
        rule: rule id, such as KDA103.
        reason: why; shown wherever the finding is.
        expires: the last day on which it holds.
        subject: what the finding is about, such as "answer 7"; empty: whatever it is about.
        model: first digits of the model's SHA-256; empty: any model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str = Field(pattern=r"^KDA\d{3}$")
    reason: str = Field(min_length=1)
    expires: date
    subject: str = ""
    model: str = Field("", pattern=r"^[0-9a-f]{0,64}$")


GUESSED = 0.1
"""So much more often than by guessing among its classes a control must give the teacher's answer, whatever is asked."""


class Settings(BaseSettings):
    """All settings; each command uses those that concern it. Frozen; refuses bad values and unknown names."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        toml_file="kdaudit.toml",
        pyproject_toml_table_header=("tool", "kdaudit"),
    )

    seed: int = Field(0, ge=0, lt=2**31, description="makes a run repeatable")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the control is trained")
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto", description="onnxruntime's execution provider for both networks"
    )
    graph: Literal["auto", "one", "two"] = Field(
        "auto", description="whether the cheap pass runs both networks as one graph"
    )
    gpus: int = Field(1, ge=1, le=64, description="GPUs that share the images of the comparison")
    fp16: bool = Field(False, description="let TensorRT round to float16")
    tf32: bool = Field(False, description="let CUDA round what it multiplies to TensorFloat-32")
    require_gpu: bool = Field(False, description="exit 3 unless everything runs on a GPU")
    decoder: Literal["auto", "pillow", "simplejpeg", "dali"] = Field("auto", description="image decoder")
    batch_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="images per batch of the comparison [default: 64, fewer if large; 256 if small and on a GPU]",
    )
    workers: int | None = Field(None, ge=1, le=1024, description="threads of the comparison [default: one per core]")
    preprocess: str | None = Field(None, description="preprocessing recipe or scale; found when left out")

    # At least kdaudit.pool.MIN_POOL: a smaller pool is refused, but only once its images have been read.
    max_clean: int = Field(20_000, ge=100, description="clean images used at most")
    budget: float | None = Field(None, gt=0, allow_inf_nan=False, description="minutes for distilling the control")
    steps: int | None = Field(None, ge=1, description="distillation steps, instead of a budget")
    temperature: float = Field(4.0, gt=0, le=100, description="distillation temperature")
    backbone: Path | None = Field(
        None, description="a network that you trust (ONNX), whose features the control stands on"
    )
    min_fidelity: float = Field(0.5, ge=0, le=1, description="agreement with the teacher that a control needs")

    rule: Rule = Field("divergence", description="what flags an image")
    fdr: float = Field(0.05, gt=0, lt=1, description="innocent share of the flags to stay under")
    interventions: tuple[Step, ...] = Field(
        ("cut-0.5", "blend-0.8", "cut-0.25", "blend-0.65"),
        min_length=1,
        max_length=64,
        description="what images go through where the networks part: blends with clean images, boxes of clean images",
    )
    sensitivity: float | None = Field(
        None,
        gt=0,
        le=1,
        description="poison rate that must be visible; exit 3 if the calibration is too small",
    )
    min_coverage: float = Field(0.99, ge=0, le=1, description="share of images that must be read")
    fail_on: FailOn = Field("high", description="findings of this severity or above exit 1")
    max_flagged_rate: float | None = Field(
        None, ge=0, le=1, description="share of flagged images above which to exit 1"
    )
    exit_zero: bool = Field(False, description="exit 0 whatever was found; errors keep their exit code")
    baseline: Path | None = Field(None, description="an earlier run or its report.json: only what is new fails")
    ignores: tuple[Ignore, ...] = Field((), description="findings that the gate lets pass until a date")

    repair: bool = Field(True, description="tune the control on the kept images and export it")
    repair_epochs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="passes over the kept images; 25 when left out, fewer of many images",
    )

    def fidelity_needed(self, classes: int) -> float:
        """The fidelity that a control of a model with so many classes needs: chance and `GUESSED` at least."""
        return max(self.min_fidelity, 1 / classes + GUESSED)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  a .env file in a data folder is not ours to read
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, environment, kdaudit.toml, pyproject.toml: the first that has a value wins."""
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls),
            PyprojectTomlConfigSettingsSource(settings_cls),
        )


def load_settings(**options: Any) -> Settings:
    """Settings from the options given (None: not given), the environment and the configuration files.

    Raises:
        UsageError: a value is bad, a name is unknown, or a configuration file is not TOML.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _refuse_unknown_variables()
    try:
        return Settings(**given)
    except ValidationError as error:
        raise UsageError(_sentence(error, given)) from error
    except SettingsError as error:
        raise UsageError(
            f'a KDAUDIT_ variable cannot be read, a list is written as ["blend-0.65", "cut-0.5"]: {error}'
        ) from error
    except ValueError as error:
        # tomllib's own message names line and column.
        raise UsageError(f"a configuration file in {Path.cwd()} cannot be read: {error}") from error


def _refuse_unknown_variables() -> None:
    """Pydantic reads the variables that it knows and never looks at the others: a typing mistake would go unseen."""
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(PREFIX).lower()
        if variable.upper().startswith(PREFIX) and variable not in FOREIGN and name not in Settings.model_fields:
            raise UsageError(_unknown(name, f"in the variable {variable}", Settings))


def _sentence(error: ValidationError, given: dict[str, Any]) -> str:
    """What is wrong first. An unknown name goes before all else: it may be why another is missing."""
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    name = ".".join(str(part) for part in first["loc"])
    top = str(first["loc"][0])
    if first["type"] != "extra_forbidden":
        return f"setting {name!r}: {first['msg']} ({_origin(top, given)})"
    if len(first["loc"]) > 1:
        return _unknown(name, f"({_origin(top, given)})", Ignore)
    places = _files_with(top)
    return _unknown(name, f"in {' and '.join(places)}" if places else f"({_origin(top, given)})", Settings)


def _unknown(name: str, where: str, model: type[BaseModel]) -> str:
    """The sentence for a name that is no setting; of a name in a list, the last part is looked up."""
    last = name.rpartition(".")[2].lower().replace("-", "_")
    near = difflib.get_close_matches(last, model.model_fields, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"the names are {_names(model)}"
    return f"unknown setting {name!r} {where}; {hint}"


def _names(model: type[BaseModel]) -> str:
    return "listed by `kdaudit schema settings`" if model is Settings else ", ".join(model.model_fields)


def _files_with(name: str) -> list[str]:
    """The configuration files that hold a name."""
    sources = {
        "kdaudit.toml": TomlConfigSettingsSource(Settings),
        "pyproject.toml": PyprojectTomlConfigSettingsSource(Settings),
    }
    return [file for file, source in sources.items() if name in source.toml_data]


def _origin(name: str, given: dict[str, Any]) -> str:
    if name in given:
        return f"given as --{name.replace('_', '-')}"
    return f"from {PREFIX}{name.upper()}, kdaudit.toml or pyproject.toml"
