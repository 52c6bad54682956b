// What the page knows.

import { instanceColors } from "./colors.js";

/** The name that `efficientsam3 segment` gives what was clicked. */
export const OBJECT = "object";

/** An element by its id. */
export const $ = (id) => document.getElementById(id);

export const state = {
  model: null, // what the engine knows of it
  sizes: {}, // bytes of the model's files, by name
  loaded: new Map(), // bytes of them that arrived
  picture: null, // {bitmap, blob, name, layers}
  opening: null, // a promise: the model is open
  encoded: null, // a promise: the picture is encoded
  found: { instances: [], presence: {}, names: [] },
  objects: [], // [{clicks, instance}], the last one is the one that clicks correct
  place: null, // where the picture is on the canvas, in its pixels
  marked: null, // the instance that is pointed at
  pinned: null, // the one that was chosen in the list
  cross: null, // the place that the arrow keys move
  choices: 0, // pictures that were chosen
  jobs: 0, // actions that are going on
  job: "", // the last of them, for people
};

/** What is above the threshold, then the objects: instances with numbers, texts and colors. */
export function shown() {
  const threshold = Math.fround(Number($("threshold").value));
  const instances = state.found.instances.filter(({ score }) => score > threshold);
  instances.push(...state.objects.map(({ instance }) => instance).filter(Boolean));
  const colors = instanceColors(instances.map(({ label }) => label), state.found.names);
  return instances.map((instance, i) => ({
    instance, color: colors[i], number: i + 1,
    text: `${i + 1} ${instance.label} ${instance.score.toFixed(2)}`,
  }));
}

/** The names that were searched for, and those of objects. */
export function allNames(list) {
  return [...new Set([...state.found.names, ...list.map(({ instance }) => instance.label)])];
}
