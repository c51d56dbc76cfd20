// What the daemon says of itself: the status line, and what is wrong.

import { sentence } from "./api.js";

export const SLOW_S = 3; // without an answer; a daemon that is busy, or asleep
export const LOST_S = 20; // without an answer: nobody there, though nothing closed the socket
const PATIENCE_S = 2;
const INTERVALS = 10;

const element = (id) => document.getElementById(id);
const rate = (value) => `${(value ?? 0).toFixed(1)} fps`;
const milliseconds = (value) => (value == null ? "–" : value.toFixed(value < 10 ? 1 : 0));

function write(id, text, noteworthy = false) {
  const place = element(id);
  if (place.textContent !== text) place.textContent = text;
  place.classList.toggle("note", noteworthy);
}

/** Fill the status line. */
export function writeStatus(state, fps_screen) {
  const { length, capacity } = state.buffer;
  write("camera", state.camera.replace(/^replay:.*\//, "replay:"));
  write("fps-camera", rate(state.fps_camera));
  write("fps-reconstruction", rate(state.fps_reconstruction));
  write("fps-screen", rate(fps_screen));
  write("latency", `${milliseconds(state.latency_ms.p50)} / ${milliseconds(state.latency_ms.p95)} ms`);
  const span = state.span_ms ? ` · ${(state.span_ms / 1000).toFixed(2)} s` : "";
  write("buffer", `${length}/${capacity}${span}${length < capacity ? " warming" : ""}`, length < capacity);
  write("mode-now", state.mode);
  write("missed", String(state.frames_missed), state.frames_missed > 0);
  write("skipped", String(state.frames_skipped), state.frames_skipped > 0);
  write("model", `${state.model.name} · ${state.model.sha256.slice(0, 8)}`);
  writeWarnings([...(state.warnings ?? []), state.preparation?.warning].filter(Boolean));
  element("model").title = `SHA-256 ${state.model.sha256}`;
}

/** Say what is wrong with the machine or the optics, though images come. */
function writeWarnings(warnings) {
  element("warnings").hidden = warnings.length === 0;
  write("warnings", warnings.map(sentence).join(" "), true);
}

/** Say what stands between the user and a live image, or null; stalled_s: time without a new result, silent_s: without an answer. */
export function troubleOf(state, connected, empty, stalled_s = 0, silent_s = 0) {
  if (!connected || silent_s > LOST_S) return trouble("lost", "Connection lost", empty ? "Trying again." : "This is the last picture that came. Trying again.");
  if (silent_s > SLOW_S) return trouble("slow", "Slow answer", `The microscope has not said for ${Math.round(silent_s)} s how it is; it may be busy.`);
  if (!state) return trouble("wait", "Connecting", "");
  if (state.ended) return trouble("wait", "End of the recording", "This is the last picture.");
  if (isCameraLost(state)) return trouble("lost", cameraTitle(state), cameraDetail(state));
  if (state.error) return trouble("lost", "Reconstruction failed", sentence(state.error));
  if (empty) return trouble("wait", "Waiting for the first frame", "");
  if (stalled_s > patience_s(state)) return trouble("lost", "Reconstruction stopped", `Frames go on, but no new picture has come for ${Math.round(stalled_s)} s. This is the last one.`);
  if (state.nothing_to_see) return trouble("empty", "Nothing to see", "The image has no contrast beyond its noise. Check light, shutter and focus.");
  return null;
}

const trouble = (kind, title, detail) => ({ kind, title, detail });

export function isCameraLost({ last_frame_age_s, frame_interval_s, error, uptime_s }) {
  const limit_s = Math.max(PATIENCE_S, INTERVALS * (frame_interval_s ?? 0));
  return (last_frame_age_s ?? (error ? Infinity : uptime_s)) > limit_s;
}

/** Longest time between results: a large window may rightly take longer than the patience. */
function patience_s({ frame_interval_s, latency_ms }) {
  return Math.max(PATIENCE_S, INTERVALS * (frame_interval_s ?? 0), (3 * (latency_ms.p95 ?? 0)) / 1000);
}

const cameraTitle = ({ last_frame_age_s, error }) => (error && last_frame_age_s == null ? "No camera" : "Camera lost");

function cameraDetail({ last_frame_age_s, error }) {
  const age = last_frame_age_s == null ? "No frame has come yet." : `Last frame ${Math.round(last_frame_age_s)} s ago.`;
  return error ? `${sentence(error)} ${age}` : age;
}

/** Say it over the pictures. */
export function writeTrouble(stage, found) {
  if (!found) return delete stage.dataset.trouble;
  stage.dataset.trouble = found.kind;
  for (const part of ["title", "detail"]) {
    const place = stage.querySelector(`#veil .${part}`);
    if (place.textContent !== found[part]) place.textContent = found[part];
  }
}
