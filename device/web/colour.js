// Colour maps as tables of 256 packed RGBA entries, interpolated between a few anchors.

const ANCHORS = {
  grey: ["000000", "ffffff"],
  // Black to white through magenta, lightness rising evenly.
  magenta: ["000000", "2b0635", "5c0e5e", "981a7c", "d23a8c", "f2739b", "fdb3b8", "fff4ef"],
  viridis: ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"],
};

const channels = (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));

function colourAt(anchors, share) {
  const place = share * (anchors.length - 1);
  const below = Math.min(Math.floor(place), anchors.length - 2);
  const above = place - below;
  return anchors[below].map((low, i) => Math.round(low + above * (anchors[below + 1][i] - low)));
}

/** Table of a map: 256 pixels as a little-endian canvas stores them. */
export function lookup(name) {
  const anchors = ANCHORS[name].map(channels);
  return Uint32Array.from({ length: 256 }, (_, level) => {
    const [red, green, blue] = colourAt(anchors, level / 255);
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
}

/** The same map as a CSS gradient. */
export const gradient = (name) =>
  `linear-gradient(to right, ${ANCHORS[name].map((hex) => `#${hex}`).join(", ")})`;
