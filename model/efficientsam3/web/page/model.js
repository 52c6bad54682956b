// An exported model: from pixels, phrases and clicks to instances, as runtime/model.py and segmenter.py.

import { cutPatch, fillHoles, suppress } from "./masks.js";
import { normalize } from "./pixels.js";
import { Tokenizer } from "./tokenizer.js";

const FORMAT = 2;
const PHRASES_TOGETHER = 4;

const f = Math.fround;
const sigmoid = (x) => f(0.5 * (1 + Math.tanh(0.5 * x)));

/** The model cannot be used; the message says why and what to do. */
export class ModelError extends Error {}

/** A model whose graphs are read when they are first needed. */
export class Model {
  /**
   * @param {object} manifest Content of manifest.json.
   * @param {object} sessions Has `run(graph, inputs)`, which gives tensors by name, and `Tensor`.
   * @param {Tokenizer} tokenizer Its tokenizer.
   */
  constructor(manifest, sessions, tokenizer) {
    Object.assign(this, { manifest, sessions, tokenizer });
    this.texts = new Map();
  }

  can(ability) {
    return this.manifest.abilities.includes(ability);
  }

  /**
   * Run the image encoder.
   *
   * @param {{data: Uint8ClampedArray, width: number, height: number}} picture RGBA values.
   * @returns {Promise<object>} Features, which the other methods take.
   */
  async encode(picture) {
    const { resolution, mean, std } = this.manifest.preprocessing;
    const pixels = this.tensor("float32", normalize(picture, resolution, mean, std),
      [1, 3, resolution, resolution]);
    const image = await this.sessions.run("image", { pixels });
    return { image, width: picture.width, height: picture.height };
  }

  /**
   * Find the instances of some phrases.
   *
   * @param {object} features From `encode`.
   * @param {{name: string, text: string}[]} phrases From `readPhrases`.
   * @param {number} threshold Instances that score more than this are found.
   * @returns {Promise<object>} Instances, in the order of phrases and of decreasing scores; the
   *   presence of each phrase; and phrases of which the model reads a part.
   */
  async segment(features, phrases, threshold) {
    this.require("concepts");
    const instances = [], presence = {}, cut = [];
    for (let start = 0; start < phrases.length; start += PHRASES_TOGETHER) {
      const some = phrases.slice(start, start + PHRASES_TOGETHER);
      const answers = await this.answer(features, some);
      for (const [row, { name }] of some.entries()) {
        presence[name] = answers.presence[row];
        if (answers.cut[row]) cut.push(name);
        instances.push(...await this.instances(features, answers, row, name, threshold));
      }
    }
    return { instances, presence, cut };
  }

  /**
   * Segment one object.
   *
   * @param {object} features From `encode`.
   * @param {{x: number, y: number, label: number}[]} clicks In pixels; 1 on the object, 0 off it.
   * @returns {Promise<object>} An instance without a box, which is that of its mask.
   */
  async segmentObject(features, clicks) {
    this.require("interactive");
    features.frame ??= await this.sessions.run("frame", features.image);
    const count = clicks.length, side = 4 * this.manifest.preprocessing.grid;
    const points = Float32Array.from(
      clicks.flatMap(({ x, y }) => [f(x) / f(features.width), f(y) / f(features.height)]),
    );
    const labels = BigInt64Array.from(clicks, ({ label }) => BigInt(label));
    const { sparse } = await this.sessions.run("points", {
      points: this.tensor("float32", points, [1, count, 2]),
      labels: this.tensor("int64", labels, [1, count]),
    });
    const found = await this.sessions.run("objects", {
      ...features.frame,
      sparse,
      mask_input: this.tensor("float32", new Float32Array(side * side), [1, 1, side, side]),
      has_mask: this.tensor("float32", new Float32Array(1), [1, 1, 1, 1]),
    });
    const [, , rows, columns] = found.logits.dims;
    const logits = found.logits.data.slice(0, rows * columns); // the single mask
    fillHoles(logits, rows, columns);
    return {
      score: found.quality.data[0],
      presence: sigmoid(found.presence.data[0]),
      patch: cutPatch(logits, rows, columns),
    };
  }

  /** Read a graph before it is needed. */
  async prepare(graph) {
    if (graph in this.manifest.graphs) await this.sessions.open(graph);
  }

  require(ability) {
    if (this.can(ability)) return;
    const missing = (this.manifest.missing[ability] ?? [ability]).join(" and no ");
    throw new ModelError(`${this.manifest.name} cannot do this: it has no ${missing}. `
      + "Export a model that has it, and open that folder.");
  }

  /** Scores, presence and boxes of phrases, and what their masks need. */
  async answer(features, phrases) {
    const { words, valid, cut, length, width } = await this.readText(phrases);
    const count = phrases.length;
    const bare = features.image.bare_prompt.data;
    const prompt = new Float32Array(count * (length + 1) * width);
    const keep = new Uint8Array(count * (length + 1)).fill(1);
    for (let row = 0; row < count; row++) {
      prompt.set(words[row], row * (length + 1) * width);
      prompt.set(bare, (row * (length + 1) + length) * width);
      keep.set(valid[row], row * (length + 1));
    }
    const asked = {
      prompt: this.tensor("float32", prompt, [count, length + 1, width]),
      valid: this.tensor("bool", keep, [count, length + 1]),
    };
    const found = await this.sessions.run("heads", { ...features.image, ...asked });
    const presence = Float32Array.from(found.presence.data, sigmoid);
    if (!presence.every(Number.isFinite)) throw new Error("its numbers are not finite");
    const queries = found.logits.dims[1];
    const scores = Float32Array.from(
      found.logits.data,
      (logit, i) => f(sigmoid(logit) * presence[Math.floor(i / queries)]),
    );
    return { scores, presence, queries, cut, raw: { ...found, ...asked } };
  }

  /** Features of phrases; those that were asked before are kept. */
  async readText(phrases) {
    const unknown = phrases.filter(({ text }) => !this.texts.has(text));
    if (unknown.length) {
      const { context } = this.manifest.tokenizer;
      const { ids, cut } = this.tokenizer.read(unknown.map(({ text }) => text));
      const { words } = await this.sessions.run("text", {
        ids: this.tensor("int64", ids, [unknown.length, context]),
      });
      const size = context * words.dims[2];
      unknown.forEach(({ text }, row) => this.texts.set(text, {
        words: words.data.slice(row * size, (row + 1) * size),
        valid: Uint8Array.from(ids.subarray(row * context, (row + 1) * context), (id) => id !== 0n),
        width: words.dims[2],
        cut: cut[row],
      }));
    }
    const known = phrases.map(({ text }) => this.texts.get(text));
    return {
      words: known.map((entry) => entry.words),
      valid: known.map((entry) => entry.valid),
      cut: known.map((entry) => entry.cut),
      length: this.manifest.tokenizer.context,
      width: known[0].width,
    };
  }

  /** The instances of one phrase that score more than a threshold, the best first. */
  async instances(features, answers, row, name, threshold) {
    const { queries, raw } = answers;
    const scores = answers.scores.subarray(row * queries, (row + 1) * queries);
    let kept = [...scores.keys()].filter((query) => scores[query] > f(threshold));
    kept.sort((a, b) => scores[b] - scores[a]);
    let patches = null;
    if (kept.length && this.can("masks")) {
      const masks = await this.masks(features, raw, row, kept);
      const { nms } = this.manifest.postprocessing;
      const best = nms === null ? [...kept.keys()] : suppress(masks.logits, nms);
      patches = best.map((i) => cutPatch(masks.logits[i], masks.rows, masks.columns));
      kept = best.map((i) => kept[i]);
    }
    return kept.map((query, i) => ({
      label: name,
      score: scores[query],
      presence: answers.presence[row],
      box: toPixels(raw.boxes.data.subarray((row * queries + query) * 4), features),
      patch: patches && patches[i],
    }));
  }

  /** Mask logits of some queries of one prompt. */
  async masks(features, raw, row, queries) {
    features.masks ??= await this.sessions.run("mask_image", features.image);
    const inputs = {};
    for (const name of Object.keys(this.manifest.graphs.masks.inputs)) {
      const tensor = raw[name];
      if (!tensor) continue; // of the picture, the same for all prompts
      const size = tensor.data.length / tensor.dims[0];
      const one = tensor.data.slice(row * size, (row + 1) * size);
      inputs[name] = this.tensor(tensor.type, one, [1, ...tensor.dims.slice(1)]);
    }
    for (const name of ["queries", "boxes"]) {
      const { data, dims: [, , width] } = inputs[name];
      const chosen = new Float32Array(queries.length * width);
      queries.forEach((query, i) => {
        chosen.set(data.subarray(query * width, (query + 1) * width), i * width);
      });
      inputs[name] = this.tensor("float32", chosen, [1, queries.length, width]);
    }
    const { masks } = await this.sessions.run("masks", { ...inputs, ...features.masks });
    const [, , rows, columns] = masks.dims, size = rows * columns;
    return {
      rows, columns,
      logits: queries.map((_, i) => masks.data.subarray(i * size, (i + 1) * size)),
    };
  }

  tensor(type, data, dims) {
    return new this.sessions.Tensor(type, data, dims);
  }
}

/**
 * Read and check a manifest, and read the tokenizer.
 *
 * @param {(name: string) => Promise<Uint8Array>} read Reads a file of the exported folder.
 * @returns {Promise<{manifest: object, tokenizer: Tokenizer}>} Of the folder.
 * @throws {ModelError} The folder holds no model that a browser can run.
 */
export async function readModel(read) {
  const again = "Export it with: efficientsam3 export --to onnx --out FOLDER";
  const manifest = await parse(read, "manifest.json", again);
  if (manifest.format !== FORMAT) {
    throw new ModelError(`The model's folder has format ${manifest.format}, and this page reads `
      + `format ${FORMAT}. ${again}`);
  }
  if (manifest.backend !== "onnx") {
    throw new ModelError(`The model was exported for ${manifest.backend}, and a browser runs `
      + `ONNX. ${again}`);
  }
  const file = await parse(read, manifest.tokenizer.file, again);
  return { manifest, tokenizer: new Tokenizer(file, manifest.tokenizer) };
}

async function parse(read, name, again) {
  const bytes = await read(name);
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new ModelError(`${name} of the model's folder is damaged. ${again}`);
  }
}

/** A box cxcywh in [0, 1] as xyxy pixels, within the picture. */
function toPixels([cx, cy, w, h], { width, height }) {
  const edge = (center, half, limit) => Math.min(Math.max(f(f(center + half) * limit), 0), limit);
  return [
    edge(cx, -f(w / 2), width), edge(cy, -f(h / 2), height),
    edge(cx, f(w / 2), width), edge(cy, f(h / 2), height),
  ];
}
