// Draws a picture with its instances, on the page and for the saved picture.

import { cropMask } from "./masks.js";

const FILL = 0.42;
const DETAIL = 1280; // pixels of the longer side at which masks are drawn on the page
const MAX_LABELS = 24;
const INK = "rgba(18, 18, 20, 0.86)";
export const POSITIVE = "#34c759", NEGATIVE = "#ff3b30";

/** Masks of instances as small pictures, made once at one scale. */
export class Layers {
  /**
   * @param {number} width Pixels of the picture.
   * @param {number} height Pixels of the picture.
   * @param {number} longer Pixels of the longer side at which masks are made.
   */
  constructor(width, height, longer = DETAIL) {
    const scale = longer / Math.max(width, height);
    this.width = Math.max(1, Math.round(width * scale));
    this.height = Math.max(1, Math.round(height * scale));
    this.made = new WeakMap();
  }

  /** The mask of an instance at this scale; null where it has no pixel. */
  mask(instance) {
    if (!instance.patch) return null;
    let entry = this.made.get(instance.patch);
    if (!entry) {
      entry = { mask: cropMask(instance.patch, this.height, this.width) };
      this.made.set(instance.patch, entry);
    }
    return entry.mask;
  }

  /** The mask as a picture of one color, with an outline. */
  image(instance, color) {
    const mask = this.mask(instance);
    if (!mask) return null;
    const entry = this.made.get(instance.patch), key = color.join();
    if (entry.key !== key) Object.assign(entry, { key, image: paint(mask, color, this.line) });
    return entry.image;
  }

  get line() {
    return Math.max(2, Math.round(Math.max(this.width, this.height) / 320));
  }
}

/** A mask as a canvas: its inside transparent, its edge full. */
function paint(mask, color, line) {
  const { bits, width, height } = mask;
  const pixels = new ImageData(width, height);
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && bits[y * width + x];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (!bits[i]) continue;
      const inner = at(x - line, y) && at(x + line, y) && at(x, y - line) && at(x, y + line);
      pixels.data.set([...color, inner ? FILL * 255 : 255], 4 * i);
    }
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/**
 * Draw a picture and what was found in it.
 *
 * @param {CanvasRenderingContext2D} pen Of the canvas.
 * @param {{left: number, top: number, width: number, height: number}} place Where the picture goes.
 * @param {object} scene `bitmap`, its `layers`, `shown` (instances with color, number and label),
 *   the `marked` instance or null, `clicks` and the `cross` in pixels of the picture.
 * @param {number} unit Size of a pixel of text and lines.
 */
export function draw(pen, place, scene, unit) {
  const { bitmap, layers, shown, marked } = scene;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, place.left, place.top, place.width, place.height);
  const x = (value) => place.left + (value / layers.width) * place.width;
  const y = (value) => place.top + (value / layers.height) * place.height;
  const scale = place.width / layers.width;
  // Large ones first, so that smaller ones on top of them stay visible.
  const order = [...shown].sort((a, b) => areaOf(layers, b) - areaOf(layers, a));
  for (const one of order) {
    pen.globalAlpha = marked && marked !== one.instance ? 0.25 : 1;
    const mask = layers.mask(one.instance), image = layers.image(one.instance, one.color);
    if (image) {
      pen.drawImage(image, x(mask.left), y(mask.top), mask.width * scale, mask.height * scale);
    } else if (one.instance.box && !one.instance.patch) {
      const [x0, y0, x1, y1] = boxOf(one, scene);
      pen.strokeStyle = `rgb(${one.color})`;
      pen.lineWidth = 2 * unit;
      pen.strokeRect(x(x0), y(y0), x(x1) - x(x0), y(y1) - y(y0));
    }
  }
  pen.globalAlpha = 1;
  const labeled = marked ? shown.filter(({ instance }) => instance === marked) : shown;
  drawLabels(pen, place, scene, labeled.slice(0, MAX_LABELS), unit);
  for (const click of scene.clicks) drawClick(pen, place, scene, click, unit);
  if (scene.cross) drawCross(pen, place, scene, unit);
}

function areaOf(layers, { instance }) {
  return layers.mask(instance)?.area ?? 0;
}

/** The box of an instance in cells of the layers: that of its mask, where it has one. */
function boxOf({ instance }, { layers, bitmap }) {
  const mask = layers.mask(instance);
  if (mask) return [mask.left, mask.top, mask.left + mask.width, mask.top + mask.height];
  const scale = layers.width / bitmap.width;
  return (instance.box ?? [0, 0, 0, 0]).map((value) => value * scale);
}

/** Names and scores, moved down where they would cover each other. */
function drawLabels(pen, place, scene, labeled, unit) {
  const size = 13 * unit, pad = 5 * unit, high = size + 1.2 * pad, taken = [];
  pen.font = `600 ${size}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  for (const one of labeled) {
    const [x0, y0] = boxOf(one, scene);
    const text = shorten(pen, one.text, place.width - 2 * pad);
    const width = pen.measureText(text).width + 2 * pad + 4 * unit;
    const right = place.left + place.width - width, bottom = place.top + place.height - high;
    const left = Math.max(place.left, Math.min(
      place.left + (x0 / scene.layers.width) * place.width, right));
    let top = Math.max(place.top, Math.min(
      place.top + (y0 / scene.layers.height) * place.height - high, bottom));
    const covers = (other) => left < other.left + other.width && other.left < left + width
      && top < other.top + high && other.top < top + high;
    for (let tries = 0; tries < 12 && taken.some(covers); tries++) {
      top = Math.min(Math.max(...taken.filter(covers).map((other) => other.top)) + high + unit, bottom);
    }
    taken.push({ left, top, width });
    pen.fillStyle = INK;
    pen.fillRect(left, top, width, high);
    pen.fillStyle = `rgb(${one.color})`;
    pen.fillRect(left, top, 4 * unit, high);
    pen.fillStyle = "white";
    pen.fillText(text, left + 4 * unit + pad, top + high / 2);
  }
}

function shorten(pen, text, room) {
  let kept = text;
  while (kept.length > 4 && pen.measureText(kept).width > room) {
    kept = `${kept.slice(0, -2).replace(/…$/, "")}…`;
  }
  return kept;
}

function drawClick(pen, place, { bitmap }, click, unit) {
  const x = place.left + (click.x / bitmap.width) * place.width;
  const y = place.top + (click.y / bitmap.height) * place.height;
  pen.beginPath();
  pen.arc(x, y, 7 * unit, 0, 2 * Math.PI);
  pen.fillStyle = click.label ? POSITIVE : NEGATIVE;
  pen.fill();
  pen.lineWidth = 2 * unit;
  pen.strokeStyle = "white";
  pen.stroke();
  pen.fillStyle = "white"; // a sign, for those who do not see the color
  pen.fillRect(x - 4 * unit, y - unit, 8 * unit, 2 * unit);
  if (click.label) pen.fillRect(x - unit, y - 4 * unit, 2 * unit, 8 * unit);
}

function drawCross(pen, place, { bitmap, cross }, unit) {
  const x = place.left + (cross.x / bitmap.width) * place.width;
  const y = place.top + (cross.y / bitmap.height) * place.height;
  for (const [color, width] of [["black", 4], ["white", 2]]) {
    pen.strokeStyle = color;
    pen.lineWidth = width * unit;
    pen.beginPath();
    for (const [u, v] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 4 * u * unit, y + 4 * v * unit);
      pen.lineTo(x + 16 * u * unit, y + 16 * v * unit);
    }
    pen.stroke();
  }
}
