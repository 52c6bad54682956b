// The page's events.

import {
  click, find, nextObject, openModel, openPicture, openSample, saveCoco, savePng, undo,
} from "./actions.js";
import { redraw, showItem, update } from "./show.js";
import { $, shown, state } from "./state.js";

const canvas = $("picture");

/** The place of a pointer in pixels of the picture; null outside. */
function pixelAt(event) {
  if (!state.place) return null;
  const area = canvas.getBoundingClientRect(), { left, top, width, height, ratio } = state.place;
  const x = ((event.clientX - area.left) * ratio - left) / width;
  const y = ((event.clientY - area.top) * ratio - top) / height;
  if (x < 0 || y < 0 || x > 1 || y > 1) return null;
  return { x: x * state.picture.bitmap.width, y: y * state.picture.bitmap.height };
}

/** The smallest mask at a place. */
function instanceAt({ x, y }) {
  const { layers, bitmap } = state.picture, scale = layers.width / bitmap.width;
  let best = null;
  for (const { instance } of shown()) {
    const mask = layers.mask(instance);
    if (!mask) continue;
    const u = Math.floor(x * scale) - mask.left, v = Math.floor(y * scale) - mask.top;
    const inside = u >= 0 && v >= 0 && u < mask.width && v < mask.height;
    if (inside && mask.bits[v * mask.width + u] && (!best || mask.area < best.area)) {
      best = { instance, area: mask.area };
    }
  }
  return best?.instance ?? null;
}

const sign = (event) => (event.shiftKey ? 0 : Number(document.querySelector("[name=sign]:checked").value));

canvas.addEventListener("click", (event) => {
  const at = pixelAt(event);
  if (at) click(at.x, at.y, sign(event));
});
canvas.addEventListener("pointermove", (event) => {
  const at = event.pointerType === "mouse" && pixelAt(event);
  showItem(at ? instanceAt(at) : null);
});
canvas.addEventListener("pointerleave", () => showItem(null));
canvas.addEventListener("blur", () => {
  state.cross = null;
  redraw();
});
canvas.addEventListener("keydown", (event) => {
  if (!state.picture) return;
  const { width, height } = state.picture.bitmap;
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (move) {
    const step = Math.max(width, height) / (event.ctrlKey ? 200 : 40);
    const from = state.cross ?? { x: width / 2, y: height / 2 };
    const within = (value, limit) => Math.min(limit, Math.max(0, value));
    state.cross = {
      x: within(from.x + move[0] * step, width), y: within(from.y + move[1] * step, height),
    };
    redraw();
  } else if (event.key === "Enter" && state.cross) {
    click(state.cross.x, state.cross.y, sign(event));
  } else {
    return;
  }
  event.preventDefault();
});

$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  find();
});
$("threshold").addEventListener("input", () => {
  $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
  update();
});
$("choose").addEventListener("change", ({ target }) => {
  if (target.files[0]) openPicture(target.files[0], target.files[0].name);
  target.value = ""; // the same file can be chosen again
});
$("folder").addEventListener("change", ({ target }) => {
  if (target.files.length) state.opening = openModel({ files: [...target.files] });
  target.value = "";
});
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", () => openSample(button.dataset.sample, button.dataset.phrases));
}
$("undo").addEventListener("click", undo);
$("next").addEventListener("click", nextObject);
$("save-coco").addEventListener("click", saveCoco);
$("save-png").addEventListener("click", savePng);

const drop = $("drop");
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("target");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("target");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("target");
  const [file] = event.dataTransfer.files;
  if (file) openPicture(file, file.name);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (file) openPicture(file, file.name || "pasted.png");
});
new ResizeObserver(() => redraw()).observe(canvas);

const asked = new URLSearchParams(location.search);
state.opening = openModel({
  base: new URL("model/", document.baseURI).href,
  provider: asked.get("provider") ?? undefined,
  threads: Number(asked.get("threads")) || 0,
});
