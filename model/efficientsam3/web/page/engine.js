// Speaks with the worker in which the model runs.

/** An action failed; `kind` is "picture", "model", "memory" or "other". */
export class EngineError extends Error {
  constructor({ kind, text }) {
    super(text);
    this.kind = kind;
  }
}

/** The model in its worker. */
export class Engine {
  /** @param {(name: string, done: number) => void} onProgress Called with bytes of a file. */
  constructor(onProgress) {
    this.onProgress = onProgress;
    this.worker = null;
    this.waiting = new Map();
    this.count = 0;
    this.picture = null;
  }

  /**
   * Open a model, in the place of the one before.
   *
   * @param {{base?: string, files?: File[], provider?: string}} source Its address or its files,
   *   and what is to run it; undefined: the best that this browser has.
   * @returns {Promise<object>} Name, abilities, sizes of files, and what runs it.
   */
  async open(source) {
    this.source = source;
    this.picture = null;
    this.restart();
    try {
      this.info = await this.send("open", source);
    } catch (error) {
      if (source.provider || error.kind === "model") throw error;
      // Where a graphics processor cannot run the model, the processor can.
      this.restart();
      this.info = await this.send("open", { ...source, provider: "wasm" });
    }
    return this.info;
  }

  /**
   * Read and encode a picture.
   *
   * @param {Blob} blob The picture's file.
   * @returns {Promise<{width: number, height: number}>} Its size.
   */
  async encode(blob) {
    this.picture = null;
    const size = await this.call("encode", { blob });
    this.picture = blob;
    return size;
  }

  /**
   * Do something with the model. What fails in WebGPU is done again in WebAssembly.
   *
   * @param {string} action An action of the worker.
   * @param {object} values Its values.
   * @returns {Promise<any>} Its result; `seconds` has how long it took.
   */
  async call(action, values) {
    try {
      return await this.send(action, values);
    } catch (error) {
      const isGpu = this.info?.runs === "WebGPU";
      if (!isGpu || !["other", "memory"].includes(error.kind)) throw error;
      this.restart();
      this.info = await this.send("open", { ...this.source, provider: "wasm" });
      if (this.picture && action !== "encode") await this.send("encode", { blob: this.picture });
      return this.send(action, values);
    }
  }

  send(action, values) {
    return new Promise((resolve, reject) => {
      this.waiting.set(++this.count, { action, resolve, reject });
      this.worker.postMessage({ id: this.count, action, values });
    });
  }

  restart() {
    this.worker?.terminate();
    const stopped = [...this.waiting.values()];
    this.waiting.clear();
    for (const { reject } of stopped) reject(new EngineError({ kind: "stopped", text: "stopped" }));
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.seconds = {};
    this.worker.onmessage = ({ data: { id, progress, result, error, seconds } }) => {
      if (progress) {
        this.onProgress(progress.name, progress.done);
        return;
      }
      const { action, resolve, reject } = this.waiting.get(id);
      this.waiting.delete(id);
      if (error) {
        reject(new EngineError(error));
        return;
      }
      this.seconds[action] = seconds;
      resolve(result);
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      const error = new EngineError({ kind: "other", text: event.message || "it cannot be loaded" });
      for (const { reject } of this.waiting.values()) reject(error);
      this.waiting.clear();
    };
  }
}
