// Raw frames to disk: begins and ends a recording, and says how it stands.

import { ask, Refusal, sentence } from "./api.js";

/** The button that records, and the line that says into which file and how many frames. */
export class Recording {
  #button;
  #line;
  #refused;
  #running = false;
  #asking = false;

  /** @param refused called with a sentence, or with null when the daemon obeyed */
  constructor(button, line, refused) {
    this.#button = button;
    this.#line = line;
    this.#refused = refused;
    button.addEventListener("click", () => this.#toggle());
  }

  /** Ask the daemon how the recording stands; a server that cannot record has no button. */
  async read() {
    if (this.#asking) return;
    try {
      const state = await ask("api/recording");
      if (!this.#asking) this.#show(state);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
    }
  }

  async #toggle() {
    this.#asking = this.#button.disabled = true;
    if (this.#running) this.#label("Saving");
    try {
      this.#show(await ask("api/recording", { recording: !this.#running }));
      this.#refused(null);
    } catch (refusal) {
      this.#refused(refusal);
    } finally {
      this.#asking = this.#button.disabled = false;
    }
  }

  #show(state) {
    this.#button.hidden = false;
    this.#running = state.recording;
    this.#button.setAttribute("aria-pressed", String(state.recording));
    this.#label(state.recording ? "Stop" : "Record");
    this.#line.hidden = state.file === null;
    this.#line.classList.toggle("alarm", Boolean(state.error));
    const text = state.file === null ? "" : lineOf(state);
    if (this.#line.textContent !== text) this.#line.textContent = text;
  }

  #label(text) {
    this.#button.querySelector("span").textContent = text;
  }
}

function lineOf({ recording, file, frames, missed, waiting, error }) {
  if (error) return sentence(error);
  const gaps = missed ? `, ${missed} missed by the camera` : "";
  if (!recording) return `Recorded ${frames} frames${gaps}: ${file}`;
  const late = waiting > 1 ? `, ${waiting} waiting for the disk` : "";
  return `Recording ${frames} frames${gaps}${late} to ${file.split("/").at(-1)}`;
}
