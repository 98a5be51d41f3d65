// Files as pictures {width, height, data}, data RGBA bytes: upright, no colour converted, the stored
// colour where a pixel is transparent, as util/data/reading.py reads them.

const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none" };

/** The pixels of a file. */
export async function read(file) {
  let bytes, picture;
  try {
    bytes = new Uint8Array(await file.slice(0, 25).arrayBuffer());
    const [blob, orientation] = says(bytes, 8, "WEBP") ? await untagged(file) : [file, 1];
    const bitmap = await createImageBitmap(blob, AS_STORED);
    picture = turned(pixels(bitmap), orientation);
    bitmap.close();
  } catch {
    throw new Error(`${file.name} is not a picture that this browser can read`);
  }
  if (says(bytes, 1, "PNG") && bytes[24] > 8) {
    throw new Error(`${file.name}: the picture has more than 8 bits a channel`);
  }
  return picture;
}

const says = (bytes, at, word) => String.fromCharCode(...bytes.subarray(at, at + word.length)) === word;

function pixels(bitmap) {
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  let opaque = true;
  for (let i = 3; i < data.length; i += 4) opaque &&= data[i] === 255;
  if (!opaque) unmixed(bitmap, data);
  for (let i = 3; i < data.length; i += 4) data[i] = 255;
  return { width, height, data };
}

let gl; // one context for all: browsers close those beyond a few

/** Put the stored colours into `data`: a 2D canvas holds them multiplied by the opacity. Without
 * WebGL, and for sides beyond its largest texture, `data` stays. */
function unmixed(bitmap, data) {
  gl ??= new OffscreenCanvas(1, 1).getContext("webgl");
  if (!gl) return;
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  const frame = gl.createFramebuffer();
  gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const bytes = new Uint8Array(data.buffer);
  gl.readPixels(0, 0, bitmap.width, bitmap.height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
  gl.deleteFramebuffer(frame);
  gl.deleteTexture(texture);
}

/** A WebP file without its EXIF orientation, and that orientation: not every browser follows it. */
async function untagged(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const view = new DataView(bytes.buffer);
  try {
    for (let at = 12, size; at < bytes.length; at += 8 + size + (size % 2)) {
      size = view.getUint32(at + 4, true);
      if (!says(bytes, at, "EXIF")) continue;
      const tiff = at + 8 + (says(bytes, at + 8, "Exif") ? 6 : 0);
      const little = says(bytes, tiff, "II");
      const first = tiff + view.getUint32(tiff + 4, little);
      const end = first + 2 + 12 * view.getUint16(first, little);
      for (let entry = first + 2; entry < end; entry += 12) {
        if (view.getUint16(entry, little) !== 0x0112) continue;
        const orientation = view.getUint16(entry + 8, little);
        view.setUint16(entry + 8, 1, little);
        return [new Blob([bytes], { type: file.type }), orientation];
      }
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // EXIF that ends too early says nothing
  }
  return [file, 1];
}

/** A picture as its EXIF orientation, 1 to 8, says. */
function turned(picture, orientation) {
  if (!(orientation > 1 && orientation < 9)) return picture;
  const lying = orientation > 4;
  const [width, height] = lying ? [picture.height, picture.width] : [picture.width, picture.height];
  const mirrored = [2, 3, 7, 8].includes(orientation); // along the stored rows
  const upended = [3, 4, 6, 7].includes(orientation); // along the stored columns
  const stored = new Uint32Array(picture.data.buffer);
  const pixels = new Uint32Array(stored.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [along, down] = lying ? [y, x] : [x, y];
      const column = mirrored ? picture.width - 1 - along : along;
      const row = upended ? picture.height - 1 - down : down;
      pixels[y * width + x] = stored[row * picture.width + column];
    }
  }
  return { width, height, data: new Uint8ClampedArray(pixels.buffer) };
}
