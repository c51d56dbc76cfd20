"""Settings: which layer wins, what is refused, and where each came from."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from device.settings import DEFAULT_FILE, Settings, SettingsError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """Keep the tester's own settings out."""
    for name in list(os.environ):
        if name.upper().startswith("LEARN2SOFI_"):
            monkeypatch.delenv(name)


@pytest.fixture
def override(tmp_path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text('fps = 50.0\nhost = "0.0.0.0"\nport = 81\nmode = "window"\n')
    return path


def refusal(*words: str, config: Path | None = None, **cli: object) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(config, **cli)
    sentence = str(caught.value)
    assert "\n" not in sentence and caught.value.exit_code == 2
    for word in (*words, "expected"):
        assert word in sentence


def test_defaults_are_the_contract():
    """Mutation: served to the whole network by default, or another port or mode."""
    settings = Settings.load()
    assert (settings.mode, settings.host, settings.port) == ("stream", "127.0.0.1", 8000)
    assert settings.loop and settings.model is None
    assert {settings.origin(name) for name in Settings.model_fields} == {"default.toml"}


def test_default_file_and_fields_are_the_same():
    """Mutation: a setting is added to one of the two only, or gets a second default."""
    assert set(tomllib.loads(DEFAULT_FILE.read_text())) == set(Settings.model_fields)
    assert all(field.is_required() for field in Settings.model_fields.values())


def test_the_stronger_layer_wins(override, monkeypatch):
    """Mutation: any two layers exchanged."""
    monkeypatch.setenv("LEARN2SOFI_PORT", "82")
    monkeypatch.setenv("LEARN2SOFI_MODE", "stream")
    settings = Settings.load(override, mode="window", threads=None)
    origins = {name: settings.origin(name) for name in ("loop", "fps", "port", "mode", "threads")}
    assert (settings.fps, settings.port, settings.mode) == (50.0, 82, "window")
    assert origins == {
        "loop": "default.toml",
        "fps": str(override),
        "port": "environment",
        "mode": "command line",
        "threads": "default.toml",
    }


def test_text_from_outside_becomes_typed(monkeypatch):
    """Mutation: the environment's text stays text."""
    monkeypatch.setenv("LEARN2SOFI_LOOP", "false")
    settings = Settings.load(fps="12.5", model="a/b.tflite")
    assert settings.loop is False
    assert settings.fps == 12.5
    assert settings.model == Path("a/b.tflite")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fps", "0"),
        ("fps", "nan"),
        ("fps", "inf"),
        ("port", "65536"),
        ("port", "-1"),
        ("mode", "both"),
        ("threads", "-1"),
        ("host", ""),
        ("camera", ""),
        ("log_level", "loud"),
    ],
)
def test_out_of_range(name, value):
    """Mutation: a bound is left out. The sentence names setting, value and origin."""
    refusal(name, repr(value), "command line", **{name: value})


def test_unknown_setting_in_the_file(tmp_path):
    """Mutation: a misspelt setting does nothing, silently."""
    path = tmp_path / "a.toml"
    path.write_text("prot = 81")
    refusal("prot", "a.toml", "port", config=path)


@pytest.mark.parametrize("content", [b"fps 30", b"\xff\xfe"])
def test_file_that_is_no_toml(tmp_path, content):
    """Mutation: a decoding error escapes."""
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    refusal("is not TOML", config=path)


def test_missing_file(tmp_path):
    """Mutation: a missing override is no override."""
    refusal("cannot be read", "--config", config=tmp_path / "no.toml")


def test_misspelt_variable_is_told(monkeypatch, caplog):
    """Mutation: it does nothing, silently."""
    monkeypatch.setenv("LEARN2SOFI_PROT", "81")
    Settings.load()
    assert "LEARN2SOFI_PROT" in caplog.text
