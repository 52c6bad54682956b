// Colors of instances: the rule of viz/overlay.py.

const COLORS = [
  [255, 75, 62], [30, 144, 255], [52, 199, 89], [255, 180, 0], [180, 90, 255], [0, 200, 200],
  [255, 102, 178], [160, 220, 0], [255, 125, 26], [110, 120, 255], [0, 160, 120], [210, 70, 125],
];

/**
 * A color for each instance: one hue a name, or, where there is one name, one hue an instance.
 *
 * @param {string[]} labels The name of each instance.
 * @param {string[]} names All names that were searched for.
 * @returns {number[][]} RGB of each.
 */
export function instanceColors(labels, names) {
  const all = [...new Set([...names, ...labels])], counts = new Map();
  return labels.map((label) => {
    const number = counts.get(label) ?? 0;
    counts.set(label, number + 1);
    const place = all.length === 1 ? number : all.indexOf(label);
    const base = shade(COLORS[place % COLORS.length], Math.floor(place / COLORS.length));
    return all.length === 1 ? base : shade(base, number);
  });
}

/** The color itself for 0, then neighbors in hue and lightness; repeats after nine. */
function shade(color, number) {
  const turn = [0, 0.045, -0.045][number % 3];
  const light = [1, 0.76, 1.2][Math.floor(number / 3) % 3];
  const [h, l, s] = toHls(color.map((value) => value / 255));
  return toRgb((h + turn + 1) % 1, Math.min(l * light, 0.82), s).map((v) => Math.round(v * 255));
}

function toHls([r, g, b]) {
  const high = Math.max(r, g, b), low = Math.min(r, g, b), range = high - low;
  const l = (high + low) / 2;
  if (!range) return [0, l, 0];
  const s = range / (l <= 0.5 ? high + low : 2 - high - low);
  let sixth;
  if (high === r) sixth = (g - b) / range;
  else if (high === g) sixth = 2 + (b - r) / range;
  else sixth = 4 + (r - g) / range;
  return [(sixth / 6 + 1) % 1, l, s];
}

function toRgb(h, l, s) {
  const chroma = s * Math.min(l, 1 - l);
  return [0, 8, 4].map((offset) => {
    const k = (offset + 12 * h) % 12;
    return l - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1));
  });
}
