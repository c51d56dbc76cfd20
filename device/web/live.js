// The live page: draws what the socket brings, says what the daemon says, passes on what is chosen.

import { Refusal, ask, order } from "./api.js";
import { gradient, lookup } from "./colour.js";
import { Controls } from "./controls.js";
import { Panel } from "./panel.js";
import { Recording } from "./recording.js";
import { LiveSocket } from "./socket.js";
import { LOST_S, SLOW_S, isCameraLost, troubleOf, writeStatus, writeTrouble } from "./status.js";

const STATE_EVERY_MS = 500;
const CONTROLS_EVERY_MS = 1000;
const RATE_OVER_MS = 3000;
const LAYOUTS = { all: ["raw", "mean", "reconstruction"], compare: ["mean", "reconstruction"], error: ["reconstruction", "error"] };
const TOGETHER_MS = 60; // so long a result waits for its last view (the first frame has no reconstruction, a warming window no error)

const stage = document.getElementById("stage");
const panels = new Map([...document.querySelectorAll(".panel")].map((figure) => [figure.dataset.view, new Panel(figure)]));
const waiting = new Map(); // view -> newest image not yet drawn
let wanted = []; // views subscribed to
let before = "all"; // layout to go back to from one picture
let waitingSince_ms = 0;
let table = lookup("grey");
let state = null;
let stateTime_ms = performance.now();
let asked_ms = null; // since when the daemon owes an answer about its state
let resultTime_ms = performance.now(); // when the daemon last had another result, or no frames for one
let connected = true; // until the socket says otherwise
let owed = 0; // results received and not yet paid for with credit
let lastTimestamp = null;
let drawn_ms = []; // when results were drawn, for the rate on the screen

// --- images -------------------------------------------------------------------------------------

const socket = new LiveSocket(receive, (now) => {
  connected = now;
  owed = 0;
  lastTimestamp = null;
  showTrouble();
});

function receive(image) {
  if (image.timestamp_ns !== lastTimestamp) owed += 1; // all views of a result bear its time
  lastTimestamp = image.timestamp_ns;
  if (waiting.size === 0) {
    waitingSince_ms = performance.now();
    requestAnimationFrame(draw);
  }
  waiting.set(image.view, image);
}

/** Draw a result, all its views at once: what stands side by side shows the same moment. */
function draw(now_ms) {
  if (waiting.size < wanted.length && performance.now() - waitingSince_ms < TOGETHER_MS) {
    requestAnimationFrame(draw);
    return;
  }
  const first = [...panels.values()].every((panel) => panel.empty);
  for (const [view, image] of waiting) panels.get(view).show(image, table, now_ms / 1000);
  if (first) showTrouble(); // nobody waits for the first frame any more
  setAspect([...waiting.values()][0]);
  waiting.clear();
  drawn_ms.push(now_ms);
  if (owed) socket.grant(owed);
  owed = 0;
}

function setAspect({ width, height }) {
  const aspect = String(width / height);
  if (stage.style.getPropertyValue("--aspect") !== aspect) stage.style.setProperty("--aspect", aspect);
}

function screenRate() {
  const now_ms = performance.now();
  drawn_ms = drawn_ms.filter((time_ms) => now_ms - time_ms < RATE_OVER_MS);
  return drawn_ms.length < 2 ? 0 : (1000 * (drawn_ms.length - 1)) / (now_ms - drawn_ms[0]);
}

// --- state --------------------------------------------------------------------------------------

async function readState() {
  asked_ms ??= performance.now();
  try {
    const answer = await fetch("api/state", { signal: AbortSignal.timeout(1000 * LOST_S) });
    if (answer.ok) show(await answer.json());
    if (answer.status === 401) location.reload(); // the login form comes instead of the page
  } catch (error) {
    if (!["TypeError", "TimeoutError", "AbortError"].includes(error.name)) throw error; // not the network
  } finally {
    showTrouble();
    setTimeout(readState, STATE_EVERY_MS);
  }
}

function show(news) {
  stateTime_ms = performance.now();
  asked_ms = null;
  if (news.reconstructions !== state?.reconstructions || isCameraLost(news)) resultTime_ms = stateTime_ms;
  state = news;
  writeStatus(state, screenRate());
  element("error-choice").hidden = !state.tells_error;
  stage.toggleAttribute("data-warming", state.warming); // the error shown is of what was seen before
  if (!state.tells_error && wanted.includes("error")) setLayout("all"); // another model than before
  for (const panel of panels.values()) panel.writeLevels();
  const mode = document.querySelector(`[name=mode][value=${state.mode}]`);
  if (!changingMode) mode.checked = true;
}

function showTrouble() {
  const silent_s = asked_ms === null ? 0 : (performance.now() - asked_ms) / 1000;
  const empty = [...panels.values()].every((panel) => panel.empty);
  document.body.classList.toggle("stale", !connected || silent_s > SLOW_S);
  writeTrouble(stage, troubleOf(state, connected, empty, (stateTime_ms - resultTime_ms) / 1000, silent_s));
}

// --- choices ------------------------------------------------------------------------------------

let changingMode = false;

/** Show why the daemon did not do what was asked; null: it did. */
function showRefusal(refusal) {
  if (refusal && !(refusal instanceof Refusal)) throw refusal;
  const place = document.getElementById("refusal");
  place.hidden = !refusal;
  place.textContent = refusal ? refusal.message : "";
}

const element = (id) => document.getElementById(id);
const controls = new Controls(element("camera-strip"), element("camera-button"), showRefusal);
const recording = new Recording(element("record"), element("recording"), showRefusal);

/** Follow what is read back from the controls, and the recording. */
async function readControls() {
  try {
    await Promise.all([recording.read(), controls.read()]);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error; // the state says when the daemon does not answer
  } finally {
    setTimeout(readControls, CONTROLS_EVERY_MS);
  }
}

async function setMode(mode) {
  changingMode = true;
  await ask("api/controls", { mode }).then(() => showRefusal(null), showRefusal);
  changingMode = false;
}

function setLayout(layout, chosen) {
  if (layout !== "one") before = layout;
  stage.dataset.layout = layout;
  for (const panel of panels.values()) {
    panel.figure.classList.toggle("chosen", panel.view === chosen);
    const verb = layout === "one" ? "Show all pictures" : `Enlarge: ${panel.title}`;
    panel.figure.querySelector(".enlarge").setAttribute("aria-label", verb);
  }
  document.querySelector(".divider").hidden = layout !== "compare";
  for (const radio of document.getElementsByName("layout")) radio.checked = radio.value === layout;
  wanted = { ...LAYOUTS, one: [chosen] }[layout];
  socket.subscribe(wanted);
}

function setColour(name) {
  table = lookup(name);
  document.documentElement.style.setProperty("--ramp", gradient(name));
  for (const panel of panels.values()) panel.draw(table);
  document.getElementById("colour").value = name;
  localStorage.setItem("colour", name);
}

function setContrast(value) {
  for (const panel of panels.values()) panel.contrast.locked = value === "locked";
  for (const radio of document.getElementsByName("contrast")) radio.checked = radio.value === value;
}

async function reset() {
  await order("api/reset").then(() => showRefusal(null), showRefusal);
  for (const panel of panels.values()) if (!panel.contrast.locked) panel.contrast.forget();
}

const isLocked = () => document.querySelector("[name=contrast]:checked").value === "locked";

const KEYS = {
  1: () => setLayout("all"),
  2: () => setLayout("compare"),
  3: () => state?.tells_error && setLayout("error"),
  Escape: () => setLayout("all"),
  l: () => setContrast(isLocked() ? "auto" : "locked"),
  r: reset,
};

function listen() {
  const on = (id, type, action) => document.getElementById(id).addEventListener(type, action);
  on("mode", "change", ({ target }) => setMode(target.value));
  on("layout", "change", ({ target }) => setLayout(target.value));
  on("contrast", "change", ({ target }) => setContrast(target.value));
  on("colour", "change", ({ target }) => setColour(target.value));
  on("reset", "click", reset);
  on("split", "input", ({ target }) => stage.style.setProperty("--split", target.value));
  for (const panel of panels.values()) {
    const toggle = () => (stage.dataset.layout === "one" ? setLayout(before) : setLayout("one", panel.view));
    panel.figure.querySelector(".enlarge").addEventListener("click", toggle);
  }
  document.addEventListener("keydown", (event) => {
    const typing = event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("select, [data-control] input");
    if (!typing) KEYS[event.key]?.();
  });
}

listen();
setColour(["magenta", "viridis"].find((name) => name === localStorage.getItem("colour")) ?? "grey");
setLayout("all");
readState();
readControls();
setInterval(showTrouble, STATE_EVERY_MS); // an answer that does not come calls nobody
