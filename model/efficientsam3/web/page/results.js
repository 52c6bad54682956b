// The list of results: each can be pointed at, chosen, and read by a screen reader.

/**
 * Show what was found as a list. Items that stay keep their elements, and with them the focus.
 *
 * @param {HTMLElement} list The list.
 * @param {object[]} shown Instances with color, number and text.
 * @param {object} does `describe`, `mark` and `pin` take an instance; `remove` gives a function
 *   for what can be removed; `pinned` is the instance that is chosen.
 */
export function showList(list, shown, does) {
  const known = new Map([...list.children].map((row) => [row.instance, row]));
  const rows = shown.map((one) => fill(known.get(one.instance) ?? makeRow(one, does), one, does));
  const kept = new Set(rows);
  for (const row of [...list.children]) if (!kept.has(row)) row.remove();
  rows.forEach((row, i) => {
    if (list.children[i] !== row) list.insertBefore(row, list.children[i] ?? null);
  });
}

function makeRow({ instance }, { mark, pin, remove }) {
  const row = document.createElement("li");
  const item = document.createElement("button");
  Object.assign(item, { type: "button", className: "item", instance });
  item.append(swatch(), part("name"), part("where"), part("score"));
  item.addEventListener("click", () => pin(instance));
  for (const event of ["pointerenter", "focus"]) item.addEventListener(event, () => mark(instance));
  for (const event of ["pointerleave", "blur"]) item.addEventListener(event, () => mark(null));
  row.instance = instance;
  row.append(item);
  const removes = remove(instance);
  if (removes) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: "×", title: "Remove" });
    button.setAttribute("aria-label", `Remove ${instance.label}`);
    button.addEventListener("click", removes);
    row.append(button);
  }
  return row;
}

function fill(row, one, { describe, pinned }) {
  const { instance, color, number } = one, item = row.firstChild;
  item.querySelector("rect").setAttribute("fill", `rgb(${color})`);
  const [name, where, score] = [`${number} ${instance.label}`, describe(one), instance.score.toFixed(2)];
  item.querySelector(".name").textContent = name;
  item.querySelector(".where").textContent = where;
  item.querySelector(".score").textContent = score;
  item.setAttribute("aria-label", `${name}, score ${score}, ${where}`);
  item.setAttribute("aria-pressed", String(pinned === instance));
  return row;
}

function part(name) {
  const element = document.createElement("span");
  element.className = name;
  return element;
}

function swatch() {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), rect = document.createElementNS(space, "rect");
  for (const [name, value] of Object.entries({ width: 14, height: 14, rx: 3 })) rect.setAttribute(name, value);
  svg.setAttribute("viewBox", "0 0 14 14");
  svg.setAttribute("aria-hidden", "true");
  svg.append(rect);
  return svg;
}
