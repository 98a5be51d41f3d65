// The network beside the page, so that the page answers while it works.
import * as ort from "./ort.wasm.bundle.min.mjs";
import { Predictor, about } from "./network.js";

ort.env.wasm.wasmPaths = { wasm: new URL("./ort-wasm-simd-threaded.wasm", import.meta.url).href };
// Threads need headers that a plain server of files does not send (docs/onnx.md).
ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

let predictor;

/** The bytes of a file; `report` hears how many came of how many. */
async function download(name, report) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status})`);
  const total = Number(response.headers.get("content-length"));
  const parts = [];
  let loaded = 0;
  for (let reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    report(name, (loaded += value.length), total);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const tasks = {
  async load() {
    const progress = {};
    const report = (name, loaded, total) => {
      progress[name] = { loaded, total };
      const sum = (key) => Object.values(progress).reduce((all, each) => all + each[key], 0);
      postMessage({ loaded: sum("loaded"), total: sum("total") });
    };
    const names = ["support.onnx", "query.onnx"];
    const files = await Promise.all(names.map((name) => download(name, report)));
    const [found, other] = files.map((bytes, i) => about(bytes, names[i]));
    if (found.model !== other.model) throw new Error("the two files are of different exports");
    const sessions = [];
    for (const bytes of files) sessions.push(await ort.InferenceSession.create(bytes));
    predictor = new Predictor(ort, found, ...sessions);
    return found;
  },
  add: ({ picture, mask, name }) => predictor.add(picture, mask, name),
  remove: ({ name, place }) => predictor.remove(name, place),
  predict: ({ picture }) => predictor.predict(picture),
};

let last = Promise.resolve(); // one task after the other: a session runs one at a time
self.onmessage = ({ data: { id, task, values } }) => {
  last = last.then(async () => {
    try {
      postMessage({ id, result: await tasks[task](values) });
    } catch (error) {
      postMessage({ id, error: error.message });
    }
  });
};
