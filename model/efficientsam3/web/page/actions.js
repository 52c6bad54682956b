// Actions: from choices of the user to the model, and from its answers to the page.

import { readPhrases } from "./concepts.js";
import { Engine } from "./engine.js";
import { explain, megabytes, seconds } from "./messages.js";
import { download, makeCoco, makePng } from "./save.js";
import { scene, update } from "./show.js";
import { $, OBJECT, allNames, shown, state } from "./state.js";
import { Layers } from "./view.js";

const AHEAD = ["text", "heads", "mask_image", "masks", "frame", "points", "objects"];
const canvas = $("picture");

export const engine = new Engine(({ sizes, name, done }) => {
  if (sizes) state.sizes = sizes;
  else state.loaded.set(name, done);
  showProgress();
});

// Status and errors -------------------------------------------------------------------------------

/** Run a job with a text about it; errors are shown. Gives undefined where it failed. */
async function work(text, subject, job) {
  state.jobs += 1;
  state.job = text;
  $("error").hidden = true;
  showProgress();
  try {
    return await job();
  } catch (error) {
    fail(explain(error, subject));
    return undefined;
  } finally {
    state.jobs -= 1;
    if (!state.jobs) say(ready());
    showProgress();
  }
}

function say(text) {
  $("status").textContent = text;
}

function fail(text) {
  if (!text) return;
  $("error").textContent = text;
  $("error").hidden = false;
}

function ready() {
  if (!state.model) return "No model";
  return state.picture ? "Ready" : "Choose a picture to begin";
}

/** The bar moves with the bytes of the model while these arrive, and runs while something works. */
function showProgress() {
  const bar = $("progress");
  bar.classList.toggle("idle", !state.jobs);
  bar.removeAttribute("value");
  if (!state.jobs) return;
  let done = 0, total = 0; // of the files that were begun
  for (const [name, size] of state.loaded) {
    done += size;
    total += state.sizes[name] ?? size;
  }
  if (done < total) {
    bar.value = done / total;
    say(`${state.job}: loading ${megabytes(done)} of ${megabytes(total)}`);
  } else {
    say(state.job);
  }
}

// Model -------------------------------------------------------------------------------------------

export async function openModel(source) {
  Object.assign(state, { model: null, loaded: new Map(), sizes: {} });
  const info = await work("Opening the model", "The model", () => engine.open(source));
  if (!info) {
    showFacts();
    return;
  }
  state.model = info;
  const clicks = info.abilities.includes("interactive");
  $("clicks").disabled = !clicks;
  $("click-help").hidden = !clicks;
  $("no-clicks").hidden = clicks;
  showFacts();
  say(ready());
  if (state.picture) await encode();
}

function showFacts() {
  const { model } = state, { seconds: took = {} } = engine;
  const rows = model ? [
    ["Name", model.name], ["Numbers", model.precision], ["Runs on", engine.info.runs],
    ["Picture", seconds(took.encode)], ["Phrases", seconds(took.segment)],
    ["Click", seconds(took.click)],
  ] : [["Name", "none is open"]];
  $("facts").replaceChildren(...rows.flatMap(([term, text]) => {
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    dt.textContent = term;
    dd.textContent = text;
    return [dt, dd];
  }));
}

/** Read graphs before they are needed, while nothing else is to do. */
async function readAhead(promise) {
  for (const graph of AHEAD) {
    if (state.jobs || state.encoded !== promise) return;
    try {
      await engine.send("prepare", { graph });
    } catch {
      return; // it is said when the graph is needed
    }
  }
}

// Picture -----------------------------------------------------------------------------------------

export async function openPicture(blob, name) {
  const choice = ++state.choices;
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    fail(explain({ kind: "picture" }, name));
    return;
  }
  if (choice !== state.choices) return; // another one was chosen meanwhile
  state.picture?.bitmap.close();
  const { width, height } = bitmap;
  state.picture = { bitmap, blob, name, layers: new Layers(width, height) };
  Object.assign(state, { objects: [], cross: null });
  clearFound();
  $("picture-name").textContent = `${name}, ${width} × ${height} pixels`;
  $("drop").classList.add("ready");
  $("empty").hidden = true;
  canvas.tabIndex = 0;
  canvas.setAttribute("aria-label", `Picture ${name}`);
  update();
  if (state.model) await encode();
}

function encode() {
  const { blob, name } = state.picture;
  const promise = work(`Reading ${name}`, name, () => engine.encode(blob));
  state.encoded = promise;
  return promise.then(() => {
    showFacts();
    readAhead(promise);
  });
}

/** Wait until the picture is encoded; false, with a sentence, where that cannot be. */
async function hasPicture() {
  if (!state.picture) {
    fail("Choose a picture first, or a sample.");
    $("choose").focus();
    return false;
  }
  await state.opening;
  if (!state.model) {
    fail("No model is open. Open the folder of one, under “Model”.");
    return false;
  }
  return Boolean(await state.encoded);
}

export async function openSample(address, phrases) {
  const name = address.split("/").pop();
  const answer = await fetch(new URL(address, document.baseURI)).catch(() => null);
  if (!answer?.ok) {
    fail(`${name} cannot be loaded: the server does not answer. Start it again.`);
    return;
  }
  $("phrases").value = phrases;
  await openPicture(await answer.blob(), name);
  await find();
}

// Finding and clicking ----------------------------------------------------------------------------

export async function find() {
  let phrases;
  try {
    phrases = readPhrases($("phrases").value);
  } catch (error) {
    fail(error.message);
    $("phrases").focus();
    return;
  }
  if (!await hasPicture()) return;
  const { picture } = state, names = phrases.map(({ name }) => name);
  const values = { phrases, threshold: Number($("threshold").min) };
  const found = await work(
    `Looking for ${names.join(", ")}`, "The search", () => engine.call("segment", values),
  );
  if (!found || state.picture !== picture) return;
  state.found = { ...found, names };
  Object.assign(state, { marked: null, pinned: null });
  if (found.cut.length) {
    fail(`The model reads only the beginning of “${found.cut[0]}”. Shorten it.`);
  }
  update();
  showFacts();
}

export async function click(x, y, label) {
  if (!await hasPicture()) return;
  if ($("clicks").disabled) {
    fail("This model has no part for clicks. Type what to find instead.");
    return;
  }
  if (!state.objects.length) state.objects.push({ clicks: [], instance: null });
  const object = state.objects.at(-1);
  if (!label && !object.clicks.length) {
    fail("Click on the object first; then on what does not belong to it.");
    return;
  }
  object.clicks.push({ x, y, label });
  await segment(object);
}

async function segment(object) {
  const { picture } = state, clicks = [...object.clicks];
  update();
  const instance = await work(
    "Looking at the object", "The click", () => engine.call("click", { clicks }),
  );
  if (state.picture !== picture || clicks.length !== object.clicks.length) return;
  if (!instance) object.clicks.pop();
  else object.instance = { ...instance, label: OBJECT };
  Object.assign(state, { marked: null, pinned: null });
  update();
  showFacts();
}

export async function undo() {
  const object = state.objects.at(-1);
  object?.clicks.pop();
  if (object?.clicks.length) {
    await segment(object);
    return;
  }
  state.objects.pop();
  update();
}

export function nextObject() {
  state.objects.push({ clicks: [], instance: null });
  update();
  say("Click on the next object");
}

function clearFound() {
  state.found = { instances: [], presence: {}, names: [] };
  Object.assign(state, { marked: null, pinned: null });
}

// Saving ------------------------------------------------------------------------------------------

const stem = () => state.picture.name.replace(/\.[^.]*$/, "");

export function saveCoco() {
  const list = shown(), { bitmap, name } = state.picture;
  const content = makeCoco({
    name, width: bitmap.width, height: bitmap.height,
    instances: list.map(({ instance }) => instance), names: allNames(list),
    presence: state.found.presence, model: state.model,
    settings: { concepts: state.found.names, threshold: Number($("threshold").value) },
  });
  download(new Blob([JSON.stringify(content)], { type: "application/json" }), `${stem()}.json`);
  say(`${stem()}.json is saved`);
}

export async function savePng() {
  const name = `${stem()}-masks.png`;
  const blob = await work(`Drawing ${name}`, name, () => makePng(scene(shown())).catch((error) => {
    throw Object.assign(error, { kind: "memory" });
  }));
  if (blob) download(blob, name);
}
