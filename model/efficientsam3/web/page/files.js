// The files of a model: of this site, or of a folder that was chosen on this device.

import { ModelError } from "./model.js";

/**
 * A reader of files below an address.
 *
 * @param {string} base The address, which ends in a slash.
 * @param {(name: string, done: number) => void} onProgress Called with the bytes that arrived.
 * @returns {(name: string) => Promise<Uint8Array>} The reader.
 */
export function readFrom(base, onProgress) {
  return async (name) => {
    let answer;
    try {
      answer = await fetch(new URL(name, base));
    } catch {
      throw new ModelError(`${name} of the model cannot be loaded: the server does not answer. `
        + "Start it again, or check the network.");
    }
    if (!answer.ok) {
      throw new ModelError(`${name} of the model cannot be loaded (${answer.status}). Open a `
        + "model's folder, or write the site again.");
    }
    const parts = [];
    let done = 0;
    const reader = answer.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      done += part.value.length;
      onProgress(name, done);
    }
    return joined(parts, done);
  };
}

/**
 * A reader of chosen files.
 *
 * @param {File[]} files The files of a folder.
 * @returns {(name: string) => Promise<Uint8Array>} The reader.
 */
export function readChosen(files) {
  const byName = new Map(files.map((file) => [file.name, file]));
  return async (name) => {
    const file = byName.get(name);
    if (!file) {
      const rule = name === "manifest.json"
        ? "This is not the folder of an exported model. Make one with: "
        : `The folder lacks ${name}: copy it again, or export the model again with: `;
      throw new ModelError(`${rule}efficientsam3 export --to onnx --out FOLDER`);
    }
    return new Uint8Array(await file.arrayBuffer());
  };
}

function joined(parts, length) {
  const out = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
