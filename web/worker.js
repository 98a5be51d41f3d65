// The network beside the page, so that the page answers while it works.
import * as ort from "./ort.wasm.bundle.min.mjs";
import { HALVES, Predictor, about, same } from "./network.js";

ort.env.wasm.wasmPaths = { wasm: new URL("./ort-wasm-simd-threaded.wasm", import.meta.url).href };
// Threads need headers that a plain server of files does not send (docs/onnx.md).
ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

const FILES = HALVES.map((half) => `${half}.onnx`);
let predictor;

async function answer(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(response.status);
  return response;
}

/** The length that an answer announces; NaN where it does not, or means the packed bytes. */
function announced({ headers }) {
  return headers.has("content-encoding") ? NaN : Number(headers.get("content-length") ?? NaN);
}

/** The bytes of an answer; `came` hears how many each piece brings. */
async function bytesOf(response, came) {
  const pieces = [];
  for (let reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(pieces).arrayBuffer());
    pieces.push(value);
    came(value.length);
  }
}

/** `work` for each of the two, whose failure names the file. */
function each(things, work, failure) {
  return Promise.all(
    things.map((thing, i) =>
      work(thing).catch(({ message }) => {
        throw new Error(`${FILES[i]} cannot be ${failure} (${message})`);
      })
    )
  );
}

const tasks = {
  async load() {
    const answers = await each(FILES, answer, "loaded");
    const total = announced(answers[0]) + announced(answers[1]);
    let loaded = 0;
    const came = (count) => postMessage({ loaded: (loaded += count), total });
    const files = await each(answers, (response) => bytesOf(response, came), "loaded");
    postMessage({ loaded, total: loaded });
    const found = same(files.map((bytes, i) => about(bytes, FILES[i])));
    const sessions = await each(files, (bytes) => ort.InferenceSession.create(bytes), "opened");
    predictor = new Predictor(ort, found, ...sessions);
    return found;
  },
  add: ({ picture, mask, name }) => predictor.add(picture, mask, name),
  remove: ({ id }) => predictor.remove(id),
  names: () => predictor.names,
  async predict({ picture }) {
    return { labels: await predictor.predict(picture), names: predictor.names };
  },
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
