// Shows what was found: the picture, the list and the buttons.

import { countNames, placeOf } from "./messages.js";
import { showList } from "./results.js";
import { $, allNames, shown, state } from "./state.js";
import { draw } from "./view.js";

const canvas = $("picture");

/** Show everything that is known. */
export function update() {
  const list = shown(), names = allNames(list);
  const current = state.objects.at(-1);
  $("undo").disabled = !current?.clicks.length && state.objects.length < 2;
  $("next").disabled = !current?.instance;
  $("save-coco").disabled = $("save-png").disabled = !state.picture || !names.length;
  const counts = countNames(list.map(({ instance }) => instance.label), names);
  const summary = names.length ? counts : state.picture ? "Type what to find, or click an object."
    : "Nothing yet.";
  const hint = names.length && !list.length ? " – a lower threshold shows more" : "";
  if ($("summary").textContent !== summary + hint) $("summary").textContent = summary + hint;
  showList($("list"), list, {
    describe, mark, pin,
    remove: (instance) => state.objects.some((object) => object.instance === instance)
      && (() => remove(instance)),
    pinned: state.pinned,
  });
  redraw(list);
}

/** Where an instance is, and how much of the picture it covers. */
function describe({ instance }) {
  const { layers, bitmap } = state.picture, mask = layers.mask(instance);
  if (instance.patch && !mask) return "no pixel";
  if (!mask) return placeOf(instance.box, bitmap.width, bitmap.height);
  const share = (100 * mask.area) / (layers.width * layers.height);
  const box = [mask.left, mask.top, mask.left + mask.width, mask.top + mask.height];
  return `${placeOf(box, layers.width, layers.height)}, ${share < 1 ? "< 1" : Math.round(share)} %`;
}

/** Show the item of an instance, or of none, in the list. */
export function showItem(instance) {
  for (const item of $("list").querySelectorAll(".item")) {
    item.classList.toggle("shown", item.instance === instance);
  }
}

/** Show an instance of the list, or none, alone in the picture. */
function mark(instance) {
  if (state.marked === instance) return;
  state.marked = instance;
  showItem(instance);
  redraw();
}

function remove(instance) {
  state.objects = state.objects.filter((object) => object.instance !== instance);
  update();
  $("summary").focus();
}

function pin(instance) {
  state.pinned = state.pinned === instance ? null : instance;
  update();
}

/** Draw the picture. */
export function redraw(list = shown()) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth, clientHeight } = canvas;
  canvas.width = Math.round(clientWidth * ratio);
  canvas.height = Math.round(clientHeight * ratio);
  if (!state.picture) return;
  const { bitmap } = state.picture;
  const scale = Math.min(canvas.width / bitmap.width, canvas.height / bitmap.height);
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  state.place = { left: (canvas.width - width) / 2, top: (canvas.height - height) / 2, width, height, ratio };
  draw(canvas.getContext("2d"), state.place, scene(list), ratio);
}

/** What `draw` is given. */
export function scene(list) {
  const marked = list.some(({ instance }) => instance === state.marked) ? state.marked : state.pinned;
  return {
    ...state.picture, shown: list, marked, cross: state.cross,
    clicks: state.objects.at(-1)?.clicks ?? [],
  };
}
