// ONNX Runtime Web: WebAssembly with as many threads as the page may use, or WebGPU.

const MAX_THREADS = 8;
const OPTIONS = { graphOptimizationLevel: "all", logSeverityLevel: 3 };
const NAMES = { wasm: "WebAssembly", webgpu: "WebGPU" };

/**
 * Whether this browser has a graphics processor for WebGPU, and what the runtime needs to use it.
 *
 * @returns {Promise<boolean>} False too where WebGPU is emulated by the processor.
 */
export async function hasWebGpu() {
  if (!self.navigator.gpu || !("Suspending" in WebAssembly)) return false;
  try {
    const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
    return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
  } catch {
    return false;
  }
}

/** The graphs of a model. Each is read when it is first used. */
export class Sessions {
  /**
   * @param {object} ort The module of ONNX Runtime.
   * @param {string} provider "wasm" or "webgpu".
   * @param {object} graphs Of the manifest.
   * @param {(name: string) => Promise<Uint8Array>} read Reads a file of the exported folder.
   */
  constructor(ort, provider, graphs, read) {
    Object.assign(this, { ort, provider, graphs, read });
    this.Tensor = ort.Tensor;
    this.opened = new Map();
  }

  /** What runs the graphs, for people. */
  get description() {
    const { numThreads } = this.ort.env.wasm;
    const threads = `${numThreads} ${numThreads === 1 ? "thread" : "threads"}`;
    return this.provider === "webgpu" ? NAMES.webgpu : `${NAMES.wasm}, ${threads}`;
  }

  /**
   * Read a graph, unless it was read before.
   *
   * @param {string} name Its name.
   * @returns {Promise<object>} The session.
   */
  open(name) {
    if (!this.opened.has(name)) {
      const opening = this.create(this.graphs[name].file);
      opening.catch(() => this.opened.delete(name)); // it can be tried again
      this.opened.set(name, opening);
    }
    return this.opened.get(name);
  }

  async create(file) {
    const bytes = await this.read(file);
    const on = (providers) => this.ort.InferenceSession.create(
      bytes, { ...OPTIONS, executionProviders: providers },
    );
    if (this.provider === "wasm") return on(["wasm"]);
    try {
      return await on(["webgpu", "wasm"]);
    } catch {
      return on(["wasm"]); // a graph with an operator that this graphics processor cannot run
    }
  }

  /**
   * Run a graph.
   *
   * @param {string} name Its name.
   * @param {Object<string, object>} inputs Tensors by name; those that it does not have are left out.
   * @returns {Promise<Object<string, object>>} Its outputs by name.
   */
  async run(name, inputs) {
    const session = await this.open(name);
    const feeds = {};
    for (const input of Object.keys(this.graphs[name].inputs)) feeds[input] = inputs[input];
    return session.run(feeds);
  }
}

/**
 * Load ONNX Runtime.
 *
 * @param {string} provider "wasm" or "webgpu".
 * @param {number} threads Threads of WebAssembly, at most; 0: as the page may use.
 * @returns {Promise<object>} Its module.
 */
export async function loadRuntime(provider, threads = 0) {
  const isGpu = provider === "webgpu";
  const ort = await import(`./runtime/${isGpu ? "ort.jspi.min.mjs" : "ort.wasm.min.mjs"}`);
  const core = `./runtime/ort-wasm-simd-threaded${isGpu ? ".jspi" : ""}`;
  ort.env.wasm.wasmPaths = {
    mjs: new URL(`${core}.mjs`, import.meta.url).href,
    wasm: new URL(`${core}.wasm`, import.meta.url).href,
  };
  const most = threads || Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS);
  ort.env.wasm.numThreads = self.crossOriginIsolated ? most : 1; // threads share memory
  ort.env.logLevel = "error";
  return ort;
}
