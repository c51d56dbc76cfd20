"""A model is what its manifest says, or it is refused with a sentence.

The stand-in model's numbers can be told beforehand: its image shows frame and mean in alternating
columns, h collects frames, c counts steps.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import Builder

from device import model
from device.model import EMBEDDED_NAME, ModelError, Step, embedded_manifest, load_step
from training.recurrence import recurrence

NAME = "stand_in-1.2.0-int8.tflite"


def manifest_fields() -> dict:
    frame, state = {"shape": [1, 32, 32, 1]}, {"shape": [1, 16, 16, 4]}
    return {
        "format": 1,
        "name": "stand_in",
        "version": "1.2.0",
        "signature": "step",
        "frames": 30,
        "upsampling": 2,
        "size_multiple": 2,
        "inputs": {"frame": frame, "mean": frame, "h": state, "c": state},
        "outputs": {"image": {"shape": [1, 64, 64, 1]}, "h_out": state, "c_out": state},
        "state": {"h": "h_out", "c": "c_out"},
        "normalization": {
            "background_percentile": 5.0,
            "scale_percentile": 99.5,
            "min_contrast_sem": 3.0,
        },
        "psf_sigma_px": [1.0, 2.6],
        "pixel_size_nm": None,
        "training": {"seed": 7},
    }


@pytest.fixture(scope="module")
def bare_model() -> bytes:
    """The stand-in as TensorFlow converts it, without a manifest."""
    import tensorflow as tf

    class Net(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec((1, 32, 32, 1), name="frame"),
                tf.TensorSpec((1, 32, 32, 1), name="mean"),
                tf.TensorSpec((1, 16, 16, 4), name="h"),
                tf.TensorSpec((1, 16, 16, 4), name="c"),
            ]
        )
        def step(self, frame, mean, h, c):
            image = tf.nn.depth_to_space(tf.concat([frame, mean, frame, mean], -1), 2)
            h_out = h + tf.nn.space_to_depth(frame, 2)
            return {"image": image, "h_out": h_out, "c_out": c + 1.0}

    net = Net()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [net.step.get_concrete_function()], net
    )
    content = converter.convert()
    return _edited(content, lambda tables: setattr(tables.signatureDefs[0], "signatureKey", "step"))


def _edited(content: bytes, edit) -> bytes:
    """Change a model's tables and pack it again."""
    tables = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    edit(tables)
    builder = Builder(len(content))
    builder.Finish(tables.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _embed(content: bytes, fields: dict) -> bytes:
    def add(tables) -> None:
        buffer = schema.BufferT()
        text = json.dumps(fields).encode()
        buffer.data = np.frombuffer(text, np.uint8)
        entry = schema.MetadataT()
        entry.name, entry.buffer = EMBEDDED_NAME, len(tables.buffers)
        tables.buffers.append(buffer)
        tables.metadata = [*(tables.metadata or []), entry]

    return _edited(content, add)


@pytest.fixture
def write_model(tmp_path: Path, bare_model: bytes):
    """Write a pair of model and manifest; what is embedded and what lies beside can differ."""

    def write(beside: dict | None = None, inside: dict | None = None, name: str = NAME) -> Path:
        beside = beside or manifest_fields()
        content = _embed(bare_model, inside or beside)
        entry = {
            "file": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
        path = tmp_path / name
        path.write_bytes(content)
        stem = name.removesuffix(".tflite").rsplit("-", 1)[0]
        pair = json.dumps({**beside, "files": {"int8": entry}})
        (tmp_path / f"{stem}.json").write_text(pair)
        return path

    return write


def _replaced(path: Path, content: bytes, kind: str) -> None:
    """Write another content into a file, and its checksum into the manifest's list of that kind."""
    path.write_bytes(content)
    manifest = path.with_name("stand_in-1.2.0.json")
    fields = json.loads(manifest.read_text())
    sha256 = hashlib.sha256(content).hexdigest()
    fields[kind]["int8"] |= {"sha256": sha256, "bytes": len(content)}
    manifest.write_text(json.dumps(fields))


def _refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_step(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_good_pair_loads_and_knows_itself(write_model):
    """Mutation: the name or checksum of another file is kept."""
    path = write_model()
    step = load_step(path)
    assert step.name == "stand_in-1.2.0-int8"
    assert step.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert step.manifest.version == "1.2.0"
    numbers = step.manifest.normalization.settings()
    assert numbers.scale_percentile == 99.5
    assert numbers.highest_peak == float("inf")  # as a manifest that names no such bound means it


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (18, 50), (128, 64)])
def test_a_step_computes_what_it_should_at_any_size(write_model, size):
    """Mutation: height and width swapped in the resized shapes; tensors bound to wrong names."""
    height, width = size
    step = load_step(write_model())
    step.resize(height, width)
    rng = np.random.default_rng(1)
    frame, mean = rng.random((2, 1, height, width, 1), np.float32)
    state = step.zero_state()
    for _ in range(2):
        outputs = step.run({"frame": frame, "mean": mean, **state})
        state = {"h": outputs["h_out"], "c": outputs["c_out"]}
    assert outputs["image"].shape == (1, 2 * height, 2 * width, 1)
    # The stand-in only copies and adds small whole numbers of floats: exact.
    np.testing.assert_array_equal(outputs["image"][0, ::2, ::2, 0], frame[0, :, :, 0])
    np.testing.assert_array_equal(outputs["image"][0, ::2, 1::2, 0], mean[0, :, :, 0])
    np.testing.assert_array_equal(state["c"], 2)
    np.testing.assert_array_equal(state["h"][0, :, :, 0], 2 * frame[0, ::2, ::2, 0])


def test_outputs_are_the_callers_own(write_model):
    """Mutation: views into the runtime's memory are handed out, which the next step overwrites."""
    step = load_step(write_model())
    step.resize(16, 16)
    ones = np.ones((1, 16, 16, 1), np.float32)
    first = step.run({"frame": ones, "mean": ones, **step.zero_state()})
    step.run({"frame": 2 * ones, "mean": ones, **step.zero_state()})
    assert first["image"].max() == 1


@pytest.fixture
def with_recurrence(write_model, bare_model: bytes) -> Path:
    """A model that comes with the part that makes its state; returns the part's file."""
    path = write_model()
    part = path.with_suffix(".recurrence.tflite")
    content = recurrence(bare_model, ["h_out", "c_out"])
    part.write_bytes(content)
    manifest = path.with_name("stand_in-1.2.0.json")
    sha256 = hashlib.sha256(content).hexdigest()
    entry = {"file": part.name, "sha256": sha256, "bytes": len(content)}
    fields = json.loads(manifest.read_text()) | {"recurrences": {"int8": entry}}
    manifest.write_text(json.dumps(fields))
    return part


def _two_steps(step: Step, image: bool) -> dict[str, np.ndarray]:
    step.resize(16, 48)
    ones = np.ones((1, 16, 48, 1), np.float32)
    first = step.run({"frame": ones, "mean": ones, **step.zero_state()}, image)
    state = {"h": first["h_out"], "c": first["c_out"]}
    return step.run({"frame": 3 * ones, "mean": ones, **state}, image)


def test_a_step_without_an_image_makes_the_same_state(write_model, with_recurrence):
    """Mutations: the part is of another size, is not resized, or gives views into its memory."""
    step = load_step(with_recurrence.with_name(NAME))
    alone = load_step(write_model())
    assert (step.has_recurrence, alone.has_recurrence) == (True, False)
    expected = _two_steps(alone, image=True)
    for each in (step, alone):
        found = _two_steps(each, image=False)
        assert found.keys() == {"h_out", "c_out"}
        for name, value in found.items():
            np.testing.assert_array_equal(value, expected[name])
    assert _two_steps(step, image=True).keys() == {"image", "h_out", "c_out"}


def test_a_model_goes_without_its_recurrence(with_recurrence):
    """Mutation: who took the model and its manifest alone is refused."""
    with_recurrence.unlink()
    step = load_step(with_recurrence.with_name(NAME))
    assert not step.has_recurrence
    assert _two_steps(step, image=False)["c_out"].max() == 2


def test_a_damaged_recurrence_is_refused(with_recurrence):
    """Mutation: whatever lies there is run."""
    with_recurrence.write_bytes(with_recurrence.read_bytes() + b"\0")
    assert "recurrence.tflite has the checksum" in _refusal(with_recurrence.with_name(NAME))


def test_a_recurrence_of_something_else_is_refused(with_recurrence, bare_model):
    """Mutation: a part that makes an image, or lacks a state, is taken for one that does not."""
    path = with_recurrence.with_name(NAME)
    for outputs in (["h_out"], ["h_out", "c_out", "image"]):
        content = recurrence(bare_model, outputs)
        _replaced(with_recurrence, content, "recurrences")
        assert "the model has the outputs" in _refusal(path)


def test_memory_is_allocated_once_for_a_size(write_model, monkeypatch):
    """Mutation: every step resizes, as the runtime's own signature runner does."""
    step = load_step(write_model())
    calls = []
    interpreter = step._whole.interpreter
    allocate = interpreter.allocate_tensors
    monkeypatch.setattr(interpreter, "allocate_tensors", lambda: (calls.append(1), allocate()))
    ones = np.ones((1, 16, 16, 1), np.float32)
    for _ in range(3):
        step.resize(16, 16)
        step.run({"frame": ones, "mean": ones, **step.zero_state()})
    assert len(calls) == 1
    step.resize(32, 16)
    assert len(calls) == 2


def test_the_zero_state_is_zero_and_sized(write_model):
    """Mutation: the state keeps the size that the file was made for."""
    step = load_step(write_model())
    step.resize(64, 20)
    state = step.zero_state()
    assert set(state) == {"h", "c"}
    assert all(s.shape == (1, 32, 10, 4) and not s.any() for s in state.values())


def test_an_odd_size_is_the_callers_mistake(write_model):
    """Mutation: a size that is not a multiple is rounded down."""
    with pytest.raises(ValueError, match="multiple of 2"):
        load_step(write_model()).resize(33, 32)


def test_a_missing_model_is_refused(tmp_path):
    """Mutation: OSError reaches the user."""
    assert "cannot be read" in _refusal(tmp_path / NAME)


def test_a_missing_manifest_is_refused(write_model):
    """Mutation: a model without a manifest is run all the same."""
    path = write_model()
    path.with_name("stand_in-1.2.0.json").unlink()
    assert "the manifest" in _refusal(path)


def test_a_model_of_another_name_is_refused(write_model):
    """Mutation: the name's form is not checked and the manifest of no name is looked for."""
    path = write_model()
    assert "keep the name" in _refusal(path.rename(path.with_name("model.tflite")))


@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_one_changed_byte_is_refused(write_model, where):
    """Mutation: only the size, or only the beginning, is compared."""
    path = write_model()
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    assert "checksum" in _refusal(path)


def test_a_file_that_the_manifest_does_not_list_is_refused(write_model):
    """Mutation: the first entry is taken whatever its name."""
    path = write_model()
    other = path.with_name("stand_in-1.2.0-float32.tflite")
    other.write_bytes(path.read_bytes())
    assert "does not list" in _refusal(other)


def test_a_manifest_other_than_the_embedded_one_is_refused(write_model):
    """Mutation: the embedded manifest is not compared, or its training part only."""
    inside = manifest_fields()
    inside["normalization"]["scale_percentile"] = 99.0
    assert "differ in normalization" in _refusal(write_model(inside=inside))


def test_a_field_only_inside_is_refused(write_model):
    """Mutation: only the fields of the manifest beside are compared."""
    assert "differ in extra" in _refusal(write_model(inside={**manifest_fields(), "extra": 1}))


def test_a_model_without_a_manifest_inside_is_refused(write_model, bare_model):
    """Mutation: no embedded manifest counts as an equal one."""
    path = write_model()
    _replaced(path, bare_model, "files")
    assert "no manifest inside" in _refusal(path)


def _changed(**changes) -> dict:
    return {**manifest_fields(), **changes}


def _filtering(**changes: float) -> dict:
    numbers = {"notch_order": 8, "none": 0.1, "full": 0.3, "floor": 0.2}
    return _changed(output_filter=numbers | changes)


def _with_input(name: str, shape: list[int]) -> dict:
    fields = manifest_fields()
    fields["inputs"][name] = {"shape": shape}
    return fields


def _with_output(name: str, shape: list[int]) -> dict:
    fields = manifest_fields()
    fields["outputs"][name] = {"shape": shape}
    return fields


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (_changed(format=2), "wrong field format"),
        (_changed(surprise=1), "wrong field surprise"),
        (_changed(frames=1), "wrong field frames"),
        (_changed(version="new"), "wrong field version"),
        (_changed(signature="serve"), "no signature serve"),
        (_changed(state={"h": "h_out"}), "input c, which this version cannot fill"),
        (_changed(state={"h": "h_out", "c": "image"}), "state c <- image"),
        (_changed(upsampling=4), "image the shape"),
        (_with_input("temperature", [1]), "input temperature, which this version cannot fill"),
        (_with_input("previous", [1, 32, 32, 1]), "the model has the inputs"),
        (_with_input("mean", [1, 16, 16, 1]), "gives mean the shape"),
        (_with_input("frame", [1, 32, 32, 3]), "gives the input frame the shape"),
        (_with_output("error", [1, 64, 64, 1]), "the model has the outputs"),
        (_filtering(none=0.5, full=0.5), "wrong field output_filter"),
        (_filtering(floor=1.5), "wrong field output_filter"),
        (_filtering(notch_order=0), "wrong field output_filter"),
        ({**_filtering(), "upsampling": 3}, "asks for a filter"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(write_model, fields, words):
    """Mutation: any one of these comparisons left out (each row is one)."""
    assert words in _refusal(write_model(fields))


def test_tensors_of_another_size_are_refused(write_model):
    """Mutation: the manifest's shapes are not compared with the graph's."""
    fields = manifest_fields()
    frame, state = {"shape": [1, 64, 64, 1]}, {"shape": [1, 32, 32, 4]}
    fields["inputs"] = {"frame": frame, "mean": frame, "h": state, "c": state}
    fields["outputs"] = {"image": {"shape": [1, 128, 128, 1]}, "h_out": state, "c_out": state}
    assert "float32 [1, 32, 32, 1] where its manifest says" in _refusal(write_model(fields))


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_manifest_that_is_no_json_object_is_refused(write_model, text):
    """Mutation: the parser's error, or a list's missing fields, reach the user."""
    path = write_model()
    pair = path.with_name("stand_in-1.2.0.json")
    pair.write_bytes(text.encode(errors="surrogateescape"))
    assert "is not" in _refusal(path)


@pytest.mark.parametrize("content", [b"", b"II*\0 a TIFF", b"....TFL3", b"\xff\xff\xff\x7fTFL3"])
def test_what_is_no_model_is_refused(content):
    """Mutation: the identifier or the bounds are not checked."""
    with pytest.raises(ModelError, match="no TensorFlow Lite model|damaged"):
        embedded_manifest(content)


def test_a_cut_model_is_damaged_or_whole_in_what_was_read(write_model):
    """Mutation: reading past the end raises something that is no sentence."""
    content = write_model().read_bytes()
    whole = embedded_manifest(content)
    for length in range(8, len(content), 97):
        try:
            found = embedded_manifest(content[:length])
        except ModelError:
            continue
        assert found is None or whole.startswith(found)


def test_the_own_reader_agrees_with_the_schemas(write_model):
    """Mutation: a wrong field number in the reader finds another buffer, or none."""
    content = write_model().read_bytes()
    tables = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    (entry,) = [m for m in tables.metadata if m.name.decode() == EMBEDDED_NAME]
    assert embedded_manifest(content) == bytes(tables.buffers[entry.buffer].data)


def test_the_newest_version_is_the_default(write_model, tmp_path, monkeypatch):
    """Mutation: versions are compared as text (1.9.0 above 1.10.0), or float32 is taken."""
    for version in ("1.9.0", "1.10.0"):
        name = f"stand_in-{version}-int8.tflite"
        write_model(_changed(version=version), name=name)
    (tmp_path / "stand_in-2.0.0-float32.tflite").write_bytes(b"")
    monkeypatch.setattr(model, "MODELS_DIR", tmp_path)
    assert load_step().name == "stand_in-1.10.0-int8"


def test_an_empty_folder_has_no_model(tmp_path):
    """Mutation: max() of nothing reaches the user."""
    with pytest.raises(ModelError, match="no model is in"):
        model.newest_model(tmp_path)


def test_the_other_runtime_is_taken_where_the_first_is_missing(monkeypatch):
    """Mutation: only ai-edge-litert is ever looked for."""
    asked = []

    def missing(name: str):
        asked.append(name)
        raise ImportError(name)

    monkeypatch.setattr(model.importlib, "import_module", missing)
    with pytest.raises(ModelError, match="no runtime"):
        model._interpreter_class()
    assert asked == ["ai_edge_litert.interpreter", "tflite_runtime.interpreter"]


@pytest.mark.parametrize(
    ("asked", "cores", "given"), [(3, 16, 3), (1, 2, 1), (0, 1, 1), (0, 2, 2), (0, 16, 4)]
)
def test_0_threads_are_as_many_as_there_are_cores(write_model, monkeypatch, asked, cores, given):
    """Mutations: 0 handed on to the runtime, which makes it 1; a thread for each of 16 cores."""
    interpreter, took = model._interpreter_class(), []

    def spy(**options):
        took.append(options["num_threads"])
        return interpreter(**options)

    monkeypatch.setattr(model, "_interpreter_class", lambda *_: spy)
    monkeypatch.setattr(model.os, "sched_getaffinity", lambda _: set(range(cores)))
    load_step(write_model(), asked)
    assert took == [given]


@pytest.mark.parametrize("runtime", ["ai-edge-litert", "tflite-runtime"])
def test_the_runtime_asked_for_is_the_only_one_tried(runtime, monkeypatch):
    """Mutations: the other one taken silently; the names swapped."""
    asked = []

    def missing(name: str):
        asked.append(name)
        raise ImportError(name)

    monkeypatch.setattr(model.importlib, "import_module", missing)
    with pytest.raises(ModelError, match=f"runtime {runtime} is not installed"):
        model._interpreter_class(runtime)
    assert asked == [f"{runtime.replace('-', '_')}.interpreter"]


def test_a_step_knows_its_form_its_runtime_and_its_folder(write_model, tmp_path):
    """Mutation: the version for the form; golden windows looked for beside another model."""
    step = load_step(write_model(), runtime="ai-edge-litert")
    assert (step.form, step.runtime, step.folder) == ("int8", "ai-edge-litert", tmp_path)


def test_a_failing_runtime_is_a_sentence(write_model):
    """Mutation: RuntimeError of `invoke` reaches the reconstruction thread."""
    step = load_step(write_model())
    step.resize(16, 16)

    class Failing:
        def set_tensor(self, index, value):
            pass

        def invoke(self):
            raise RuntimeError("out of memory")

    broken = Step.__new__(Step)
    broken.__dict__.update(step.__dict__, _whole=replace(step._whole, interpreter=Failing()))
    with pytest.raises(ModelError, match="out of memory"):
        broken.run({name: np.zeros(1) for name in ("frame", "mean", "h", "c")})


def test_an_input_that_does_not_fit_is_a_sentence(write_model):
    """Mutation: the ValueError of `set_tensor` ends the reconstruction thread."""
    step = load_step(write_model())
    step.resize(32, 32)
    inputs = {name: np.zeros(spec.shape, np.float32) for name, spec in step.manifest.inputs.items()}
    inputs["frame"] = np.zeros((1, 30, 30, 1), np.float32)
    with pytest.raises(ModelError, match="failed"):
        step.run(inputs)
