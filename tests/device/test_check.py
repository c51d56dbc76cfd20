"""What `learn2sofi check` finds, on made-up file systems and firmware flags."""

from __future__ import annotations

import pytest

from device import check, cli
from device.check import (
    Warden,
    find_cma,
    find_device,
    find_throttling,
    find_users,
    is_pi,
    read_throttled,
)


def _subdevice(root, number: int, name: str) -> None:
    folder = root / f"sys/class/video4linux/v4l-subdev{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")


def test_a_sensor_that_the_kernel_knows(tmp_path):
    """Mutations: a Pi's codecs, its receiver or the motor of a lens taken for a camera."""
    for number, name in enumerate(("csi2", "pisp-fe", "rp1-cfe-fe_image0", "dw9807 10-000c")):
        _subdevice(tmp_path, number, name)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "media0").touch()
    assert not find_device(tmp_path).good
    _subdevice(tmp_path, 7, "imx477 10-001a")
    finding = find_device(tmp_path)
    assert finding.good
    assert finding.text == "the kernel knows the sensor imx477"


@pytest.mark.parametrize(
    ("folder", "config", "words"),
    [
        (None, "", "camera_auto_detect=1"),
        ("boot/firmware", "#camera_auto_detect=1\n", "looks for none"),
        ("boot/firmware", "camera_auto_detect=0\n", "looks for none"),
        ("boot/firmware", "[all]\ncamera_auto_detect=1  # the usual\n", "the cable"),
        ("boot", "dtoverlay=ov9281\n", "the cable"),
    ],
)
def test_not_enabled_is_told_from_a_wrong_cable(tmp_path, folder, config, words):
    """Mutations: one advice for both; a line that is commented out taken for one that holds."""
    if folder:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.txt").write_text(config)
    finding = find_device(tmp_path)
    assert not finding.good
    assert words in finding.text


def test_who_uses_the_camera_is_named(tmp_path):
    """Mutations: any open file taken for a camera; the process not named."""
    for number, name, target in ((4711, "rpicam-vid", "/dev/video0"), (12, "sh", "/dev/null")):
        process = tmp_path / "proc" / str(number)
        (process / "fd").mkdir(parents=True)
        (process / "comm").write_text(f"{name}\n")
        (process / "fd" / "3").symlink_to(target)
    finding = find_users(tmp_path)
    assert not finding.good
    assert "rpicam-vid (process 4711)" in finding.text
    assert "(process 12)" not in finding.text
    free = find_users(tmp_path, is_free=True)
    assert free.good
    assert "rpicam-vid (process 4711)" in free.text


@pytest.mark.parametrize(("total_kib", "good"), [(65_536, True), (32_768, False), (0, False)])
def test_contiguous_memory(tmp_path, total_kib, good):
    """Mutations: kB taken for MB; a kernel without CMA passed."""
    (tmp_path / "proc").mkdir()
    lines = f"MemTotal: 8000000 kB\nCmaTotal: {total_kib} kB\nCmaFree: {total_kib // 2} kB\n"
    (tmp_path / "proc" / "meminfo").write_text(lines)
    assert find_cma(tmp_path).good is good


@pytest.mark.parametrize(("size", "good"), [("1332x990", True), ("4056x3040", False)])
def test_contiguous_memory_for_the_size_that_is_asked_for(tmp_path, size, good):
    """Mutation: the same for every size. Eight buffers of 4056 x 3040 px are 188 MiB."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("CmaTotal: 131072 kB\nCmaFree: 1000 kB\n")
    finding = find_cma(tmp_path, size)
    assert finding.good is good
    assert good or "cma-256" in finding.text


def test_heat_and_power_by_bit():
    """Mutations: bits shifted; what was, told as what is. 0x50005: under-voltage and throttled."""
    texts = [finding.text for finding in find_throttling(0x50005)]
    assert [text.startswith("now: ") for text in texts] == [True, True]
    assert "under-voltage" in texts[0]
    assert "throttled" in texts[1]
    (was,) = find_throttling(0x10000)
    assert was.text.startswith("since the start: under-voltage")
    (well,) = find_throttling(0)
    assert well.good


@pytest.mark.parametrize(
    "node",
    ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"],
    ids=["Pi 4", "Pi 5"],
)
def test_flags_are_read_as_hexadecimal(tmp_path, node):
    """Mutations: read as decimal; an absent file taken for 0; only the Pi 4's node looked for."""
    assert read_throttled(tmp_path) is None
    file = tmp_path / "sys/devices/platform" / node / "get_throttled"
    file.parent.mkdir(parents=True)
    file.write_text("50005\n")
    assert read_throttled(tmp_path) == 0x50005


def test_the_firmware_is_asked_where_the_kernel_has_no_file(tmp_path, monkeypatch):
    """Mutations: asked as something else; its answer not taken. Newer kernels have no file."""
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\ntest "$*" = get_throttled && echo throttled=0x50000\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    assert read_throttled(tmp_path) == 0x50000
    program.write_text("#!/bin/sh\necho 'Can not open device file: /dev/vcio'\nexit 255\n")
    assert read_throttled(tmp_path) is None


def test_what_cannot_be_read_is_not_well():
    """Mutation: no answer of the firmware taken for one that says all is well."""
    (unknown,) = find_throttling(None)
    assert unknown.good is None
    assert unknown.text.startswith("power and heat: cannot be read")


@pytest.mark.parametrize(
    ("model", "expected"), [("Raspberry Pi 5 Model B Rev 1.0\0", True), ("a desk", False)]
)
def test_the_page_misses_the_flags_on_a_pi_alone(tmp_path, model, expected):
    """Mutations: silence on a Pi that does not tell; a warning on every laptop."""
    assert not is_pi(tmp_path)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text(model)
    warnings = Warden(lambda: None, is_pi=lambda: is_pi(tmp_path)).warnings()
    assert [text.partition(";")[0] for text in warnings] == [
        "power and heat: cannot be read"
    ] * expected


def test_the_warden_asks_seldom():
    """Mutations: a process started for every request; an old answer kept for ever."""
    now_s, asked, flags = 0.0, [], 0x1

    def read() -> int:
        asked.append(now_s)
        return flags

    warden = Warden(read, lambda: now_s)
    assert len(warden.warnings()) == len(warden.warnings()) == 1
    assert asked == [0.0]
    now_s, flags = 6.0, 0
    assert warden.warnings() == []
    assert len(asked) == 2


def test_a_camera_that_works_passes(monkeypatch, capsys):
    """Mutations: a good camera found wrong; a machine that does not tell its heat wrong, or well.

    Another machine's heat is not this test's matter.
    """
    monkeypatch.setattr(check, "read_throttled", lambda root: None)
    assert cli.main(["check", "--camera", "demo"]) == 0
    heat, camera = capsys.readouterr().out.splitlines()
    assert heat.startswith("?     power and heat: cannot be read")
    assert camera.startswith("ok")


def test_what_is_wrong_is_named_and_the_code_is_1(monkeypatch, capsys):
    """Mutation: exit code 0 although something is wrong."""
    monkeypatch.setattr(check, "read_throttled", lambda root: 0x1)
    assert cli.main(["check", "--camera", "demo"]) == 1
    captured = capsys.readouterr()
    assert "WRONG now: under-voltage" in captured.out
    assert "1 of 2 checks" in captured.err
