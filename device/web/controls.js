// What can be set while it runs: what is asked for, beside what the last frame really had.

import { ask } from "./api.js";

const DIGITS = 4; // of a value as it is: sensors count in rows, more says nothing
const REGIONS = new Set(["roi", "sensor_crop"]);
const AUTOMATIC = new Set(["exposure_us", "gain", "psf_sigma_px"]); // an empty field leaves these to the camera, or to the settings

/** The fields of the page, most of them in the camera's strip; the button that opens it is there where the camera has any. */
export class Controls {
  #strip;
  #button;
  #refused;
  #fields;
  #changes = 0; // asked for so far

  /** @param refused called with a sentence, or with null when the daemon took a value */
  constructor(strip, button, refused) {
    this.#strip = strip;
    this.#button = button;
    this.#refused = refused;
    this.#fields = new Map([...document.querySelectorAll("[data-control]")].map((label) => [label.dataset.control, label]));
    button.addEventListener("click", () => this.#open(strip.hidden));
    for (const [name, label] of this.#fields) {
      const input = label.querySelector("input");
      input.addEventListener("change", () => this.#set(name, valueOf(name, input.value.trim())));
      input.addEventListener("keydown", ({ key }) => key === "Escape" && this.#undo(input));
    }
    document.getElementById("whole").addEventListener("click", () => this.#set("roi", ""));
  }

  /** Ask the daemon how the controls stand. */
  async read() {
    const changes = this.#changes;
    const controls = await ask("api/controls");
    if (changes === this.#changes) this.show(controls); // else they are older than what was set since
  }

  /** Show the controls as the daemon tells them. */
  show(controls) {
    const settable = [...this.#fields].some(([name, label]) => name in controls && this.#strip.contains(label));
    this.#button.hidden = !settable;
    if (!settable) this.#open(false);
    for (const [name, label] of this.#fields) showField(name, label, controls[name]);
  }

  #open(open) {
    this.#strip.hidden = !open;
    this.#button.setAttribute("aria-expanded", String(open));
  }

  #undo(input) {
    settle(input);
    input.blur();
    this.#refused(null);
  }

  async #set(name, value) {
    const input = this.#fields.get(name).querySelector("input");
    this.#changes += 1;
    try {
      this.show(await ask("api/controls", { [name]: value }));
      settle(input);
      this.#refused(null);
    } catch (refusal) {
      input.setAttribute("aria-invalid", "true");
      this.#refused(refusal);
    }
  }
}

/** Have a field show what the daemon was last asked for. */
function settle(input) {
  input.value = input.dataset.wanted;
  input.removeAttribute("aria-invalid");
}

/** What is sent for what was typed; the daemon judges it, and says what it expects. */
function valueOf(name, text) {
  if (REGIONS.has(name)) return text.replaceAll(/\s*[,; ]\s*/g, ",");
  if (text === "" && AUTOMATIC.has(name)) return null;
  const number = Number(text.replaceAll(" ", "").replace(",", "."));
  return text === "" || Number.isNaN(number) ? text : number;
}

function showField(name, label, control) {
  label.hidden = control === undefined;
  if (control === undefined) return;
  const input = label.querySelector("input");
  const offered = !AUTOMATIC.has(name) || control.min !== null || control.actual !== null;
  input.disabled = !offered;
  input.dataset.wanted = control.wanted === null || !offered ? "" : String(control.wanted);
  const busy = input === document.activeElement || input.hasAttribute("aria-invalid");
  if (!busy) input.value = input.dataset.wanted;
  const told = label.querySelector("small");
  if (!told) {
    const found = control.found ? `≈ ${control.found.sigma_px.toFixed(2)}` : "unknown";
    input.placeholder = control.actual === null || control.found ? found : written(control.actual);
    return;
  }
  told.textContent = offered ? reading(control) : "not offered by this camera";
  told.classList.toggle("note", Boolean(control.drifted));
}

function reading({ actual, min, max, drifted }) {
  const now = actual === null ? "not told" : `is ${written(actual)}${drifted ? ", not as asked" : ""}`;
  return min === null || max === null ? now : `${now} · ${written(min)} to ${written(max)}`;
}

function written(value) {
  if (typeof value !== "number") return value.replaceAll(",", ", ");
  const rounded = value >= 10 ** (DIGITS - 1) ? Math.round(value) : Number(value.toPrecision(DIGITS));
  return rounded.toLocaleString("en", { maximumFractionDigits: DIGITS }).replaceAll(",", "\u202f");
}
