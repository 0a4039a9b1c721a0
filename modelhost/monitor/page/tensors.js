/** Values for the inputs of a model: made up by datatype and shape, or as somebody wrote them. */

import { isBinaryOnly, toBytes } from "./halves.js";

const MOST_VALUES = 1_000_000;
const MOST_SHOWN = 512; // generated values that are written out to be edited
const MOST_TYPED = 4096;
const INTEGER = /^(U?)INT(8|16|32|64)$/;

/** What can be made up, by its name on the page. */
export const MADE_UP = { random: "random", counting: "counting up", zeros: "zeros" };

/** A shape to begin with: one row, and one of everything else that may have any size. */
export function firstShape(shape) {
  return shape.map((size) => (size < 0 ? 1 : size));
}

/** Reads `1, 8, 8`. Throws an Error with what is wrong. */
export function readShape(text) {
  const words = text.trim().replace(/^\[|\]$/g, "").split(/[\s,×x]+/).filter((word) => word !== "");
  const sizes = words.map(Number);
  if (!sizes.every((size) => Number.isSafeInteger(size) && size >= 0)) {
    throw new Error("a shape is whole numbers with commas, such as 1, 8, 8");
  }
  return sizes;
}

/** Makes values up. Throws an Error where they are too many. */
export function makeUp(how, datatype, shape) {
  const count = shape.reduce((product, size) => product * size, 1);
  if (count > MOST_VALUES) {
    throw new Error(`${count.toLocaleString("en-US")} values; at most ${MOST_VALUES.toLocaleString("en-US")} are made up here`);
  }
  const value = maker(how, datatype);
  return Array.from({ length: count }, (_, index) => value(index));
}

function maker(how, datatype) {
  const isRandom = how === "random";
  if (datatype === "BYTES") return (index) => (how === "zeros" ? "" : isRandom ? randomWord() : `text ${index}`);
  if (datatype === "BOOL") return (index) => (how === "zeros" ? false : isRandom ? Math.random() < 0.5 : index % 2 === 1);
  if (how === "zeros") return () => 0;
  const integer = INTEGER.exec(datatype);
  if (integer === null) return isRandom ? () => Math.round(Math.random() * 1e4) / 1e4 : (index) => index;
  const most = integer[2] === "8" ? 127 : 2 ** 15 - 1;
  return isRandom ? () => Math.floor(Math.random() * 10) : (index) => index % most;
}

function randomWord() {
  return Math.random().toString(36).slice(2, 8);
}

/** Values as JSON to be edited; null where they are too many for that. */
export function written(values) {
  return values.length > MOST_SHOWN ? null : JSON.stringify(values).replaceAll(",", ", ");
}

/** Checks what was written or pasted: an array, flat or nested, or one value. Returns it as it is, as whole numbers may
 * be longer than this language can count. Throws an Error with what is wrong. */
export function checked(text, datatype) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`this is not JSON: ${error.message}`);
  }
  if (isBinaryOnly(datatype) && ![value].flat(Infinity).every((one) => typeof one === "number")) {
    throw new Error(`${datatype} takes numbers`);
  }
  return Array.isArray(value) ? text.trim() : `[${text.trim()}]`;
}

/**
 * The body of a request, of inputs whose data is JSON already, and how long its JSON is: what JSON cannot carry is behind
 * it as bytes. Outputs are named where one of them has to be asked for so.
 */
export function bodyOf(inputs, outputs) {
  const raw = [];
  const parts = inputs.map(({ name, datatype, shape, data }) => {
    if (!isBinaryOnly(datatype)) return `${JSON.stringify({ name, datatype, shape }).slice(0, -1)},"data":${data}}`;
    const bytes = toBytes(datatype, JSON.parse(data).flat(Infinity));
    raw.push(bytes);
    return JSON.stringify({ name, datatype, shape, parameters: { binary_data_size: bytes.length } });
  });
  const wanted = outputs.map(({ name, datatype }) => ({ name, parameters: { binary_data: isBinaryOnly(datatype) } }));
  const isNamed = outputs.some(({ datatype }) => isBinaryOnly(datatype));
  const json = `{"inputs":[${parts.join(",")}]${isNamed ? `,"outputs":${JSON.stringify(wanted)}` : ""}}`;
  const isBinary = isNamed || raw.length > 0;
  return { json, blob: new Blob([json, ...raw]), headerLength: isBinary ? new TextEncoder().encode(json).length : null };
}

/** The line for a terminal; a body that is too long for one, or has bytes in it, is in a file. */
export function curlLine(url, { json, headerLength }, hasKey) {
  const quoted = (words) => `'${words.replaceAll("'", "'\\''")}'`;
  const key = hasKey ? ` -H "Authorization: Bearer $MODELHOST_API_KEY"` : "";
  if (headerLength !== null) {
    return `curl -s ${quoted(url)}${key} -H 'Inference-Header-Content-Length: ${headerLength}' --data-binary @request.bin`;
  }
  return `curl -s ${quoted(url)}${key} -d ${json.length > MOST_TYPED ? "@request.json" : quoted(json)}`;
}
