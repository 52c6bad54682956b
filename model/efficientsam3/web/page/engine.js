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
  /**
   * @param {(progress: object) => void} onProgress Called with the `sizes` of the model's files by
   *   name, then with the `name` of a file and the bytes of it that are `done`.
   */
  constructor(onProgress) {
    this.onProgress = onProgress;
    this.worker = null;
    this.waiting = new Map();
    this.count = 0;
    this.picture = null; // what the worker has encoded
    this.isBroken = false;
  }

  /**
   * Open a model, in the place of the one before.
   *
   * @param {{base?: string, files?: File[], provider?: string, threads?: number}} source Its
   *   address or its files; what is to run it, and with how many threads of WebAssembly:
   *   undefined, the best that this browser has.
   * @returns {Promise<object>} Name, abilities, sizes of files, and what runs it.
   */
  async open(source) {
    this.picture = null;
    try {
      await this.start(source);
    } catch (error) {
      if (source.provider || error.kind === "model" || error.kind === "stopped") throw error;
      // Where a graphics processor cannot run the model, the processor can.
      await this.start({ ...source, provider: "wasm" });
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
    if (this.isBroken) await this.startAgain(this.source, action);
    try {
      return await this.send(action, values);
    } catch (error) {
      this.isBroken = error.kind === "memory"; // the runtime has ended
      const isGpu = this.info?.runs === "WebGPU";
      if (!isGpu || !["other", "memory"].includes(error.kind)) throw error;
      await this.startAgain({ ...this.source, provider: "wasm" }, action);
      return this.send(action, values);
    }
  }

  /** Start a worker with a model. */
  async start(source) {
    this.restart();
    this.source = source;
    this.info = await this.send("open", source);
    this.isBroken = false;
  }

  /** Start a worker with a model and with the picture, for an action. */
  async startAgain(source, action) {
    await this.start(source);
    if (this.picture && action !== "encode") await this.send("encode", { blob: this.picture });
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
        this.onProgress(progress);
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
