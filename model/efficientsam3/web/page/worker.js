// The model runs here, so that the page answers while it computes.

import { readChosen, readFrom } from "./files.js";
import { Model, readModel } from "./model.js";
import { Sessions, hasWebGpu, loadRuntime } from "./runtime.js";

let model = null;
let features = null; // of the picture that is shown
let queue = Promise.resolve();

const actions = {
  /** Open a model: {base} or {files}, and which {provider} and {threads}; undefined: the best. */
  async open({ base, files, provider, threads }, progress) {
    features = null;
    const note = (name, done) => progress({ name, done });
    const read = files ? readChosen(files) : readFrom(base, note);
    const { manifest, tokenizer } = await readModel(read);
    progress({ sizes: manifest.files });
    // Eight-bit operators are those of WebAssembly.
    const gpu = manifest.precision !== "int8" && await hasWebGpu();
    const chosen = provider ?? (gpu ? "webgpu" : "wasm");
    const ort = await loadRuntime(chosen, threads);
    const sessions = new Sessions(ort, chosen, manifest.graphs, read);
    model = new Model(manifest, sessions, tokenizer);
    await sessions.open("image");
    const { name, precision, version, abilities } = manifest;
    return { name, precision, version, abilities, runs: sessions.description };
  },

  /** Read and encode a picture, which is a Blob. */
  async encode({ blob }) {
    features = null;
    const picture = await readPixels(blob);
    features = await model.encode(picture);
    return { width: features.width, height: features.height };
  },

  /** Find phrases in the picture. */
  segment: ({ phrases, threshold }) => model.segment(features, phrases, threshold),

  /** Segment the object at some clicks. */
  click: ({ clicks }) => model.segmentObject(features, clicks),

  /** Read a graph ahead of its use. */
  prepare: ({ graph }) => model.prepare(graph),
};

/** The pixels of a picture file, upright, without the conversion of its color profile. */
async function readPixels(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {
      imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none",
    });
  } catch {
    throw Object.assign(new Error("unreadable"), { kind: "picture" });
  }
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  return pen.getImageData(0, 0, width, height);
}

/** What the page is told of an error. */
function describe(error) {
  const text = String(error?.message ?? error);
  const memory = /out of memory|bad_alloc|allocation failed|aborted|memory access out of/i;
  if (error?.kind) return { kind: error.kind, text };
  if (error?.constructor?.name === "ModelError") return { kind: "model", text };
  if (error instanceof RangeError || memory.test(text)) return { kind: "memory", text };
  return { kind: "other", text };
}

// One action at a time: they share the model.
self.onmessage = ({ data: { id, action, values } }) => {
  queue = queue.then(async () => {
    const started = performance.now();
    const progress = (values) => self.postMessage({ id, progress: values });
    try {
      const result = await actions[action](values, progress);
      const seconds = (performance.now() - started) / 1000;
      self.postMessage({ id, result, seconds });
    } catch (error) {
      self.postMessage({ id, error: describe(error) });
    }
  });
};
