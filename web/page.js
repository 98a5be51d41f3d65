// What is marked, chosen and shown; the network is in worker.js.
import { read } from "./pictures.js";

const COLOURS = [ // of util/draw/overlays.py
  [0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [213, 94, 0], [86, 180, 233], [240, 228, 66],
];
const HINTS = {
  brush: "Paint over the object.",
  box: "Drag from one corner to the opposite one.",
  polygon: "Click along the outline; the first corner again ends it.",
};
const NEAR = 12; // pixels of the screen that count as the same corner
const THUMBNAIL = 300; // longer side of what is drawn, in pixels
const RESULT = 1200;

const $ = (name) => document.getElementById(name);
const css = (number) => `rgb(${COLOURS[(number - 1) % COLOURS.length]})`;

// ------------------------------------------------------------------------------------ the worker

const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let asked = 0;
let ready = false;

function ask(task, values = {}) {
  return new Promise((resolve, reject) => {
    const id = (asked += 1);
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, task, values });
  });
}

worker.onmessage = ({ data: { id, result, error, loaded, total } }) => {
  if (id === undefined) return progressed(loaded, total);
  const { resolve, reject } = waiting.get(id) ?? {};
  waiting.delete(id);
  if (error === undefined) resolve?.(result);
  else reject?.(new Error(error));
};
worker.onerror = ({ message }) => {
  const files = "worker.js, network.js or ort.wasm.bundle.min.mjs cannot be loaded";
  const error = new Error(message || `${files}: build the site with web/build.sh`);
  failed(error);
  for (const { reject } of waiting.values()) reject(error);
  waiting.clear();
};

/** Bytes that came of the model; `total` is NaN where the server does not say. */
function progressed(loaded, total) {
  const mb = (bytes) => (bytes / 1e6).toFixed(1);
  const all = total ? ` of ${mb(total)}` : "";
  $("status").textContent =
    loaded === total ? "Preparing the model …" : `Loading the model: ${mb(loaded)}${all} MB`;
  if (total && loaded < total) $("progress").value = loaded / total;
  else $("progress").removeAttribute("value");
}

function failed(error) {
  $("message").textContent = error.message;
}

const running = new Map(); // button -> how many of its jobs run

function count(button, change) {
  running.set(button, (running.get(button) ?? 0) + change);
  button.disabled = !ready || running.get(button) > 0;
}

/** `work`, with its complaint on the page and its button quiet until it ends. */
async function during(button, work) {
  $("message").textContent = "";
  count(button, 1);
  try {
    await work();
  } catch (error) {
    failed(error);
  } finally {
    count(button, -1);
  }
}

// --------------------------------------------------------------------------------------- marking

let source = null; // the file that was chosen last
let picture = null; // {width, height, data} of it
let parts = []; // {tool, width, points, closed}

function show(canvas, { width, height, data }) {
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
}

const tool = () => document.querySelector("[name=tool]:checked").value;

function draw() {
  const canvas = $("marks");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = context.strokeStyle = css(2);
  for (const part of parts) {
    const [[x0, y0], ...rest] = part.points;
    if (part.tool === "box") {
      const [x1, y1] = rest.at(-1) ?? [x0, y0];
      const [left, top] = [Math.min(x0, x1), Math.min(y0, y1)].map(Math.floor);
      const [right, bottom] = [Math.max(x0, x1), Math.max(y0, y1)].map(Math.floor);
      context.fillRect(left, top, right - left + 1, bottom - top + 1);
      continue;
    }
    context.beginPath();
    context.moveTo(x0, y0);
    for (const point of rest) context.lineTo(...point);
    context.lineJoin = context.lineCap = "round";
    context.lineWidth = part.tool === "brush" ? part.width : Math.max(1, canvas.width / 300);
    if (part.closed) context.fill();
    else {
      if (!rest.length) context.lineTo(x0 + 0.01, y0); // a point
      context.stroke();
    }
  }
}

/** The place of an event in the picture. */
function place(event) {
  const box = $("marks").getBoundingClientRect();
  const at = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  const inside = at.map((value) => Math.min(Math.max(value, 0), 1 - 1e-9));
  return [inside[0] * picture.width, inside[1] * picture.height];
}

function pressed(event) {
  event.preventDefault();
  const point = place(event);
  const scale = picture.width / $("marks").getBoundingClientRect().width;
  const last = parts.at(-1);
  if (tool() === "polygon") {
    if (last?.tool !== "polygon" || last.closed) parts.push({ tool: "polygon", points: [point] });
    else {
      const [first] = last.points;
      const near = Math.hypot(point[0] - first[0], point[1] - first[1]) < NEAR * scale;
      if (near && last.points.length > 2) last.closed = true;
      else last.points.push(point);
    }
  } else {
    $("marks").setPointerCapture(event.pointerId);
    parts = parts.filter((part) => part.tool !== "polygon" || part.closed);
    const width = Number($("width").querySelector("input").value) * scale;
    parts.push({ tool: tool(), width, points: [point], drawing: true });
  }
  draw();
}

function moved(event) {
  const part = parts.at(-1);
  if (!part?.drawing) return;
  part.points.push(place(event));
  draw();
}

function released() {
  delete parts.at(-1)?.drawing;
}

/** What is marked, 1 = object; lines of a polygon that is still open do not count. */
function marked() {
  parts = parts.filter((part) => part.tool !== "polygon" || part.closed);
  draw();
  const { width, height } = $("marks");
  const { data } = $("marks").getContext("2d").getImageData(0, 0, width, height);
  const mask = new Uint8Array(width * height);
  for (let i = 0; i < mask.length; i++) mask[i] = data[4 * i + 3] >= 128 ? 1 : 0;
  return mask;
}

function chosen() {
  $("hint").textContent = HINTS[tool()];
  $("width").hidden = tool() !== "brush";
}

async function opened() {
  const [file] = $("support").files;
  source = file;
  picture = null;
  parts = [];
  draw();
  $("sketch").hidden = true;
  if (!file) return;
  let found;
  try {
    found = await read(file);
  } catch (error) {
    if (source === file) throw error;
  }
  if (source !== file) return; // another was chosen meanwhile
  picture = found;
  show($("shown"), picture);
  Object.assign($("marks"), { width: picture.width, height: picture.height });
  $("sketch").hidden = false;
}

/** A canvas of at most `side` pixels a side with canvases over each other: [canvas, opacity]. */
function small(side, ...layers) {
  const [[{ width, height }]] = layers;
  const scale = Math.min(1, side / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * width));
  canvas.height = Math.max(1, Math.round(scale * height));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  for (const [layer, opacity] of layers) {
    context.globalAlpha = opacity;
    context.drawImage(layer, 0, 0, canvas.width, canvas.height);
  }
  return canvas;
}

// -------------------------------------------------------------------------------------- supports

async function add() {
  if (!picture) throw new Error("choose a picture first");
  const mask = marked();
  if (!mask.includes(1)) throw new Error(`nothing is marked. ${HINTS[tool()]}`);
  const name = $("class").value.trim();
  if (!name) throw new Error("give the class a name");
  // The picture and its marks may be others when the answer comes.
  const taken = new Set(parts);
  const thumbnail = small(THUMBNAIL, [$("shown"), 1], [$("marks"), 0.6]);
  const id = await ask("add", { picture, mask, name });
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Remove";
  button.onclick = () =>
    during(button, async () => {
      await ask("remove", { id });
      item.remove();
    });
  item.append(thumbnail, name, " ", button);
  $("supports").append(item);
  parts = parts.filter((part) => !taken.has(part));
  draw();
}

// --------------------------------------------------------------------------------------- results

/** A canvas with labels in the colours of their classes, clear where there is no class. */
function coloured(labels, { width, height }) {
  const bytes = [0, 0, 0, 0, ...COLOURS.flatMap((colour) => [...colour, 255])];
  const palette = new Uint32Array(new Uint8Array(bytes).buffer);
  const data = new Uint8ClampedArray(4 * labels.length);
  const pixels = new Uint32Array(data.buffer);
  for (let i = 0; i < labels.length; i++) {
    if (labels[i]) pixels[i] = palette[1 + ((labels[i] - 1) % COLOURS.length)];
  }
  const canvas = new OffscreenCanvas(width, height);
  show(canvas, { width, height, data });
  return canvas;
}

/** The colours on black, as a PNG to keep. */
async function maskFile(layer) {
  const canvas = new OffscreenCanvas(layer.width, layer.height);
  canvas.getContext("2d", { alpha: false }).drawImage(layer, 0, 0);
  return URL.createObjectURL(await canvas.convertToBlob({ type: "image/png" }));
}

async function segment() {
  const files = [...$("queries").files];
  if (!files.length) throw new Error("choose pictures to segment");
  if (!(await ask("names")).length) throw new Error("no support yet: mark an object first");
  $("results").querySelectorAll("a").forEach((link) => URL.revokeObjectURL(link.href));
  $("results").replaceChildren();
  const started = performance.now();
  const leftOut = [];
  for (const [number, file] of files.entries()) {
    $("status").textContent = `Picture ${number + 1} of ${files.length} …`;
    try {
      const query = await read(file);
      const found = await ask("predict", { picture: query }).catch(({ message }) => {
        throw new Error(`${file.name}: ${message}`);
      });
      $("results").append(await result(file.name, query, found));
    } catch (error) {
      leftOut.push(error.message);
    }
  }
  const seconds = (performance.now() - started) / 1000;
  $("status").textContent =
    `${files.length - leftOut.length} of ${files.length} pictures segmented in ${seconds.toFixed(1)} s`;
  if (leftOut.length) throw new Error(`left out: ${leftOut.join("; ")}`);
}

async function result(name, query, { labels, names }) {
  const counts = new Array(names.length + 1).fill(0);
  for (let i = 0; i < labels.length; i++) counts[labels[i]] += 1;
  const whole = new OffscreenCanvas(query.width, query.height);
  show(whole, query);
  const layer = coloured(labels, query);
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  names.forEach((each, i) => {
    const sign = document.createElement("span");
    sign.style.color = css(i + 1);
    sign.textContent = "■ ";
    caption.append(sign, `${each} · ${Math.round((100 * counts[i + 1]) / labels.length)} %  `);
  });
  const link = document.createElement("a");
  link.href = await maskFile(layer);
  link.download = `${name.replace(/\.[^.]*$/, "")}_mask.png`;
  link.textContent = "mask";
  caption.append(`(${name}) `, link);
  figure.append(small(RESULT, [whole, 1], [layer, 0.5]), caption);
  return figure;
}

// ------------------------------------------------------------------------------------------ start

document.querySelectorAll("[name=tool]").forEach((each) => (each.onchange = chosen));
$("marks").onpointerdown = pressed;
$("marks").onpointermove = moved;
$("marks").onpointerup = $("marks").onpointercancel = released;
$("support").onchange = () => during($("add"), opened);
$("undo").onclick = () => { parts.pop(); draw(); };
$("clear").onclick = () => { parts = []; draw(); };
$("add").onclick = () => during($("add"), add);
$("segment").onclick = () => during($("segment"), segment);
chosen();
ask("load").then(
  (about) => {
    $("status").textContent = `${about.arch} is ready`;
    $("progress").hidden = true;
    ready = true;
    for (const name of ["add", "segment"]) count($(name), 0);
  },
  (error) => {
    $("progress").hidden = true;
    $("status").textContent = "The model could not be loaded.";
    failed(error);
  }
);
