"""The settings of a training run: one TOML file, checked before anything starts."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from device.errors import UserError
from training.dataset import DatasetSettings
from training.forward_model import WINDOW, ForwardModelSettings
from training.network import NetworkSettings

FOLDER = Path(__file__).parent


class TrainingSettings(BaseModel):
    """One training run, whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(1, ge=0)
    """Of everything random: specimens, weights."""
    updates: int = Field(5000, ge=1)
    """Updates of the weights; the learning rate falls to a hundredth over them."""
    epoch_updates: int = Field(250, ge=1)
    """Updates between two validations, each followed by a checkpoint; divides `updates`."""
    learning_rate: float = Field(2e-3, gt=0)
    """Of Adam, at its highest."""
    warmup_updates: int = Field(200, ge=0)
    """Updates over which the learning rate rises."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    coarse_weight: float = Field(0.0, ge=0)
    """Weight of the blurred image's error beside the sharp one's; see `training/loss.py`."""
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    """With `mixed_bfloat16` all layers but the last compute in 16 bits, which GPUs are fast at;
    weights and loss stay in 32. Its exponent is as long as float32's: unlike with float16, no loss
    has to be scaled and no update skipped. int8's steps are only nearly kept to."""
    architecture: Literal["step", "original", "limit"] = "step"
    """Our step, or what it is compared with: the original's network, or one without our step's
    limits (`training/limit.py`). These are trained on whole windows and have no settings of their
    own."""
    network: NetworkSettings = NetworkSettings()
    dataset: DatasetSettings = DatasetSettings()
    forward_model: ForwardModelSettings = ForwardModelSettings()

    @model_validator(mode="after")
    def _ends_with_a_checkpoint(self) -> TrainingSettings:
        if self.updates % self.epoch_updates:
            raise ValueError(
                f"updates is {self.updates}, no multiple of epoch_updates, {self.epoch_updates}"
            )
        return self

    @model_validator(mode="after")
    def _others_see_windows(self) -> TrainingSettings:
        name, data = self.architecture, self.dataset
        if name == "step":
            return self
        frames = WINDOW if name == "original" else data.window
        if data.chunk != frames or data.read_at != (frames - 1,) or data.stream_fraction:
            raise ValueError(
                f"the architecture {name} is trained on windows: chunk must be {frames}, "
                f"read_at [{frames - 1}] and stream_fraction 0"
            )
        if self.network != NetworkSettings():
            raise ValueError(f"the architecture {name} has no settings: leave [network] out")
        return self


def forward_models(settings: TrainingSettings, also: str | None) -> list[ForwardModelSettings]:
    """List what stacks are drawn by: the settings' own, and that of others where they are named.

    Raises
    ------
    UserError
        See `load`.
    """
    others = [load(also)] if also else []
    return [each.forward_model for each in (settings, *others)]


def of_run(folder: Path) -> TrainingSettings:
    """Read the settings that a run left in its folder; see `of_file`."""
    return of_file(folder / "settings.json")


def of_file(path: Path) -> TrainingSettings:
    """Read the settings of a run, or of a released model, from their file.

    Raises
    ------
    OSError
        There is none.
    ValueError
        They are damaged, or those of another version.
    """
    return TrainingSettings.model_validate_json(path.read_text())


def load(name_or_path: str) -> TrainingSettings:
    """Read settings by the name of a file in this folder, or by path.

    Raises
    ------
    UserError
        The file is missing, not TOML, or a value is out of its range.
    """
    path = FOLDER / f"{name_or_path}.toml"
    path = path if path.exists() else Path(name_or_path)
    try:
        return TrainingSettings(**tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise UserError(f"No settings at {path}: give a TOML file or one of {known}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML ({error}): correct that line.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join([str(path), *(str(part) for part in first["loc"])])
        raise UserError(f"{where}: {first['msg']}; correct that setting.") from error
