// Preparing a picture for the image encoder: the same arithmetic as runtime/pixels.py.

/**
 * Resize and normalize a picture.
 *
 * @param {{data: Uint8ClampedArray|Uint8Array, width: number, height: number}} picture RGBA values.
 * @param {number} side Rows and columns of the result.
 * @param {number} mean Subtracted from values in [0, 1].
 * @param {number} std Divides what is left.
 * @returns {Float32Array} (3, side, side).
 */
export function normalize(picture, side, mean, std) {
  const small = resize(picture, side);
  const area = side * side;
  const out = new Float32Array(3 * area);
  const table = new Float32Array(256);
  const [m, s] = [Math.fround(mean), Math.fround(std)];
  for (let value = 0; value < 256; value++) {
    table[value] = Math.fround(Math.fround(Math.fround(value / 255) - m) / s);
  }
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) out[c * area + i] = table[small[3 * i + c]];
  }
  return out;
}

/**
 * Resize a picture bilinearly with antialiasing, by the fixed-point arithmetic of torch.
 *
 * @param {{data: Uint8ClampedArray|Uint8Array, width: number, height: number}} picture RGBA values.
 * @param {number} side Rows and columns of the result.
 * @returns {Uint8Array} (side, side, 3).
 */
export function resize({ data, width, height }, side) {
  // Columns first, and the result of either step is rounded to 8 bits, as torch does.
  const narrow = new Uint8Array(height * side * 3);
  along(data, narrow, { count: width, step: 4, lines: height, line: 4 * width },
    { count: side, step: 3, line: 3 * side }, 1);
  const out = new Uint8Array(side * side * 3);
  along(narrow, out, { count: height, step: 3 * side, lines: 1, line: 0 },
    { count: side, step: 3 * side, line: 0 }, side);
  return out;
}

/**
 * Resize one axis.
 *
 * @param {ArrayLike<number>} source Values; a cell has three, one after the other.
 * @param {Uint8Array} target What is written.
 * @param {{count: number, step: number, lines: number, line: number}} from Cells along the axis,
 *   the distance of two of them, the lines of the other axis and the distance of two of those.
 * @param {{count: number, step: number, line: number}} to The same of the target.
 * @param {number} block Cells that lie side by side and have the same weights.
 */
function along(source, target, from, to, block) {
  const { taps, firsts, counts, values, bits } = fixedWeights(from.count, to.count);
  const half = bits ? 1 << (bits - 1) : 0;
  const whole = from.count === to.count;
  const sums = new Int32Array(3 * block);
  for (let line = 0; line < from.lines; line++) {
    for (let at = 0; at < to.count; at++) {
      const written = line * to.line + at * to.step;
      const first = line * from.line + firsts[at] * from.step;
      if (whole) {
        const same = line * from.line + at * from.step;
        for (let i = 0; i < sums.length; i++) target[written + i] = source[same + i];
        continue;
      }
      sums.fill(half);
      for (let k = 0; k < counts[at]; k++) {
        const weight = values[at * taps + k], read = first + k * from.step;
        for (let i = 0; i < sums.length; i++) sums[i] += weight * source[read + i];
      }
      for (let i = 0; i < sums.length; i++) {
        target[written + i] = Math.min(255, Math.max(0, sums[i] >> bits));
      }
    }
  }
}

/** Weights of the triangle filter in whole numbers of 16 bits, and the bits after their point. */
function fixedWeights(size, rows) {
  const scale = size / rows, support = Math.max(scale, 1);
  const firsts = new Int32Array(rows), counts = new Int32Array(rows);
  for (let row = 0; row < rows; row++) {
    const center = scale * (row + 0.5);
    firsts[row] = Math.max(Math.trunc(center - support + 0.5), 0);
    counts[row] = Math.min(Math.trunc(center + support + 0.5), size) - firsts[row];
  }
  const taps = Math.max(...counts);
  const exact = new Float64Array(rows * taps);
  let largest = 0;
  for (let row = 0; row < rows; row++) {
    const center = scale * (row + 0.5);
    let sum = 0;
    for (let k = 0; k < counts[row]; k++) {
      const value = Math.max(1 - Math.abs((firsts[row] + k - center + 0.5) / support), 0);
      exact[row * taps + k] = value;
      sum += value;
    }
    for (let k = 0; k < counts[row]; k++) {
      exact[row * taps + k] /= sum;
      largest = Math.max(largest, exact[row * taps + k]);
    }
  }
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 1 << 15) bits++;
  const values = Int32Array.from(exact, (value) => Math.trunc(0.5 + value * 2 ** bits));
  return { taps, firsts, counts, values, bits };
}
