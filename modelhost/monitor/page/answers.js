/** Answers as they are shown: read no further than that needs, and long lists cut, with their length. */

import { fromBytes } from "./halves.js";

const MOST_READ = 4 << 20;
const MOST_ITEMS = 64;
const MOST_TEXT = 20_000;

/** Reads an answer, and says whether that is all of it. */
export async function readAnswer(response) {
  const reader = response.body.getReader();
  const pieces = [];
  let size = 0;
  for (let piece; !(piece = await reader.read()).done; ) {
    pieces.push(piece.value);
    size += piece.value.length;
    if (size > MOST_READ) {
      await reader.cancel();
      break;
    }
  }
  const bytes = new Uint8Array(await new Blob(pieces).arrayBuffer());
  return { shown: cut(shownOf(bytes, response)), size, isWhole: size <= MOST_READ };
}

/** An answer in lines; what is behind its JSON as bytes is put into it, where it belongs. */
function shownOf(bytes, response) {
  const length = response.headers.get("inference-header-content-length");
  const text = new TextDecoder().decode(length === null ? bytes : bytes.subarray(0, Number(length)));
  let answer;
  try {
    answer = JSON.parse(text, exact);
  } catch {
    return text; // of a proxy, or the beginning of a long one
  }
  let from = Number(length);
  for (const output of length === null ? [] : answer.outputs) {
    const size = output.parameters?.binary_data_size;
    if (size === undefined) continue;
    output.data = fromBytes(output.datatype, bytes.slice(from, from + size)).map(shownNumber);
    delete output.parameters;
    from += size;
  }
  return lines(answer, "");
}

/** JSON has no word for these. */
function shownNumber(number) {
  return Number.isFinite(number) ? number : String(number);
}

/** A whole number that this language would round stays as it was written, where the browser tells. */
function exact(key, value, context) {
  const isRounded = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
  return isRounded && /^-?\d+$/.test(context?.source ?? "") ? new Digits(context.source) : value;
}

class Digits {
  constructor(source) {
    this.source = source;
  }
}

function lines(value, indent) {
  if (value instanceof Digits) return value.source;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const deeper = `${indent}  `;
  if (!Array.isArray(value)) {
    const parts = Object.entries(value).map(([key, one]) => `${deeper}${JSON.stringify(key)}: ${lines(one, deeper)}`);
    return parts.length === 0 ? "{}" : `{\n${parts.join(",\n")}\n${indent}}`;
  }
  const shown = value.slice(0, MOST_ITEMS).map((one) => lines(one, deeper));
  if (value.length > MOST_ITEMS) shown.push(`… ${(value.length - MOST_ITEMS).toLocaleString("en-US")} more`);
  const isFlat = value.every((one) => one === null || typeof one !== "object" || one instanceof Digits);
  return isFlat ? `[${shown.join(", ")}]` : `[\n${shown.map((one) => deeper + one).join(",\n")}\n${indent}]`;
}

function cut(text) {
  if (text.length <= MOST_TEXT) return text;
  return `${text.slice(0, MOST_TEXT)}\n… ${(text.length - MOST_TEXT).toLocaleString("en-US")} characters more`;
}
