"""Every setting of kdaudit in one model: options, KDAUDIT_ variables, kdaudit.toml and pyproject.toml meet here.

Order of precedence: options, then environment, then `kdaudit.toml`, then `[tool.kdaudit]` in `pyproject.toml`, both
in the working directory; then the defaults below.
"""

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


class Settings(BaseSettings):
    """All settings; each command uses those that concern it. Frozen; refuses bad values and unknown names."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="KDAUDIT_",
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
        None, ge=1, le=4096, description="images per batch of the comparison [default: 64, fewer if they are large]"
    )
    workers: int | None = Field(None, ge=1, le=1024, description="threads of the comparison [default: one per core]")
    preprocess: str | None = Field(None, description="preprocessing recipe or scale; found when left out")

    # At least kdaudit.pool.MIN_POOL: a smaller pool is refused, but only once its images have been read.
    max_clean: int = Field(20_000, ge=100, description="clean images used at most")
    budget: float | None = Field(None, gt=0, allow_inf_nan=False, description="minutes for distilling the control")
    steps: int | None = Field(None, ge=1, description="distillation steps, instead of a budget")
    temperature: float = Field(4.0, gt=0, le=100, description="distillation temperature")
    min_fidelity: float = Field(0.6, ge=0, le=1, description="agreement with the teacher that a control needs")

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
    repair_epochs: float = Field(10.0, gt=0, allow_inf_nan=False, description="passes over the kept images, at most")

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
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"setting {name!r}: {first['msg']} ({_origin(str(first['loc'][0]), given)})") from error
    except SettingsError as error:
        raise UsageError(
            f'a KDAUDIT_ variable cannot be read, a list is written as ["blend-0.65", "cut-0.5"]: {error}'
        ) from error
    except ValueError as error:
        # tomllib's own message names line and column.
        raise UsageError(f"a configuration file in {Path.cwd()} cannot be read: {error}") from error


def _origin(name: str, given: dict[str, Any]) -> str:
    if name in given:
        return f"given as --{name.replace('_', '-')}"
    return f"from KDAUDIT_{name.upper()}, kdaudit.toml or pyproject.toml"
