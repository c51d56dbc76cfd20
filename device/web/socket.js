// The live socket: images in, credit out. See device/live.py for what is spoken.

const CREDIT = 2; // enough to keep the line busy; what is seen is never older than two results
const RETRY_FIRST_MS = 500;
const RETRY_LONGEST_MS = 5000;

export class LiveSocket {
  #socket = null;
  #views = "";
  #retry_ms = RETRY_FIRST_MS;
  #timer = 0;

  /** @param onImage called with each decoded image; @param onChange with true or false: connected */
  constructor(onImage, onChange) {
    this.onImage = onImage;
    this.onChange = onChange;
  }

  /** Ask for these views, and for no others. */
  subscribe(views) {
    if (views.join() === this.#views) return;
    this.#views = views.join();
    this.#open();
  }

  /** Allow the server to send that many more results. */
  grant(number) {
    if (this.#socket?.readyState === WebSocket.OPEN) {
      this.#socket.send(JSON.stringify({ credit: number }));
    }
  }

  #open() {
    clearTimeout(this.#timer);
    this.#socket?.close();
    const address = new URL(`live?view=${this.#views}`, document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = (this.#socket = new WebSocket(address));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#opened(socket);
    socket.onclose = () => this.#closed(socket);
    socket.onmessage = ({ data }) => socket === this.#socket && this.onImage(decode(data));
  }

  #opened(socket) {
    if (socket !== this.#socket) return;
    this.#retry_ms = RETRY_FIRST_MS;
    this.onChange(true);
    this.grant(CREDIT);
  }

  #closed(socket) {
    if (socket !== this.#socket) return; // replaced by one with other views
    this.onChange(false);
    this.#timer = setTimeout(() => this.#open(), this.#retry_ms);
    this.#retry_ms = Math.min(2 * this.#retry_ms, RETRY_LONGEST_MS);
  }
}

function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { ...header, pixels: new Uint16Array(buffer, 4 + length, header.height * header.width) };
}
