// The predictor of util/predict/onnx.py, on onnxruntime-web: pictures are {width, height, data},
// data RGBA bytes as a canvas gives them; masks Uint8Array with 1 = object, 0 = rest, 255 = ignored.

const FORMAT = "fewshot-onnx-1";
export const HALVES = ["support", "query"]; // each a file, HALF.onnx
const TOGETHER = 8; // supports that one call compares

// ------------------------------------------------------------------------------------- metadata

/** The fields of a protocol buffer message: [number, bytes or number]. Throws where it is none. */
function* fields(bytes) {
  let at = 0;
  const past = () => new Error("the bytes end within a field");
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      if (at >= bytes.length) throw past();
      const byte = bytes[at++];
      value += (byte % 128) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    if (tag % 8 === 0) yield [number, varint()];
    else if (tag % 8 === 2) {
      const length = varint();
      yield [number, bytes.subarray(at, at + length)];
      at += length;
    } else at += tag % 8 === 1 ? 8 : 4;
  }
  if (at > bytes.length) throw past();
}

/** Metadata of an ONNX file, texts by name. */
function properties(bytes) {
  const text = new TextDecoder();
  const found = {};
  for (const [number, entry] of fields(bytes)) {
    if (number !== 14) continue; // ModelProto.metadata_props
    const { 1: key, 2: value } = Object.fromEntries(fields(entry));
    found[text.decode(key)] = text.decode(value);
  }
  return found;
}

const text = (value) => typeof value === "string";
const three = (value) =>
  Array.isArray(value) && value.length === 3 && value.every((each) => Math.abs(each) < 1e6);
// Whether a value may be that of a field (util/weights/onnx_about.py).
const FITS = {
  arch: text,
  backbone: text,
  model: text,
  weights: text,
  head: (value) => ["final", "meta"].includes(value),
  val_size: (value) => Number.isInteger(value) && value > 0,
  resized_val: (value) => typeof value === "boolean",
  ann_type: (value) => ["mask", "bbox"].includes(value),
  mean: three,
  std: (value) => three(value) && Math.min(...value) > 0,
  half: (value) => HALVES.includes(value),
};

/** What an exported file says about itself; `half` only where it says so. */
export function about(bytes, name) {
  let found = {};
  try {
    found = properties(bytes);
  } catch {
    // no ONNX file, or not all of it
  }
  if (found.format !== FORMAT) throw new Error(`${name} was not written by util.export onnx`);
  const values = {};
  for (const [field, fits] of Object.entries(FITS)) {
    if (found[field] === undefined) {
      if (field === "half") continue;
      throw new Error(`${name} is a damaged export: ${field} is missing`);
    }
    try {
      values[field] = JSON.parse(found[field]);
    } catch {
      // which fits no field
    }
    if (!fits(values[field])) {
      const said = found[field].slice(0, 40);
      throw new Error(`${name} is a damaged export: ${field} cannot be ${said}`);
    }
  }
  return values;
}

/** Throws where a file holds the other half of an export. */
function checkHalf(half, expected) {
  if (half !== expected) {
    throw new Error(`${expected}.onnx holds what belongs in ${half}.onnx: export both files anew`);
  }
}

/** What both files say about themselves, if it is the same and each is its half. */
export function same(abouts) {
  const [found, other] = abouts.map(({ half, ...rest }, i) => {
    checkHalf(half ?? HALVES[i], HALVES[i]);
    return rest;
  });
  if (JSON.stringify(found) !== JSON.stringify(other)) {
    throw new Error("support.onnx and query.onnx are of two exports: export them anew");
  }
  return found;
}

// -------------------------------------------------------------------------------------- pictures

/** Where OpenCV looks for each of `target` pixels among `source`: first index and share of the next. */
function places(source, target) {
  const scale = 1 / (target / source);
  return Array.from({ length: target }, (_, i) => {
    const at = (i + 0.5) * scale - 0.5;
    const low = Math.floor(at);
    if (low < 0) return [0, 0];
    return low >= source - 1 ? [source - 1, 0] : [low, at - low];
  });
}

/** Height and width of the part of the square that shows a picture. */
export function content(about, { width, height }) {
  if (about.resized_val) return [about.val_size, about.val_size];
  const longer = Math.max(width, height);
  const part = (side) => Math.floor(Math.floor((side * about.val_size) / longer) / 8) * 8;
  return [Math.max(8, part(height)), Math.max(8, part(width))];
}

/** A picture as the network takes it: Float32Array [3, S, S], bilinear as OpenCV does it. */
export function fitted(about, picture) {
  const side = about.val_size;
  const [height, width] = content(about, picture);
  const planes = new Float32Array(3 * side * side);
  const rows = places(picture.height, height);
  const columns = places(picture.width, width);
  const { data } = picture;
  const row = 4 * picture.width;
  for (let channel = 0; channel < 3; channel++) {
    const mean = about.mean[channel];
    const std = about.std[channel];
    const plane = planes.subarray(channel * side * side, (channel + 1) * side * side);
    plane.fill(-mean / std); // black, where there is no picture
    for (let y = 0; y < height; y++) {
      const [top, down] = rows[y];
      const first = top * row + channel;
      const second = first + (down > 0 ? row : 0);
      for (let x = 0; x < width; x++) {
        const [left, right] = columns[x];
        const a = 4 * left;
        const b = a + (right > 0 ? 4 : 0);
        const upper = data[first + a] + right * (data[first + b] - data[first + a]);
        const lower = data[second + a] + right * (data[second + b] - data[second + a]);
        plane[y * side + x] = (Math.round(upper + down * (lower - upper)) - mean) / std;
      }
    }
  }
  return planes;
}

/** A mask of a picture's size at the network's size, nearest as OpenCV does it. */
export function fittedMask(about, mask, picture) {
  const side = about.val_size;
  const [height, width] = content(about, picture);
  const result = new Uint8Array(side * side).fill(255);
  const nearest = (source, target) =>
    Array.from({ length: target }, (_, i) =>
      Math.min(source - 1, Math.floor(i * (1 / (target / source))))
    );
  const columns = nearest(picture.width, width);
  nearest(picture.height, height).forEach((row, y) => {
    columns.forEach((column, x) => (result[y * side + x] = mask[row * picture.width + column]));
  });
  return result;
}

/** Bilinear resize of [h, w] with aligned corners. */
export function enlarged(values, [h, w], [height, width]) {
  const steps = (source, target) =>
    Array.from({ length: target }, (_, i) => {
      const at = (i * (source - 1)) / Math.max(1, target - 1);
      const low = Math.min(Math.floor(at), Math.max(0, source - 2));
      return [low, at - low];
    });
  const columns = steps(w, width);
  const result = new Float32Array(height * width);
  steps(h, height).forEach(([top, down], y) => {
    const first = top * w;
    const second = h > 1 ? first + w : first;
    for (let x = 0; x < width; x++) {
      const [left, right] = columns[x];
      const next = w > 1 ? left + 1 : left;
      const upper = values[first + left] + right * (values[first + next] - values[first + left]);
      const lower = values[second + left] + right * (values[second + next] - values[second + left]);
      result[y * width + x] = upper + down * (lower - upper);
    }
  });
  return result;
}

// ------------------------------------------------------------------------------------- predictor

/** Tensors of one kind and shape as one: [first, ...dims]. */
function joined(ort, tensors, first) {
  const size = tensors[0].data.length;
  const data = new tensors[0].data.constructor(size * tensors.length);
  tensors.forEach((tensor, i) => data.set(tensor.data, i * size));
  return new ort.Tensor(tensors[0].type, data, [...first, ...tensors[0].dims.slice(1)]);
}

export class Predictor {
  /** ort: the onnxruntime-web module; support and query: its sessions. */
  constructor(ort, about, support, query) {
    if (about.ann_type !== "mask") {
      throw new Error(`ann_type ${about.ann_type} is understood by predict.py alone`);
    }
    [support, query].forEach(({ inputNames }, i) => {
      checkHalf(inputNames.includes("picture") ? "query" : "support", HALVES[i]);
    });
    Object.assign(this, { ort, about, support, query });
    this.classes = new Map(); // name -> its supports: id -> encoding
    this.added = 0;
  }

  get names() {
    return [...this.classes.keys()];
  }

  image(picture) {
    const side = this.about.val_size;
    return new this.ort.Tensor("float32", fitted(this.about, picture), [1, 3, side, side]);
  }

  /** Encode one support of a class, once: its id. */
  async add(picture, mask, name) {
    const side = this.about.val_size;
    const small = fittedMask(this.about, mask, picture);
    if (!small.includes(1)) {
      throw new Error(
        `the object vanishes at the network's input size of ${side}; crop the picture around it`
      );
    }
    const tensor = new this.ort.Tensor("uint8", small, [1, side, side]);
    const encoding = await this.support.run({ image: this.image(picture), mask: tensor });
    if (!this.classes.has(name)) this.classes.set(name, new Map());
    this.classes.get(name).set((this.added += 1), encoding);
    return this.added;
  }

  /** Forget a support by its id; with a class's only one goes the class. */
  remove(id) {
    for (const [name, supports] of this.classes) {
      if (supports.delete(id) && !supports.size) this.classes.delete(name);
    }
  }

  /** Classes that are asked about together: equally many supports, and not too many in all. */
  groups() {
    const groups = [];
    for (const [name, { size }] of this.classes) {
      const last = groups.at(-1);
      const fits = last?.shots === size && (last.names.length + 1) * size <= TOGETHER;
      if (fits) last.names.push(name);
      else groups.push({ shots: size, names: [name] });
    }
    return groups;
  }

  /** Labels of a picture, Uint8Array: 0 background, 1.. the classes in their order. */
  async predict(picture) {
    if (!this.classes.size) throw new Error("no support yet: mark an object first");
    const size = [picture.height, picture.width];
    const shown = content(this.about, picture);
    const side = this.about.val_size;
    const image = this.image(picture);
    const labels = new Uint8Array(picture.width * picture.height);
    const best = new Float32Array(labels.length); // the background's log-odds are 0
    let number = 0;
    for (const { shots, names } of this.groups()) {
      const all = new BigInt64Array(names.length); // of the first picture, number 0
      const feeds = { image, picture: new this.ort.Tensor("int64", all, [names.length]) };
      const encodings = names.flatMap((name) => [...this.classes.get(name).values()]);
      for (const key of this.support.outputNames) {
        feeds[key] = joined(this.ort, encodings.map((each) => each[key]), [names.length, shots]);
      }
      const found = await this.query.run(feeds);
      const { data } = found[this.about.head] ?? found.final; // models without base learner
      names.forEach((name, i) => {
        number += 1;
        const logits = data.subarray(2 * i * side * side, 2 * (i + 1) * side * side);
        const odds = new Float32Array(shown[0] * shown[1]);
        for (let y = 0; y < shown[0]; y++) {
          for (let x = 0; x < shown[1]; x++) {
            const at = y * side + x;
            odds[y * shown[1] + x] = logits[side * side + at] - logits[at];
          }
        }
        enlarged(odds, shown, size).forEach((value, at) => {
          if (!Number.isFinite(value)) {
            throw new Error(`the model's output for class '${name}' is not finite`);
          }
          if (value > best[at]) [best[at], labels[at]] = [value, number];
        });
      });
    }
    return labels;
  }
}
