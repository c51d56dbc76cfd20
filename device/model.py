"""A model file and its manifest, checked against each other, made ready to run.

A file that is not what its manifest says is refused with one sentence. The manifest lies beside the
file and, without its list of files, inside it; both must say the same.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from device import expected_error, psf_width
from device.errors import UserError
from device.expected_error import ErrorEstimator
from device.normalize import NormalizationSettings
from device.output_filter import OutputFilterSettings
from device.psf_width import PsfWidthEstimator

_log = logging.getLogger(__name__)

MODELS_DIR = Path(__file__).resolve().parent.parent / "models"
EMBEDDED_NAME = "learn2sofi_manifest"
FILLABLE_INPUTS = frozenset({"frame", "mean", "previous", "psf_sigma_px"})
"""Inputs that the device knows how to fill, beside the state."""

_MOST_THREADS = 4
Runtime = Literal["auto", "ai-edge-litert", "tflite-runtime"]
_RUNTIMES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
_BESIDE_ONLY = frozenset({"files", "recurrences", "psf_width", "expected_error", "golden"})
"""Fields that the manifest inside a file cannot have: they hold the file's own checksum, or what
was made with it."""

_FILE_NAME = re.compile(r"(?P<stem>.+-(?P<version>\d+(\.\d+)*))-(?P<form>[a-z0-9]+)\.tflite")


class ModelError(UserError):
    """A model cannot be used; the text says why and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelFile(_Strict):
    """One form of the model.

    Attributes
    ----------
    file : str
        File name, in the manifest's folder.
    sha256 : str
        Checksum of the whole file, hexadecimal.
    bytes : int
        Size of the file.
    """

    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)


class GoldenFigures(_Strict):
    """What a form's image of one golden window was like on the machine that released the model.

    Attributes
    ----------
    lost_db : float
        PSNR against the truth of the float32 form's image less that of this form's.
    fidelity_db : float
        PSNR of this form's image against the float32 form's.
    """

    lost_db: float
    fidelity_db: float


class GoldenFile(ModelFile):
    """Short stacks with their truth and the float32 form's images; see `device.golden`.

    Attributes
    ----------
    figures : dict
        Form to name of the window to mode to what is to be expected.
    """

    figures: dict[str, dict[str, dict[str, GoldenFigures]]]


class TensorSpec(_Strict):
    """One tensor of the signature.

    Attributes
    ----------
    shape : tuple of int
        Shape at the size that the file was made for; NHWC where there are four axes.
    dtype : str
        Always float32 at the boundary.
    meaning : str
        For people.
    """

    shape: tuple[int, ...]
    dtype: Literal["float32"] = "float32"
    meaning: str = ""


class Normalization(_Strict):
    """The numbers of `device.normalize`; see `NormalizationSettings`."""

    background_percentile: float = Field(ge=0, lt=100)
    scale_percentile: float = Field(gt=0, le=100)
    min_contrast_sem: float = Field(ge=0)
    peak_percentile: float = Field(100, gt=0, le=100)
    highest_peak: float | None = Field(None, gt=0)
    """None where the model knows no such bound, as those before 0.5.0."""

    def settings(self) -> NormalizationSettings:
        """Return the numbers in the form that `device.normalize.measure` takes."""
        numbers = self.model_dump() | {"highest_peak": self.highest_peak or float("inf")}
        return NormalizationSettings(**numbers)


class OutputFilter(_Strict):
    """The numbers of `device.output_filter`; see `OutputFilterSettings`."""

    notch_order: int = Field(ge=1)
    none: float = Field(ge=0, lt=1)
    full: float = Field(gt=0, le=1)
    floor: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ascends(self) -> OutputFilter:
        if not self.none < self.full:
            raise ValueError("none must be below full")
        return self

    def settings(self) -> OutputFilterSettings:
        """Return the numbers in the form that `device.output_filter` takes."""
        return OutputFilterSettings(**self.model_dump())


class Manifest(_Strict):
    """All that a host must know to use a model.

    Attributes
    ----------
    format : int
        Version of this list of fields.
    name, version : str
        Of the model.
    files : dict of str to ModelFile
        The model's forms, such as ``int8`` and ``float32``; not in the embedded manifest.
    recurrences : dict of str to ModelFile
        Of a form, the part that makes the state and no image, as a file of its own: the same
        numbers in less time, where nobody looks at the image; not in the embedded manifest.
    psf_width : ModelFile or None
        What finds the PSF's width in the frames, see `device.psf_width`; not in the embedded
        manifest.
    expected_error : ModelFile or None
        What says how far each pixel may be off, see `device.expected_error`; not in the embedded
        manifest.
    golden : GoldenFile or None
        What a device checks its own accuracy with; not in the embedded manifest.
    signature : str
        Name of the signature that makes one step.
    frames : int
        Length of a window.
    upsampling : int
        Output px per input px, along y and x.
    size_multiple : int
        Height and width given to the step must be multiples of this.
    inputs, outputs : dict of str to TensorSpec
        The signature's tensors.
    state : dict of str to str
        Input name to the output which is given back to it at the next step.
    normalization : Normalization
        Numbers of the one formula.
    output_filter : OutputFilter or None
        What is filtered out of the network's image; None: nothing.
    psf_sigma_px : tuple of float
        Range of PSF widths that the model was trained for, in input px.
    pixel_size_nm : tuple of float or None
        Range of pixel sizes in the sample plane, where the training had one.
    training : dict
        Where the model came from; for people.
    """

    format: Literal[1]
    name: str
    version: str = Field(pattern=r"^\d+(\.\d+)*$")
    files: dict[str, ModelFile] = {}
    recurrences: dict[str, ModelFile] = {}
    psf_width: ModelFile | None = None
    expected_error: ModelFile | None = None
    golden: GoldenFile | None = None
    signature: str
    frames: int = Field(ge=2)
    upsampling: int = Field(ge=1)
    size_multiple: int = Field(ge=1)
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    state: dict[str, str]
    normalization: Normalization
    output_filter: OutputFilter | None = None
    psf_sigma_px: tuple[float, float]
    pixel_size_nm: tuple[float, float] | None = None
    training: dict[str, Any] = {}

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width in px of the frame that the file was made for."""
        _, height, width, _ = self.inputs["frame"].shape
        return height, width

    @property
    def takes_psf(self) -> bool:
        """Whether the network can be told the PSF's width."""
        return "psf_sigma_px" in self.inputs


class Step:
    """One step of the network at the size last asked for; used by one thread at a time.

    Parameters
    ----------
    manifest : Manifest
        What the interpreter's model is said to be; already checked.
    interpreter : Interpreter
        Of ai-edge-litert or tflite-runtime.
    name : str
        File name without its ending.
    sha256 : str
        Checksum of the file.
    folder : Path
        Where the file lies, and what came with it.
    recurrence : Interpreter, optional
        Of the part that makes no image, where the model has it.
    psf_width : PsfWidthEstimator, optional
        What finds the PSF's width where nobody tells it.
    expected_error : ErrorEstimator, optional
        What says how far each pixel may be off.
    """

    def __init__(
        self,
        manifest: Manifest,
        interpreter: Any,
        name: str,
        sha256: str,
        folder: Path = MODELS_DIR,
        recurrence: Any = None,
        psf_width: PsfWidthEstimator | None = None,
        expected_error: ErrorEstimator | None = None,
    ) -> None:
        self.manifest = manifest
        self.expected_error = expected_error
        self.psf_width = psf_width if manifest.takes_psf else None
        self.name = name
        self.sha256 = sha256
        self.folder = folder
        self._whole = _Runner(interpreter, *_checked_tensors(manifest, interpreter))
        self._recurrence = None
        if recurrence is not None:
            self._recurrence = _Runner(recurrence, *_checked_recurrence(manifest, recurrence))
        self._size: tuple[int, int] | None = None

    @property
    def form(self) -> str:
        """Key of the file in the manifest's `files`, such as ``int8``."""
        return self.name.rpartition("-")[2]

    @property
    def runtime(self) -> str:
        """Name of the package that runs the model."""
        return type(self._whole.interpreter).__module__.partition(".")[0].replace("_", "-")

    @property
    def has_recurrence(self) -> bool:
        """Whether a step whose image is not wanted takes less time."""
        return self._recurrence is not None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in px that the step is set up for; None before `resize`."""
        return self._size

    def resize(self, height: int, width: int) -> None:
        """Set the step up for frames of this size; costs nothing where it already is.

        Parameters
        ----------
        height, width : int
            Of the frame given to the step, in px, multiples of the manifest's `size_multiple`.

        Raises
        ------
        ValueError
            A size is not a multiple of `size_multiple`.
        ModelError
            The model cannot be run at this size.
        """
        if (height, width) == self._size:
            return
        multiple = self.manifest.size_multiple
        if height % multiple or width % multiple or min(height, width) < 1:
            raise ValueError(f"{height} x {width} px is not a multiple of {multiple} px")
        self._size = None
        try:
            self._allocate(height, width)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"the model {self.name} cannot be run at {height} x {width} px ({error}); "
                "use a smaller field or another model"
            ) from error
        self._size = (height, width)

    def zero_state(self) -> dict[str, np.ndarray]:
        """Make the state before the first frame, NHWC float32, at the size last asked for."""
        if self._size is None:
            raise RuntimeError("resize comes before zero_state")
        specs = self.manifest.inputs
        return {
            name: np.zeros(self._shape_at(specs[name], *self._size), np.float32)
            for name in self.manifest.state
        }

    def run(self, inputs: dict[str, np.ndarray], image: bool = True) -> dict[str, np.ndarray]:
        """Make one step.

        Parameters
        ----------
        inputs : dict of str to ndarray
            Every input of the manifest, float32, NHWC where it has four axes.
        image : bool
            Whether the image is wanted. Without it the state is the same to the bit, and a model
            that comes with its recurrence makes it in less time.

        Returns
        -------
        dict of str to ndarray
            Every output of the manifest, or those of the state alone, float32; the caller owns
            them.

        Raises
        ------
        ModelError
            The runtime failed, or refuses an input.
        """
        runner = self._whole if image or self._recurrence is None else self._recurrence
        wanted = set(self.manifest.outputs if image else self.manifest.state.values())
        try:
            return runner.run(inputs, wanted)
        except (RuntimeError, ValueError) as error:  # ValueError: an input of another shape or type
            raise ModelError(
                f"the model {self.name} failed ({error}); check it against another model file"
            ) from error

    def _allocate(self, height: int, width: int) -> None:
        shapes = {
            name: self._shape_at(spec, height, width) for name, spec in self.manifest.inputs.items()
        }
        for runner in (self._whole, self._recurrence):
            if runner is not None:
                runner.allocate(shapes)

    def _shape_at(self, spec: TensorSpec, height: int, width: int) -> tuple[int, ...]:
        """Scale a tensor's shape with the field; only tensors of four axes have one."""
        if len(spec.shape) != 4:
            return spec.shape
        made_height, made_width = self.manifest.height_width
        batch, rows, columns, channels = spec.shape
        return batch, rows * height // made_height, columns * width // made_width, channels


@dataclass(frozen=True)
class _Runner:
    """An interpreter, and the numbers of its signature's tensors by their names."""

    interpreter: Any
    inputs: dict[str, int]
    outputs: dict[str, int]

    def allocate(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, index in self.inputs.items():
            self.interpreter.resize_tensor_input(index, shapes[name])
        self.interpreter.allocate_tensors()

    def run(self, values: dict[str, np.ndarray], wanted: set[str]) -> dict[str, np.ndarray]:
        for name, index in self.inputs.items():
            self.interpreter.set_tensor(index, values[name])
        self.interpreter.invoke()
        return {
            name: self.interpreter.get_tensor(index)
            for name, index in self.outputs.items()
            if name in wanted
        }


def load_step(path: Path | None = None, threads: int = 1, runtime: Runtime = "auto") -> Step:
    """Check a model file against its manifest and make it ready to run.

    Parameters
    ----------
    path : Path, optional
        The ``.tflite`` file, its manifest beside it; default is the newest int8 model of ours.
    threads : int
        Threads that one step may use; 0 is `usable_threads`. The result does not depend on it.
    runtime : str
        Package that is to run the model; ``auto`` is the first that is installed.

    Raises
    ------
    ModelError
        There is no such model or no such runtime, or the model is not what its manifest says.
    """
    path = path or newest_model(MODELS_DIR)
    content = _read(path, "model file")
    manifest_path = path_of_manifest(path)
    fields = _parsed(_read(manifest_path, "manifest"), str(manifest_path))
    manifest = _validated(fields, manifest_path)
    form, sha256 = _check_file(path, content, manifest.files, manifest_path)
    _check_embedded(path, content, fields)
    options = threads or usable_threads(), runtime
    interpreter = _interpreter(path, content, *options)
    recurrence = None
    part = manifest.recurrences.get(form)
    # Who took the model's file and its manifest alone has all that is needed, but for the time.
    if part is not None and (beside := path.with_name(part.file)).exists():
        content = _read_listed(beside, "model file", manifest.recurrences, manifest_path)
        recurrence = _interpreter(beside, content, *options)
    finds_psf = _small_networks(
        *(path, "PSF width estimator", manifest.psf_width, manifest_path, psf_width.load),
        without="a PSF whose width nobody gives stays unknown",
    )
    tells_error = _small_networks(
        *(path, "error estimator", manifest.expected_error, manifest_path, expected_error.load),
        without="how far an image may be off stays unknown",
    )
    of_file = interpreter, path.stem, sha256, path.parent
    return Step(manifest, *of_file, recurrence, finds_psf, tells_error)


def _small_networks(
    path: Path,
    what: str,
    entry: ModelFile | None,
    manifest_path: Path,
    load: Callable[[bytes], Any],
    without: str,
) -> Any:
    """Read what a manifest's entry names, where it lies beside the model's file."""
    if entry is None:
        return None
    beside = path.with_name(entry.file)
    if not beside.exists():
        _log.warning("%s is not there: %s", beside, without)
        return None
    content = _read_listed(beside, what, {what: entry}, manifest_path)
    try:
        return load(content)
    except ValueError as error:
        raise ModelError(f"{beside} cannot be used: {error}; copy it again") from error


def _read_listed(path: Path, what: str, listed: dict[str, ModelFile], manifest_path: Path) -> bytes:
    """Read a file of a manifest's list, and check it against its entry."""
    content = _read(path, what)
    _check_file(path, content, listed, manifest_path)
    return content


def usable_threads() -> int:
    """Count the cores that this process may use, at most 4: a step gains little from more."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))


def newest_model(folder: Path) -> Path:
    """Find the int8 model of the highest version in a folder.

    Raises
    ------
    ModelError
        There is none.
    """
    versions = {}
    for path in folder.glob("*-int8.tflite"):
        if match := _FILE_NAME.fullmatch(path.name):
            versions[tuple(int(part) for part in match["version"].split("."))] = path
    if not versions:
        raise ModelError(
            f"no model is in {folder}, where learn2sofi-VERSION-int8.tflite was expected; "
            "name a model file with --model"
        )
    return versions[max(versions)]


def embedded_manifest(content: bytes) -> bytes | None:
    """Read the manifest inside a model file; None where it has none.

    Raises
    ------
    ModelError
        The file is no TensorFlow Lite model.
    """
    if content[4:8] != b"TFL3":
        raise ModelError("this is no TensorFlow Lite model: give a .tflite file of a release")
    try:
        return _metadata(content, EMBEDDED_NAME)
    except (struct.error, UnicodeDecodeError) as error:
        raise ModelError("the model file is damaged: copy it again") from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(
            f"the {what} {path} cannot be read ({reason}); "
            "give a .tflite file that has its manifest (.json) beside it"
        ) from error


def path_of_manifest(path: Path) -> Path:
    """Say where the manifest of a model file is.

    Raises
    ------
    ModelError
        The file's name is not like that of a release.
    """
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        raise ModelError(
            f"the name of the model file {path} is not NAME-VERSION-FORM.tflite, "
            "so that its manifest NAME-VERSION.json cannot be found; keep the name it came with"
        )
    return path.with_name(f"{match['stem']}.json")


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:  # both bad JSON and bad UTF-8
        raise ModelError(f"the manifest {where} is not JSON ({error}); copy it again") from error
    if not isinstance(fields, dict):
        raise ModelError(f"the manifest {where} is not a JSON object; copy it again")
    return fields


def _validated(fields: dict[str, Any], where: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"the manifest {where} has a wrong field {field} ({first['msg']}); "
            "use the manifest that came with the model, or a newer learn2sofi"
        ) from error
    for problem in _contradictions(manifest):
        raise ModelError(f"the manifest {where} {problem}; use the one that came with the model")
    return manifest


def _contradictions(manifest: Manifest) -> list[str]:
    """List what the manifest says against itself, or asks of the device that it cannot do."""
    inputs, outputs, state = manifest.inputs, manifest.outputs, manifest.state
    problems = [
        f"asks for the input {name}, which this version cannot fill"
        for name in sorted(set(inputs) - FILLABLE_INPUTS - set(state))
    ]
    if "frame" not in inputs or "image" not in outputs:
        return [*problems, "lacks the input frame or the output image"]
    for into, out in state.items():
        if into not in inputs or out not in outputs or inputs[into].shape != outputs[out].shape:
            problems.append(f"names a state {into} <- {out} that is no pair of equal tensors")
    if manifest.output_filter and manifest.upsampling % 2:
        problems.append("asks for a filter, which takes images of an even upsampling")
    return problems + _wrong_shapes(manifest)


def _wrong_shapes(manifest: Manifest) -> list[str]:
    """List the images whose shapes are not what frame, upsampling and multiple make them."""
    frame = manifest.inputs["frame"].shape
    if len(frame) != 4 or frame[0] != 1 or frame[3] != 1:
        return [f"gives the input frame the shape {list(frame)} instead of [1, H, W, 1]"]
    up = manifest.upsampling
    expected = {"image": (1, up * frame[1], up * frame[2], 1)}
    expected |= {name: frame for name in ("mean", "previous")}
    specs = {**manifest.inputs, **manifest.outputs}
    return [
        f"gives {name} the shape {list(specs[name].shape)} where {list(shape)} is expected"
        for name, shape in expected.items()
        if name in specs and specs[name].shape != shape
    ]


def _check_file(
    path: Path, content: bytes, files: dict[str, ModelFile], manifest_path: Path
) -> tuple[str, str]:
    """Compare the file with its entry in the manifest; return the form's name and the checksum."""
    entries = {form: entry for form, entry in files.items() if entry.file == path.name}
    if not entries:
        raise ModelError(
            f"the manifest {manifest_path} does not list {path.name}; "
            "use a model file together with the manifest it came with"
        )
    form, entry = next(iter(entries.items()))
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != entry.sha256 or len(content) != entry.bytes:
        raise ModelError(
            f"the model file {path} has the checksum {sha256[:12]}... where its manifest says "
            f"{entry.sha256[:12]}...; it is damaged or not of this release: copy it again"
        )
    return form, sha256


def _check_embedded(path: Path, content: bytes, beside: dict[str, Any]) -> None:
    embedded = embedded_manifest(content)
    if embedded is None:
        raise ModelError(
            f"the model file {path} has no manifest inside; use a file of a learn2sofi release"
        )
    inside = _parsed(embedded, f"inside {path}")
    outside = {name: value for name, value in beside.items() if name not in _BESIDE_ONLY}
    different = sorted(
        name for name in inside.keys() | outside.keys() if inside.get(name) != outside.get(name)
    )
    if different:
        raise ModelError(
            f"the manifest beside {path} and the one inside it differ in {', '.join(different)}; "
            "use the manifest that came with the model"
        )


def _interpreter(path: Path, content: bytes, threads: int, runtime: Runtime) -> Any:
    interpreter_class = _interpreter_class(runtime)
    try:
        return interpreter_class(model_content=content, num_threads=threads)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the runtime refuses the model file {path} ({error}); "
            "use a model of this release, or a newer runtime"
        ) from error


def _interpreter_class(runtime: Runtime = "auto") -> Any:
    for name, module in _RUNTIMES.items():
        if runtime not in ("auto", name):
            continue
        try:
            return importlib.import_module(module).Interpreter
        except ImportError:
            continue
    if runtime != "auto":
        raise ModelError(
            f"the runtime {runtime} is not installed, or does not load here: install it, "
            "or set runtime to auto"
        )
    raise ModelError(
        "no runtime for the model is installed: install ai-edge-litert, "
        "or tflite-runtime where there is no build of it"
    )


def _checked_recurrence(
    manifest: Manifest, interpreter: Any
) -> tuple[dict[str, int], dict[str, int]]:
    """Do as `_checked_tensors` with the part that makes the state alone, of some of the inputs."""
    known = {}
    if manifest.signature in interpreter.get_signature_list():
        known = interpreter.get_signature_runner(manifest.signature).get_input_details()
    inputs = {name: spec for name, spec in manifest.inputs.items() if name in known}
    outputs = {name: manifest.outputs[name] for name in manifest.state.values()}
    part = manifest.model_copy(update={"inputs": inputs, "outputs": outputs})
    return _checked_tensors(part, interpreter)


def _checked_tensors(manifest: Manifest, interpreter: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Compare the signature's tensors with the manifest's; return their indices by name."""
    if manifest.signature not in interpreter.get_signature_list():
        raise ModelError(
            f"the model has no signature {manifest.signature}, which its manifest names; "
            "use the manifest that came with the model"
        )
    runner = interpreter.get_signature_runner(manifest.signature)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    _compare("inputs", manifest.inputs, inputs)
    _compare("outputs", manifest.outputs, outputs)
    # `resize_tensor_input` and `set_tensor` reach the main graph only.
    indices = {name: int(details["index"]) for name, details in inputs.items()}
    if set(indices.values()) != {int(d["index"]) for d in interpreter.get_input_details()}:
        raise ModelError(
            f"the signature {manifest.signature} is not the model's main graph; "
            "export the model with this one signature"
        )
    return indices, {name: int(details["index"]) for name, details in outputs.items()}


def _compare(side: str, specs: dict[str, TensorSpec], details: dict[str, Any]) -> None:
    if specs.keys() != details.keys():
        raise ModelError(
            f"the model has the {side} {sorted(details)} where its manifest says "
            f"{sorted(specs)}; use the manifest that came with the model"
        )
    for name, spec in specs.items():
        shape = tuple(int(length) for length in details[name]["shape"])
        dtype = np.dtype(details[name]["dtype"]).name
        if (shape, dtype) != (spec.shape, spec.dtype):
            raise ModelError(
                f"the model's {name} is {dtype} {list(shape)} where its manifest says "
                f"{spec.dtype} {list(spec.shape)}; use the manifest that came with the model"
            )


# The few lines of FlatBuffers needed to find one block of metadata: tflite-runtime brings no
# reader, and that of ai-edge-litert takes longer to import than all the rest of the daemon.
# Field numbers are those of the TensorFlow Lite schema: Model.buffers 4 and .metadata 6;
# Metadata.name 0 and .buffer 1; Buffer.data 0.


def _metadata(content: bytes, name: str) -> bytes | None:
    model = _offset(content, 0)
    for entry in _tables(content, _field(content, model, 6)):
        if _vector(content, _field(content, entry, 0)).decode() == name:
            position = _field(content, entry, 1)
            number = struct.unpack_from("<I", content, position)[0] if position else 0
            buffers = _tables(content, _field(content, model, 4))
            if number >= len(buffers):
                raise struct.error("no such buffer")
            return _vector(content, _field(content, buffers[number], 0))
    return None


def _offset(content: bytes, position: int) -> int:
    """Follow the relative reference at a position."""
    return position + int(struct.unpack_from("<I", content, position)[0])


def _field(content: bytes, table: int, number: int) -> int:
    """Find the position of a table's field; 0 where the field has its default."""
    vtable = table - struct.unpack_from("<i", content, table)[0]
    (length,) = struct.unpack_from("<H", content, vtable)
    entry = 4 + 2 * number
    if entry >= length:
        return 0
    (offset,) = struct.unpack_from("<H", content, vtable + entry)
    return table + offset if offset else 0


def _tables(content: bytes, field: int) -> list[int]:
    """Find the positions of the tables in a vector of tables."""
    if not field:
        return []
    start = _offset(content, field)
    (count,) = struct.unpack_from("<I", content, start)
    struct.unpack_from("<I", content, start + 4 * count)  # the whole vector lies in the file
    return [_offset(content, start + 4 + 4 * number) for number in range(count)]


def _vector(content: bytes, field: int) -> bytes:
    """Copy a vector of bytes or a string."""
    if not field:
        return b""
    start = _offset(content, field)
    (count,) = struct.unpack_from("<I", content, start)
    return content[start + 4 : start + 4 + count]
