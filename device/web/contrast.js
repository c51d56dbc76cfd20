// Which values are shown black and white. Follows the image slowly, so that noise does not flicker.

const LOW = 0.01;
const HIGH = 0.995;
const SAMPLES = 4096;
const FOLLOW_S = 1.5;
// A range that differs by this factor for this long is another scene: no slow way there. One frame
// alone proves nothing, since the sample fluctuates.
const JUMP = 3;
const JUMP_AFTER_S = 0.7;

export class Contrast {
  #low = null;
  #high = null;
  #time_s = 0;
  #likeBefore_s = 0;
  locked = false;

  get levels() {
    return { low: this.#low ?? 0, high: this.#high ?? 1 };
  }

  /** Take the levels of a new image into account, unless they are locked. */
  follow(image, time_s) {
    if (this.locked && this.#low !== null) return;
    const { low, high } = measure(image);
    const share = this.#isAnotherScene(low, high, time_s) ? 1 : 1 - Math.exp((this.#time_s - time_s) / FOLLOW_S);
    this.#low = (this.#low ?? low) * (1 - share) + low * share;
    this.#high = (this.#high ?? high) * (1 - share) + high * share;
    this.#time_s = time_s;
  }

  /** Let the next image set the levels at once. */
  forget() {
    this.#low = this.#high = null;
  }

  #isAnotherScene(low, high, time_s) {
    if (this.#low === null) return true;
    const factor = (high - low) / Math.max(this.#high - this.#low, 1e-9);
    if (factor < JUMP && factor > 1 / JUMP) this.#likeBefore_s = time_s;
    return time_s - this.#likeBefore_s > JUMP_AFTER_S;
  }
}

function measure({ pixels, scale, offset }) {
  const stride = Math.max(1, Math.ceil(pixels.length / SAMPLES)) | 1; // odd: does not fall in with the rows
  const sorted = pixels.filter((_, i) => i % stride === 0).sort();
  const at = (share) => offset + scale * sorted[Math.round(share * (sorted.length - 1))];
  const low = at(LOW);
  return { low, high: Math.max(at(HIGH), low + 1e-6) };
}
