// What is saved: COCO JSON as `efficientsam3 segment` writes it, and a picture.

import { cropMask, encodeRle } from "./masks.js";
import { Layers, draw } from "./view.js";

const MAX_SIDE = 4096;
const rounded = (value, digits) => Number(value.toFixed(digits));

/**
 * Make the content of a COCO file.
 *
 * @param {object} result `name`, `width` and `height` of the picture; `instances`; all `names`
 *   that were searched for; `presence` by name; the `model` and the `settings`.
 * @returns {object} The content.
 */
export function makeCoco({ name, width, height, instances, names, presence, model, settings }) {
  const categories = names.map((category, i) => ({ id: i + 1, name: category, supercategory: "" }));
  const annotations = [];
  instances.forEach((instance, i) => {
    const shape = extentOf(instance, height, width);
    if (!shape) return; // no format holds a mask without a pixel
    annotations.push({
      id: annotations.length + 1,
      image_id: 1,
      category_id: names.indexOf(instance.label) + 1,
      bbox: shape.box,
      area: shape.area,
      iscrowd: 0,
      score: rounded(instance.score, 5),
      presence: rounded(instance.presence, 5),
      number: i + 1,
      ...(shape.mask && { segmentation: encodeRle(shape.mask, height, width) }),
    });
  });
  const shares = Object.entries(presence).map(([key, value]) => [key, rounded(value, 5)]);
  return {
    info: {
      description: `Instances found by ${model.name}`,
      folder: "",
      settings: { efficientsam3: model.version, model: model.name, ...settings },
    },
    licenses: [],
    categories,
    annotations,
    images: [{ id: 1, file_name: name, width, height, presence: Object.fromEntries(shares) }],
  };
}

/** Box [x, y, width, height] and area: of the mask, or of the box where there is no mask. */
function extentOf({ patch, box }, height, width) {
  if (patch) {
    const mask = cropMask(patch, height, width);
    return mask && { mask, area: mask.area, box: [mask.left, mask.top, mask.width, mask.height] };
  }
  const [x0, y0, x1, y1] = box.map((value) => rounded(value, 2));
  const sides = [rounded(x1 - x0, 2), rounded(y1 - y0, 2)];
  if (sides[0] <= 0 || sides[1] <= 0) return null;
  return { mask: null, area: rounded(sides[0] * sides[1], 2), box: [x0, y0, ...sides] };
}

/**
 * Draw the picture with its instances at its own size, or smaller where it is very large.
 *
 * @param {object} scene As `draw` takes it.
 * @returns {Promise<Blob>} A PNG file.
 */
export async function makePng(scene) {
  const { width, height } = scene.bitmap;
  // Small pictures are enlarged, so that names can be read.
  const longer = Math.min(MAX_SIDE, Math.max(640, width, height));
  const layers = new Layers(width, height, longer);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [layers.width, layers.height];
  const place = { left: 0, top: 0, width: layers.width, height: layers.height };
  const unit = Math.max(1, longer / 1000);
  draw(canvas.getContext("2d"), place, { ...scene, layers, clicks: [], cross: null, marked: null }, unit);
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  if (!blob) throw new RangeError("out of memory");
  return blob;
}

/** Let the browser save a file. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
