// Masks: from logits on the model's grid to pixels and run lengths, as types.py, masks/ and io/rle.py.

const f = Math.fround;
const MAX_HOLE_AREA = 256;

/**
 * Keep the positive cells of a mask and one cell around them.
 *
 * @param {Float32Array} logits (rows, columns), positive inside the mask.
 * @param {number} rows Rows of the grid, which spans the picture.
 * @param {number} columns Its columns.
 * @returns {object} A patch: logits, height, width, top, left, and the grid's rows and columns.
 */
export function cutPatch(logits, rows, columns) {
  const box = extentOf((i) => logits[i] > 0, rows, columns);
  if (!box) return { logits: new Float32Array(0), height: 0, width: 0, top: 0, left: 0, rows, columns };
  const top = Math.max(box.top - 1, 0), left = Math.max(box.left - 1, 0);
  const height = Math.min(box.bottom + 1, rows) - top, width = Math.min(box.right + 1, columns) - left;
  const kept = new Float32Array(height * width);
  for (let y = 0; y < height; y++) {
    const start = (top + y) * columns + left;
    kept.set(logits.subarray(start, start + width), y * width);
  }
  return { logits: kept, height, width, top, left, rows, columns };
}

/**
 * Enlarge a mask to a picture by bilinear interpolation.
 *
 * @param {object} patch From `cutPatch`.
 * @param {number} height Rows of the picture.
 * @param {number} width Columns of the picture.
 * @returns {{bits: Uint8Array, left: number, top: number, width: number, height: number,
 *   area: number}|null} The mask in its box, one byte a pixel; null for a mask without a pixel.
 */
export function cropMask(patch, height, width) {
  if (!patch.logits.length) return null;
  const y = sampling(patch.top, patch.height, patch.rows, height);
  const x = sampling(patch.left, patch.width, patch.columns, width);
  const tall = new Float32Array(patch.width);
  const dense = new Uint8Array(y.share.length * x.share.length);
  for (let row = 0; row < y.share.length; row++) {
    const share = y.share[row], rest = f(1 - share);
    const low = y.low[row] * patch.width, high = y.high[row] * patch.width;
    for (let i = 0; i < patch.width; i++) {
      tall[i] = f(f(patch.logits[low + i] * rest) + f(patch.logits[high + i] * share));
    }
    const start = row * x.share.length;
    for (let column = 0; column < x.share.length; column++) {
      const part = x.share[column];
      const value = f(f(tall[x.low[column]] * f(1 - part)) + f(tall[x.high[column]] * part));
      if (value > 0) dense[start + column] = 1;
    }
  }
  return tighten(dense, y.share.length, x.share.length, y.first, x.first);
}

/** Along one axis, the cells of a patch that each pixel interpolates between. */
function sampling(start, count, cells, pixels) {
  const scale = cells / pixels;
  const at = (pixel) => Math.max((pixel + 0.5) * scale - 0.5, 0);
  const inside = (pixel) => {
    const low = Math.floor(at(pixel));
    return low >= start && Math.min(low + 1, cells - 1) < start + count;
  };
  let first = 0, last = pixels;
  while (first < last && !inside(first)) first++;
  while (last > first && !inside(last - 1)) last--;
  const low = new Int32Array(last - first), high = new Int32Array(last - first);
  const share = new Float32Array(last - first);
  for (let i = 0; i < share.length; i++) {
    const place = at(first + i), cell = Math.floor(place);
    low[i] = cell - start;
    high[i] = Math.min(cell + 1, cells - 1) - start;
    share[i] = place - cell;
  }
  return { first, low, high, share };
}

function tighten(dense, rows, columns, top, left) {
  const box = extentOf((i) => dense[i], rows, columns);
  if (!box) return null;
  const width = box.right - box.left, height = box.bottom - box.top;
  const bits = new Uint8Array(width * height);
  let area = 0;
  for (let y = 0; y < height; y++) {
    const start = (box.top + y) * columns + box.left;
    for (let x = 0; x < width; x++) area += bits[y * width + x] = dense[start + x];
  }
  return { bits, left: left + box.left, top: top + box.top, width, height, area };
}

/** The smallest box of the cells that are set, its ends exclusive; null where there is none. */
function extentOf(isSet, rows, columns) {
  let top = rows, bottom = 0, left = columns, right = 0;
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      if (!isSet(y * columns + x)) continue;
      top = Math.min(top, y);
      bottom = y + 1;
      left = Math.min(left, x);
      right = Math.max(right, x + 1);
    }
  }
  return bottom ? { top, bottom, left, right } : null;
}

/**
 * Non-maximum suppression.
 *
 * @param {Float32Array[]} masks Logits of masks, the best first.
 * @param {number} limit Masks with a larger IoU with a better kept mask are dropped.
 * @returns {number[]} The masks that are kept, rising.
 */
export function suppress(masks, limit) {
  const areas = masks.map((mask) => mask.reduce((sum, value) => sum + (value > 0), 0));
  const overlap = (a, b) => {
    let shared = 0;
    for (let i = 0; i < masks[a].length; i++) shared += masks[a][i] > 0 && masks[b][i] > 0;
    const union = areas[a] + areas[b] - shared;
    return union ? shared / union : 0;
  };
  const kept = [];
  masks.forEach((_, i) => {
    if (kept.every((other) => overlap(i, other) <= limit)) kept.push(i);
  });
  return kept;
}

/**
 * Fill small holes of the mask of a single object, as SAM3 does.
 *
 * @param {Float32Array} logits (rows, columns), which is changed.
 * @param {number} rows Rows of the grid.
 * @param {number} columns Its columns.
 */
export function fillHoles(logits, rows, columns) {
  const seen = new Uint8Array(logits.length);
  const region = new Int32Array(logits.length);
  for (let start = 0; start < logits.length; start++) {
    if (seen[start] || logits[start] > 0) continue;
    let count = 1;
    region[0] = start;
    seen[start] = 1;
    for (let next = 0; next < count; next++) {
      const y = Math.floor(region[next] / columns), x = region[next] % columns;
      // Cells that touch at a corner are connected.
      for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, rows - 1); v++) {
        for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, columns - 1); u++) {
          const cell = v * columns + u;
          if (seen[cell] || logits[cell] > 0) continue;
          seen[cell] = 1;
          region[count++] = cell;
        }
      }
    }
    if (count <= MAX_HOLE_AREA) for (let i = 0; i < count; i++) logits[region[i]] = 10;
  }
}

/**
 * Compress a mask to COCO's run lengths.
 *
 * @param {object|null} mask From `cropMask`.
 * @param {number} height Rows of the picture.
 * @param {number} width Columns of the picture.
 * @returns {{size: number[], counts: string}} As pycocotools writes it.
 */
export function encodeRle(mask, height, width) {
  const runs = [];
  let inside = 0, start = 0; // column by column, background first
  const change = (place) => {
    runs.push(place - start);
    start = place;
    inside = 1 - inside;
  };
  for (let x = 0; mask && x < mask.width; x++) {
    const column = (mask.left + x) * height + mask.top;
    for (let y = 0; y < mask.height; y++) {
      if (mask.bits[y * mask.width + x] !== inside) change(column + y);
    }
    // A run that reaches the last row continues in the next column, where that begins with it.
    const isLast = x + 1 === mask.width;
    const continues = mask.height === height && !isLast && mask.bits[x + 1];
    if (inside && !continues) change(column + mask.height);
  }
  if (start < height * width) runs.push(height * width - start);
  return { size: [height, width], counts: packRuns(runs) };
}

/** Run lengths as text: differences to the run before the last, five bits a letter. */
function packRuns(runs) {
  let text = "";
  runs.forEach((run, i) => {
    let rest = i > 2 ? run - runs[i - 2] : run;
    for (let more = true; more;) {
      let letter = rest & 31;
      rest >>= 5;
      more = letter & 16 ? rest !== -1 : rest !== 0;
      if (more) letter |= 32;
      text += String.fromCharCode(letter + 48);
    }
  });
  return text;
}
