// What the page says of errors: what happened, and the way out.

const READABLE = "JPEG, PNG, WebP, AVIF, GIF and BMP";

/**
 * One or two sentences about an error.
 *
 * @param {Error} error An EngineError, or another one.
 * @param {string} subject What was being done, such as "photo.jpg".
 * @returns {string} The text; "" for what was stopped by something newer.
 */
export function explain(error, subject) {
  switch (error.kind) {
    case "stopped":
      return "";
    case "picture":
      return `${subject} cannot be read as a picture by this browser. Browsers read ${READABLE}: `
        + "save it as one of these and choose it again.";
    case "memory":
      return `This browser has not enough memory for ${subject}. Close other tabs, choose a `
        + "smaller picture, or open a smaller model.";
    case "model":
      return error.message;
    default:
      return `${subject}: ${error.message}. Load the page again; if it remains, report it.`;
  }
}

/** Bytes as text. */
export const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 0)} MB`;

/** Seconds as text. */
export const seconds = (value) => (value === undefined ? "–" : `${value.toFixed(2)} s`);

/** Where an instance is, for people who do not see it. */
export function placeOf([x0, y0, x1, y1], width, height) {
  const third = (value, names) => names[Math.min(2, Math.floor(3 * value))];
  const row = third((y0 + y1) / 2 / height, ["top", "middle", "bottom"]);
  const column = third((x0 + x1) / 2 / width, ["left", "center", "right"]);
  return row === "middle" && column === "center" ? "in the center" : `${row} ${column}`;
}

/** How many there are of each name. */
export function countNames(labels, names) {
  return names.map((name) => `${name}: ${labels.filter((label) => label === name).length}`).join(", ");
}
