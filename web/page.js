// What is marked, chosen and shown; the network is in worker.js.

const COLOURS = [ // of util/draw/overlays.py
  [0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [213, 94, 0], [86, 180, 233], [240, 228, 66],
];
const HINTS = {
  brush: "Paint over the object.",
  box: "Drag from one corner to the opposite one.",
  polygon: "Click along the outline; the first corner again ends it.",
};
const NEAR = 12; // pixels of the screen that count as the same corner

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
  if (id === undefined) {
    $("progress").value = total ? loaded / total : null;
    const mb = (bytes) => (bytes / 1e6).toFixed(1);
    $("status").textContent =
      loaded < total ? `Loading the model: ${mb(loaded)} of ${mb(total)} MB` : "Preparing the model …";
    return;
  }
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
};
worker.onerror = (event) => failed(new Error(event.message || "the network could not be started"));

function failed(error) {
  $("message").textContent = error.message;
}

/** `work`, with its complaint on the page and its button quiet until it ends. */
async function during(button, work) {
  $("message").textContent = "";
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    failed(error);
  } finally {
    button.disabled = !ready;
  }
}

// --------------------------------------------------------------------------------------- marking

let picture = null; // {width, height, data} of the support
let parts = []; // {tool, width, points, closed}

/** The pixels of a file, upright, as they are stored: no colour is converted. */
async function read(file) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, options);
  } catch {
    throw new Error(`${file.name} is not a picture that this browser can read`);
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { width, height, data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  return { width, height, data };
}

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
  return Uint8Array.from({ length: width * height }, (_, i) => (data[4 * i + 3] >= 128 ? 1 : 0));
}

function chosen() {
  $("hint").textContent = HINTS[tool()];
  $("width").hidden = tool() !== "brush";
}

async function opened() {
  const [file] = $("support").files;
  parts = [];
  picture = file ? await read(file) : null;
  $("sketch").hidden = !picture;
  if (!picture) return;
  show($("shown"), picture);
  Object.assign($("marks"), { width: picture.width, height: picture.height });
}

// -------------------------------------------------------------------------------------- supports

const names = []; // of the classes, in the order of their first support

async function add() {
  if (!picture) throw new Error("choose a picture first");
  const mask = marked();
  if (!mask.includes(1)) throw new Error(`nothing is marked. ${HINTS[tool()]}`);
  const name = $("class").value.trim();
  if (!name) throw new Error("give the class a name");
  await ask("add", { picture, mask, name });
  if (!names.includes(name)) names.push(name);
  const item = document.createElement("li");
  item.dataset.name = name;
  const canvas = document.createElement("canvas");
  show(canvas, picture);
  canvas.getContext("2d").globalAlpha = 0.6;
  canvas.getContext("2d").drawImage($("marks"), 0, 0);
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Remove";
  button.onclick = () => during(button, () => remove(item));
  item.append(canvas, name, " ", button);
  $("supports").append(item);
  parts = [];
  draw();
}

async function remove(item) {
  const { name } = item.dataset;
  const same = [...$("supports").children].filter((other) => other.dataset.name === name);
  await ask("remove", { name, place: same.indexOf(item) });
  item.remove();
  if (same.length === 1) names.splice(names.indexOf(name), 1);
}

// --------------------------------------------------------------------------------------- results

/** A picture with every pixel of a class mixed with its colour; `keep`: what stays of the pixel. */
function tinted({ width, height, data }, labels, keep) {
  const shown = new Uint8ClampedArray(data.length);
  for (let i = 0; i < labels.length; i++) {
    const colour = labels[i] ? COLOURS[(labels[i] - 1) % COLOURS.length] : null;
    for (let at = 4 * i; at < 4 * i + 3; at++) {
      shown[at] = colour ? keep * data[at] + (1 - keep) * colour[at % 4] : data[at];
    }
    shown[4 * i + 3] = 255;
  }
  return { width, height, data: shown };
}

/** The labels in the colours of their classes on black, as a PNG to keep. */
async function maskFile({ width, height, data }, labels) {
  const black = { width, height, data: new Uint8ClampedArray(data.length) };
  const canvas = new OffscreenCanvas(width, height);
  show(canvas, tinted(black, labels, 0));
  return URL.createObjectURL(await canvas.convertToBlob({ type: "image/png" }));
}

async function segment() {
  const files = [...$("queries").files];
  if (!files.length) throw new Error("choose pictures to segment");
  $("results").querySelectorAll("a").forEach((link) => URL.revokeObjectURL(link.href));
  $("results").replaceChildren();
  const started = performance.now();
  const leftOut = [];
  for (const [number, file] of files.entries()) {
    $("status").textContent = `Picture ${number + 1} of ${files.length} …`;
    try {
      const query = await read(file);
      $("results").append(await result(file.name, query, await ask("predict", { picture: query })));
    } catch (error) {
      leftOut.push(error.message);
    }
  }
  const seconds = (performance.now() - started) / 1000;
  $("status").textContent =
    `${files.length - leftOut.length} of ${files.length} pictures segmented in ${seconds.toFixed(1)} s`;
  if (leftOut.length) throw new Error(`left out: ${leftOut.join("; ")}`);
}

async function result(name, query, labels) {
  const counts = new Array(names.length + 1).fill(0);
  for (const label of labels) counts[label] += 1;
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  show(canvas, tinted(query, labels, 0.5));
  const caption = document.createElement("figcaption");
  names.forEach((each, i) => {
    const sign = document.createElement("span");
    sign.style.color = css(i + 1);
    sign.textContent = "■ ";
    caption.append(sign, `${each} · ${Math.round((100 * counts[i + 1]) / labels.length)} %  `);
  });
  const link = document.createElement("a");
  link.href = await maskFile(query, labels);
  link.download = `${name.replace(/\.[^.]*$/, "")}_mask.png`;
  link.textContent = "mask";
  caption.append(`(${name}) `, link);
  figure.append(canvas, caption);
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
    $("add").disabled = $("segment").disabled = false;
  },
  (error) => {
    $("progress").hidden = true;
    $("status").textContent = "The model could not be loaded.";
    failed(error);
  }
);
