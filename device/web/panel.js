// One picture: its canvas, its caption, its contrast.

import { Contrast } from "./contrast.js";

export class Panel {
  #context;
  #canvas;
  #image = null;
  contrast = new Contrast();

  constructor(figure) {
    this.figure = figure;
    this.view = figure.dataset.view;
    this.title = figure.querySelector("h2").textContent;
    this.#canvas = figure.querySelector("canvas");
    this.#context = this.#canvas.getContext("2d", { alpha: false });
  }

  get empty() {
    return this.#image === null;
  }

  /** Show an image of the live socket. */
  show(image, table, time_s) {
    this.#image = image;
    this.contrast.follow(image, time_s);
    this.draw(table);
    this.#canvas.dataset.seq = image.seq;
  }

  /** Draw the last image, such as in other colours. */
  draw(table) {
    if (this.empty) return;
    const { height, width } = this.#image;
    if (this.#canvas.width !== width || this.#canvas.height !== height) this.#resize(width, height);
    const pixels = this.#context.createImageData(width, height);
    paint(new Uint32Array(pixels.data.buffer), this.#image, this.contrast.levels, table);
    this.#context.putImageData(pixels, 0, 0);
  }

  /** Write the levels under the picture; called at a pace that can be read. */
  writeLevels() {
    if (this.empty) return;
    const { low, high } = this.contrast.levels;
    const digits = high - low < 10 ? 2 : 0;
    this.figure.querySelector(".low").textContent = low.toFixed(digits).replace(/^-0$/, "0");
    this.figure.querySelector(".high").textContent = high.toFixed(digits);
  }

  #resize(width, height) {
    this.#canvas.width = width;
    this.#canvas.height = height;
    this.#canvas.setAttribute("aria-label", `${this.title}, live, ${width} by ${height} pixels`);
    this.figure.querySelector(".size").textContent = `${width} × ${height}`;
  }
}

function paint(target, { pixels, scale, offset }, { low, high }, table) {
  const factor = (255 * scale) / (high - low);
  const zero = (255 * (offset - low)) / (high - low) + 0.5;
  for (let i = 0; i < target.length; i++) {
    const level = factor * pixels[i] + zero;
    target[i] = table[level < 0 ? 0 : level > 255 ? 255 : level | 0];
  }
}
