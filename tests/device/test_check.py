"""What `learn2sofi check` finds, on made-up file systems and firmware flags."""

from __future__ import annotations

import pytest

from device import check, cli
from device.check import Warden, find_cma, find_device, find_throttling, find_users, read_throttled


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


def test_flags_are_read_as_hexadecimal(tmp_path):
    """Mutation: read as decimal; an absent file taken for 0."""
    assert read_throttled(tmp_path) is None
    file = tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    file.parent.mkdir(parents=True)
    file.write_text("50005\n")
    assert read_throttled(tmp_path) == 0x50005


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
    """Mutation: a good camera found wrong; another machine's heat is not this test's matter."""
    monkeypatch.setattr(check, "read_throttled", lambda root: None)
    assert cli.main(["check", "--camera", "demo"]) == 0
    assert capsys.readouterr().out.startswith("ok")


def test_what_is_wrong_is_named_and_the_code_is_1(monkeypatch, capsys):
    """Mutation: exit code 0 although something is wrong."""
    monkeypatch.setattr(check, "read_throttled", lambda root: 0x1)
    assert cli.main(["check", "--camera", "demo"]) == 1
    captured = capsys.readouterr()
    assert "WRONG now: under-voltage" in captured.out
    assert "1 of 2 checks" in captured.err
