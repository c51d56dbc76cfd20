"""What Prometheus reads at `/metrics`: the pipeline's state in base units, nothing kept twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from device.pipeline import Pipeline

_COUNTERS = {
    "frames_captured": "Frames that the camera delivered.",
    "frames_processed": "Frames fed to the network.",
    "frames_skipped": "Frames passed over because a newer one came first.",
    "frames_missed": "Frames that never arrived, from the gaps in the sensor's timestamps.",
    "reconstructions": "Reconstructed images.",
}
_GAUGES = {
    "fps_camera": ("camera_frame_rate_hertz", "Frames from the camera per second."),
    "fps_reconstruction": ("reconstruction_rate_hertz", "Reconstructions per second."),
    "frame_interval_s": ("frame_interval_seconds", "Nominal time between two frames."),
    "last_frame_age_s": ("last_frame_age_seconds", "Time since the newest frame came."),
    "uptime_s": ("uptime_seconds", "Time since the start."),
}


class PipelineCollector(Collector):
    """Turns one reading of `Pipeline.state` into metrics, at each scrape.

    Parameters
    ----------
    pipeline : Pipeline
        What is watched.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def collect(self) -> Iterator[Metric]:
        """Read the state once, so that the numbers of one scrape agree with each other."""
        state = self._pipeline.state()
        yield from _counters(state)
        yield from _gauges(state)
        yield _gauge("healthy", "1 while frames come, else 0.", float(self._pipeline.healthy()))
        yield _latency(state["latency_ms"])
        yield _info(state)


def make_registry(pipeline: Pipeline) -> CollectorRegistry:
    """Make a registry that holds this pipeline and nothing else."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PipelineCollector(pipeline))
    return registry


def _counters(state: Mapping[str, Any]) -> Iterator[Metric]:
    for key, text in _COUNTERS.items():
        yield CounterMetricFamily(f"learn2sofi_{key}", text, value=state[key])
    discarded = CounterMetricFamily(
        "learn2sofi_frames_discarded", "Frames that were not fed, by reason.", labels=["reason"]
    )
    for reason, number in state["frames_discarded"].items():
        discarded.add_metric([reason], number)
    yield discarded


def _gauges(state: Mapping[str, Any]) -> Iterator[Metric]:
    for key, (name, text) in _GAUGES.items():
        if state[key] is not None:
            yield _gauge(name, text, state[key])
    buffer = state["buffer"]
    yield _gauge("buffer_frames", "Frames in the buffer.", buffer["length"])
    yield _gauge("buffer_capacity_frames", "Frames the buffer can hold.", buffer["capacity"])


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"learn2sofi_{name}", text, value=value)


def _latency(latency_ms: Mapping[str, float | None]) -> Metric:
    text = "Time from a frame's arrival to its result, over the last few hundred frames."
    latency = GaugeMetricFamily("learn2sofi_latency_seconds", text, labels=["quantile"])
    for key, quantile in (("p50", "0.5"), ("p95", "0.95")):
        value_ms = latency_ms[key]
        if value_ms is not None:
            latency.add_metric([quantile], value_ms / 1000)
    return latency


def _info(state: Mapping[str, Any]) -> Metric:
    model = state["model"]
    labels = {
        "version": version("learn2sofi"),
        "mode": state["mode"],
        "model": model["name"],
        "model_sha256": model["sha256"],
    }
    return InfoMetricFamily("learn2sofi", "What is running.", value=labels)
