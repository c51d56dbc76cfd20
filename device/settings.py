"""The daemon's settings: typed, layered, each knowing where it came from.

Four layers, the later ones first: the command line, the environment (``LEARN2SOFI_FPS=60``), the
user's file (``--config``), and `default.toml`, which lies beside this file and nobody edits.
"""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from device.errors import UserError
from device.pixel_format import ROI_PATTERN

log = logging.getLogger(__name__)

DEFAULT_FILE = Path(__file__).with_name("default.toml")
ENV_PREFIX = "LEARN2SOFI_"


class SettingsError(UserError):
    """A setting or its file is wrong; the text is one sentence for the user."""


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


_Value = TypeVar("_Value")
_Optional = Annotated[_Value | None, BeforeValidator(_empty_is_none)]


class Settings(BaseSettings):
    """What the daemon can be told; made by `Settings.load`.

    Attributes
    ----------
    camera : str
        ``demo``: the included stack; ``replay:PATH``: a recorded one; ``picamera2``: the Pi's.
    fps : float
        Frame rate of a replayed stack or of the camera in frames per second.
    loop : bool
        Begin again at the end of a replayed stack.
    mode : str
        ``stream``: a reconstruction for every frame; ``window``: of exactly the last 30 frames,
        played twice, see `device.reconstructor`.
    model : Path or None
        Model file; None is the newest int8 model in ``models/``.
    threads : int
        Threads of the model's runtime; 0 is one for each core, 4 at most.
    runtime : str
        Package that runs the model: ``ai-edge-litert``, ``tflite-runtime``, or ``auto``: the first
        of the two that is installed.
    host : str
        Address to serve the page at.
    port : int
        Its port; 0 is any that is free.
    token_file : Path or None
        File with the access token that guards a page served to the network.
    require_token : bool
        Ask for the token on loopback too, where a reverse proxy makes it reachable.
    log_level : str
        ``debug``, ``info``, ``warning`` or ``error``.
    camera_number : int
        Which of several cameras, from 0.
    camera_stream : str
        ``raw``: the sensor's values; ``luma``: the processed stream; ``auto``: raw where there is.
    camera_size : str
        Width and height of the camera's stream in px, such as ``640x480``.
    exposure_us : float or None
        Exposure time in us; None leaves it to the camera.
    gain : float or None
        Analogue gain; None leaves it to the camera.
    roi : str
        Part of the image that is taken, ``Y,X,H,W`` in px; empty is all.
    sensor_crop : str
        Part of the sensor that a luma stream is scaled from, ``Y,X,H,W`` in its px; empty is all.
    transfer : str
        Transfer curve of a luma stream, which is undone: ``bt709``, ``srgb`` or ``linear``.
    tuning : Path or None
        Tuning file for the Pi's image processor; None is the sensor's own.
    na : float or None
        Numerical aperture of the objective.
    wavelength_nm : float or None
        Wavelength of the emission in nm.
    camera_pixel_um : float or None
        Side of the sensor's pixel in um.
    magnification : float or None
        From the sample to the sensor.
    psf_sigma_px : float or None
        Width of the PSF in px after any binning, where it was measured, or the four are not known;
        it counts before what they say of it. They choose the binning.
    calibration : Path or None
        Folder with what `learn2sofi calibrate` measured; None is none.
    dark, flat : bool
        Correct live images by the dark frame, by the flat field, where they were measured.
    recordings : Path
        Folder of the daemon's recordings.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    # No defaults here: default.toml is the one place for them.
    camera: str = Field(min_length=1)
    fps: float = Field(gt=0, le=10_000, allow_inf_nan=False)
    loop: bool
    mode: Literal["stream", "window"]
    model: Annotated[Path | None, BeforeValidator(_empty_is_none)]
    threads: int = Field(ge=0, le=64)
    runtime: Literal["auto", "ai-edge-litert", "tflite-runtime"]
    host: str = Field(min_length=1)
    port: int = Field(ge=0, le=65535)
    token_file: Annotated[Path | None, BeforeValidator(_empty_is_none)]
    require_token: bool
    log_level: Literal["debug", "info", "warning", "error"]
    camera_number: int = Field(ge=0)
    camera_stream: Literal["auto", "raw", "luma"]
    camera_size: str = Field(pattern=r"^[1-9]\d*x[1-9]\d*$")
    exposure_us: _Optional[float] = Field(gt=0, allow_inf_nan=False)
    gain: _Optional[float] = Field(gt=0, allow_inf_nan=False)
    roi: str = Field(pattern=ROI_PATTERN)
    sensor_crop: str = Field(pattern=ROI_PATTERN)
    transfer: Literal["bt709", "srgb", "linear"]
    tuning: _Optional[Path]
    na: _Optional[float] = Field(gt=0, lt=2)
    wavelength_nm: _Optional[float] = Field(ge=200, le=2000)
    camera_pixel_um: _Optional[float] = Field(gt=0, allow_inf_nan=False)
    magnification: _Optional[float] = Field(gt=0, allow_inf_nan=False)
    psf_sigma_px: _Optional[float] = Field(gt=0, allow_inf_nan=False)
    calibration: _Optional[Path]
    dark: bool
    flat: bool
    recordings: Path

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    COMMAND_LINE: ClassVar[str] = "command line"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what `load` gives: it merges the layers itself, to know each one's origin."""
        return (init_settings,)

    @classmethod
    def load(cls, config: Path | None = None, **cli: object) -> Self:
        """Merge the layers and check the result.

        Parameters
        ----------
        config : Path, optional
            The user's TOML file.
        **cli
            Settings from the command line; None is "not given".

        Returns
        -------
        Settings
            Each with an `origin`.

        Raises
        ------
        SettingsError
            A file cannot be read, a setting is unknown or out of its range.
        """
        layers = _layers(cls, config, cli)
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for origin, layer in layers.items():
            _refuse_unknown(layer, origin, cls)
            values.update(layer)
            origins.update(dict.fromkeys(layer, origin))
        try:
            settings = cls(**values)
        except ValidationError as error:
            raise _sentence(error, origins) from error
        settings._origins.update(origins)
        return settings

    def origin(self, name: str) -> str:
        """Tell where a setting came from.

        Parameters
        ----------
        name : str
            A field's name.

        Returns
        -------
        str
            ``default.toml``, the user's file, ``environment`` or ``command line``.
        """
        return self._origins[name]


def _layers(
    cls: type[Settings], config: Path | None, cli: Mapping[str, object]
) -> dict[str, dict[str, Any]]:
    """Collect the layers by their origin, the strongest last."""
    layers = {DEFAULT_FILE.name: _read_toml(DEFAULT_FILE)}
    if config is not None:
        layers[str(config)] = _read_toml(config)
    layers["environment"] = EnvSettingsSource(cls)()
    _warn_of_unknown_environment(cls)
    layers[cls.COMMAND_LINE] = {name: value for name, value in cli.items() if value is not None}
    return layers


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); expected a settings file; "
            "check the path given with --config"
        ) from error
    except ValueError as error:  # TOML or UTF-8
        raise SettingsError(
            f"{path}: is not TOML ({error}); expected lines such as 'fps = 30.0'; correct it"
        ) from error


def _refuse_unknown(layer: Mapping[str, object], origin: str, cls: type[Settings]) -> None:
    for name in layer:
        if name not in cls.model_fields:
            raise SettingsError(
                f"{origin}: there is no setting '{name}'; expected one of "
                f"{', '.join(cls.model_fields)}; correct or remove it"
            )


def _warn_of_unknown_environment(cls: type[Settings]) -> None:
    """Warn of a misspelt variable; it may also be another program's, so it is no error."""
    for variable in os.environ:
        name = variable.removeprefix(ENV_PREFIX)
        if name != variable and name.lower() not in cls.model_fields:
            log.warning("the environment's %s is no setting and is ignored", variable)


def _sentence(error: ValidationError, origins: Mapping[str, str]) -> SettingsError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    reason = first["msg"]
    for theirs, ours in (
        ("Input should be", "expected"),
        ("String should have", "expected text of"),
    ):
        reason = reason.replace(theirs, ours)
    return SettingsError(
        f"setting {name} is {first['input']!r} (from {origins.get(name, 'nowhere')}): "
        f"{reason}; correct it there"
    )
