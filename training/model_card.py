"""The model card and the README's figures, written from what was measured.

Nothing here is typed by hand: the tables come from ``models/learn2sofi-VERSION.evaluation.json``,
which `training.release` wrote, and a test renders the card again and compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from device.output_filter import LEAST_FRAMES
from training import calibration, lattice, location, reports, resolution, speed, sweeps
from training.accuracy import loss_table, stream_tables
from training.evaluate import ORIGINAL, REFERENCE, TWIN, Row, markdown
from training.forward_model import WINDOW

SHOWN = (
    *(REFERENCE, "standard deviation", "SOFI-2 linearized"),
    *("SRRF", "eSRRF", "RL blind on SOFI-2 linearized, 10"),
    *("RL blind, 10", "RL blind, 20", "RL blind, 80"),
    *("RL found sigma, 20", "RL found sigma, 80", "RL found sigma, 160"),
    *(ORIGINAL, TWIN),
)
KINDS = ("thin", "continuous")
PICTURES = ("resolution", "sweeps")  # beside the card, as learn2sofi-VERSION.NAME.png

CARD = """\
# {name} {version}

A recurrent step that turns a stream of camera frames of a fluctuating fluorescent sample into an
image at twice the sampling. Every figure here was written by

    python -m training release --run RUN --version {version}

(with `--twin`, `--original` and `--measured` for what is compared with and measured) on the frozen
test set, on which nothing was trained (`docs/frozen-test-set.md` says which choices knew of it).

## What it is

| | |
|---|---|
| Files | {files} |
| Parameters | {parameters}, in `learn2sofi-{version}.weights.h5` |
| Input | frame and mean image, normalized as the manifest says; sigma of the PSF, 0 where it is not known; state `h` and `c` |
| Output | image at twice the sampling; times the scale it is in ADU above background |
| Frames | a window of {frames}, or a stream without end |
| PSF it was trained for | sigma {sigma} camera px |
| PSF that nobody tells | {found_by} |
| Filter of the image | {filtered} |

## How good it is

Mean PSNR in dB over the stacks of each group, each image fitted to its truth by a factor and an
offset (`training/metrics.py`); number of stacks in brackets; *worst gain* is the smallest difference to the bicubic mean on any one stack.
RL is Richardson-Lucy deconvolution of the bicubic mean, blind with sigma 1.4 px, with the width
that our model finds in the frames (*found*: no classical method has it; where it finds none,
1.4 px), or with each stack's true PSF, which only *PSF told* is told beside it. *stream 120* has seen 120 frames of the stack, all
others its first 30. A window is played twice, as it is and transposed, and the images averaged; a
stream is played once. What is not called a stream is a window, here and below. The network in Keras
has no row: its images are the float32 file's (`tests/models` compares them). *Copies of the mean* and *shuffled in time*: the same without its fluctuation.
*Twin* (`models/twin`): the same architecture, its head trained from the same weights and as long as ours, but on
copies of the mean alone, and fed such (`docs/experiments.md`); its cell is that of these weights. What the network gains over it is what the
fluctuation gives and what one training has over the other, which `python -m training gains` tells
apart. *Original's architecture*: a ConvLSTM2D over the window, trained from random weights on our
forward model with our normalization and loss (`training/settings/original_network.toml`; ours was
trained for much longer, `docs/experiments.md`).

{table}
### int8 against float32

{int8}{accuracy}{further}{measured}
## Where not to trust it

- It is a regression to the mean of what it was trained on: where the frames hold no evidence it
  smooths; it may also sharpen what is not there. Compare with the mean image, which the live page
  shows beside it.
- A low odd/even correlation on a measured stack says that the fine structure there is noise or of
  its own making: compare it with that of the mean.
- The blind deconvolution in the table is the bar for a single image. Where the network is below it,
  the network adds nothing there but its speed.
- *Copies of the mean* and *shuffled in time* are the same window without its fluctuation, or without
  the correlation of neighbours. Both are unlike what the network was trained on, so that they are
  no proof of what the fluctuation gives. The twin, whose head knows copies alone, is nearer to one; but
  what the network gains over it where nothing fluctuates is not the fluctuation's either.
- *Unseen* groups are specimen families that training never draws; the thin ones are the honest guess
  for a new sample. The continuous ones are perforated sheets, which it does not draw either; but
  since 0.12.0 it draws round dark bodies in bright fields, because the sheets had been looked at.
- PSF widths outside the range above, saturated frames and such as were compressed as video: not
  trained, not measured. Interpolated and scaled frames and JPEGs: trained; of stacks like the
  original's, JPEGs of 8 bit, `python -m training simulated` says how good they are. A slow drift is
  trained, and measured above: from 2 px within a window on, blind deconvolution makes more of thin
  structures.

## Where it comes from

| | |
|---|---|
| Command | `{command}` |
| Revision | `{git_revision}` |
| Begun with | {begun_with} |
| Seed | {seed} |
| Settings | `learn2sofi-{version}.settings.json`, SHA-256 of the run's `{settings_sha256:.16}...` |
| Conversion | revision `{conversion_git_revision}`, calibrated on {calibration_stacks} simulated stacks, the head's activations times {head_gain:g} |
| Weights | {chosen} |
| Data | simulated without end by `training/forward_model.py`; no measured images |
| Licence | MIT |
"""  # noqa: E501 - lines of a Markdown table cannot be broken


STREAMS = """
### As a stream

On simulated specimens that neither move nor bleach (`make accuracy`): PSNR of the stream, and of a
window of the same last frames; then how a stream that nobody resets takes a specimen that is
replaced by another, or moves by 5 px. *The daemon's* begins anew where it sees another scene or a
move, with the frames that show it by then. A *ghost* is what is left of the old one's detail.
A window is played twice and a stream once: of the same frames the window is a little better. Asked
for were: 30 frames later not more than 0.3 dB below a window, 60 frames later a ghost below 2 %.

{tables}"""


def condensed(frozen: Mapping[str, Any], measured: Mapping[str, Any] | None) -> dict[str, Any]:
    """Bring `evaluate`'s files to what the card needs and the repository keeps.

    Parameters
    ----------
    frozen : mapping
        Content of ``frozen.json``.
    measured : mapping or None
        Content of ``measured.json``, where a measured stack was judged too.
    """
    psnr: dict[str, dict[str, float]] = {}
    for score in frozen["scores"]:
        psnr.setdefault(score["method"], {})[str(score["stack_id"])] = round(score["psnr_db"], 3)
    rows = [{k: _rounded(v) for k, v in row.items()} for row in frozen["rows"]]
    kept = {key: frozen[key] for key in ("generator", "frozen_version", "models", "stacks")}
    kept |= {"rows": rows, "psnr_db": psnr}
    if measured is not None:
        names = ("file", "sha256", "frames", "models", "scores")
        kept["measured"] = {key: measured[key] for key in names}
    return kept


def _rounded(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value


def rows_of(evaluation: Mapping[str, Any]) -> list[Row]:
    """Return the rows of the table: some baselines and every form of the model."""
    ours = tuple(evaluation["models"])
    rows = [Row(**row) for row in evaluation["rows"]]
    return [r for r in rows if r.method in SHOWN or "true" in r.method or r.method.startswith(ours)]


def int8_losses(evaluation: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Mode to the mean and the worst difference of int8 to float32 over all stacks, dB."""
    psnr = evaluation["psnr_db"]
    losses = {}
    for method in psnr:
        if "-int8" not in method:
            continue
        twin = psnr[method.replace("-int8", "-float32")]
        differences = [value - twin[stack] for stack, value in psnr[method].items()]
        mode = method.partition(", ")[2]
        losses[mode] = (sum(differences) / len(differences), min(differences))
    return losses


def render_card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any], parameters: int) -> str:
    """Write the model card, Markdown."""
    files = ", ".join(f"`{f['file']}` ({f['bytes']:,} bytes)" for f in manifest["files"].values())
    training = manifest["training"]
    return CARD.format(
        name=manifest["name"],
        version=manifest["version"],
        files=files,
        parameters=f"{parameters:,}",
        frames=manifest["frames"],
        sigma="{} to {}".format(*manifest["psf_sigma_px"]),
        found_by=_found_by(manifest),
        filtered=_filtered(manifest),
        table=markdown(rows_of(evaluation)),
        int8=_int8(evaluation),
        accuracy=_accuracy(evaluation),
        further=_further(evaluation, f"{manifest['name']}-{manifest['version']}"),
        measured=_measured(evaluation),
        chosen=_chosen(training),
        begun_with=_begun_with(training),
        **training,
    )


def _int8(evaluation: Mapping[str, Any]) -> str:
    """Lay out what int8 loses: with SSIM and the worst stacks' names, where these were measured."""
    if "accuracy" in evaluation:
        return loss_table(evaluation["accuracy"])
    losses = int8_losses(evaluation).items()
    rows = [[mode, f"{mean:+.3f}", f"{worst:+.3f}"] for mode, (mean, worst) in losses]
    return reports.table(["int8 less float32", "PSNR, dB, mean", "worst stack"], rows)


def _filtered(manifest: Mapping[str, Any]) -> str:
    """Say what the device takes out of the network's image."""
    numbers = manifest.get("output_filter")
    if not numbers:
        return "none"
    return (
        f"`device/output_filter.py`: a notch of order {numbers['notch_order']} at half a cycle per "
        f"output px; what odd and even frames show with a correlation below {numbers['full']:.2f} "
        f"is damped, down to {numbers['floor']:g} at {numbers['none']:.2f}; all figures of ours "
        "and of the twin are of filtered images, with the notch alone where there were fewer than "
        f"{LEAST_FRAMES} frames in a window, or {2 * WINDOW - 1} in a stream since it began"
    )


def _found_by(manifest: Mapping[str, Any]) -> str:
    """Say what becomes of a PSF whose width nobody tells."""
    if not manifest.get("psf_width"):
        return "is unknown to the network"
    return (
        f"is found in the frames by `{manifest['psf_width']['file']}` where they tell it "
        "(`device/psf_width.py`), as in all rows that are not *PSF told*"
    )


def _begun_with(training: Mapping[str, Any]) -> str:
    """Say which weights the run began with, and those of that run in turn."""
    if "initial" not in training:
        return "random weights"
    initial = training["initial"]
    return (
        f"the best weights of `{initial['command']}` at revision `{initial['git_revision']}`, "
        f"seed {initial['seed']}{_shrunk(initial)}, begun with {_begun_with(initial)}"
    )


def _shrunk(training: Mapping[str, Any]) -> str:
    """Say that the weights were shrunk; empty where they were not."""
    part = training.get("shrinkage")
    return f", its estimates from the whole image shrunk by {part:g} (`shrinkage`)" if part else ""


def _chosen(training: Mapping[str, Any]) -> str:
    """Say which weights of the run these are."""
    if training["weights"] == "final":
        return "those at the end of the run"
    return (
        f"the best of all validations, after {training['updates']} updates: "
        f"{training['validation_db']:.2f} dB on other specimens of its own forward model "
        f"(bicubic mean {training['mean_db']:.2f} dB){_shrunk(training)}"
    )


def _accuracy(evaluation: Mapping[str, Any]) -> str:
    """Section on what int8 costs and how a stream lives; empty where that was not measured."""
    if "accuracy" not in evaluation:
        return ""
    return STREAMS.format(tables=stream_tables(evaluation["accuracy"]))


def _further(evaluation: Mapping[str, Any], stem: str) -> str:
    """Sections on resolution, sweeps, lattice, location, errors and speed, where measured."""
    pictures = {name: f"{stem}.{name}.png" for name in PICTURES}
    parts = []
    if "resolution" in evaluation:
        parts.append(resolution.section(evaluation["resolution"], pictures["resolution"]))
    if "sweeps" in evaluation:
        parts.append(sweeps.section(evaluation["sweeps"], pictures["sweeps"]))
    if "lattice" in evaluation:
        parts.append(lattice.section(evaluation["lattice"]))
    if "location" in evaluation:
        parts.append(location.section(evaluation["location"]))
    if "calibration" in evaluation:
        parts.append(calibration.section(evaluation["calibration"]))
    if "speed" in evaluation:
        parts.append(speed.section(evaluation["speed"]))
    return "".join(parts)


def _measured(evaluation: Mapping[str, Any]) -> str:
    """Section on a measured stack; empty where none was judged."""
    if "measured" not in evaluation:
        return ""
    measured = evaluation["measured"]
    scores = measured["scores"]
    shown = [m for m in scores if m in SHOWN or m.startswith(tuple(evaluation["models"]))]
    reference = scores[REFERENCE]["sharpness"]
    lines = [
        "\n### On a measured stack\n",
        f"`{measured['file']}` (not distributed; SHA-256 `{measured['sha256']}`). RSP is near 1",
        "for whatever resembles the mean, odd/even for whatever is smooth; S, relative to the",
        "bicubic mean's, rises only with what both halves of the frames agree on.\n",
        "| method | RSP | odd/even | S / S(mean) |",
        "|---|---:|---:|---:|",
    ]
    for method in shown:
        s = scores[method]
        relative = s["sharpness"] / reference
        lines.append(f"| {method} | {s['rsp']:.3f} | {s['odd_even']:.3f} | {relative:.2f} |")
    return "\n".join(lines) + "\n"


def render_summary(evaluation: Mapping[str, Any]) -> str:
    """Write the README's short table: PSNR by kind."""
    table = {(row.method, row.group): row for row in rows_of(evaluation)}
    lines = ["| PSNR, dB | thin | continuous | worst against the mean |", "|---|---:|---:|---:|"]
    for method in dict.fromkeys(method for method, _ in table):
        rows = [table[method, kind] for kind in KINDS]
        worst = min(row.worst_gain_db for row in rows)
        cells = " | ".join(f"{row.psnr_db:.2f}" for row in rows)
        lines.append(f"| {method} | {cells} | {worst:+.2f} |")
    return "\n".join(lines) + "\n"


def replace_block(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` in a file.

    Raises
    ------
    ValueError
        The file has no such block.
    """
    content = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name}\b[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(content):
        raise ValueError(f"{path} has no block {name}")
    path.write_text(pattern.sub(lambda m: m[1] + text + m[2], content), encoding="utf-8")


def load(models: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the manifest and the evaluation of the one model in a folder."""
    (path,) = models.glob("learn2sofi-*.evaluation.json")
    manifest = path.with_name(path.name.replace(".evaluation.json", ".json"))
    return json.loads(manifest.read_text()), json.loads(path.read_text())
