/** Answers as they are shown: read no further than that needs, and long lists cut, with their length. */

const MOST_READ = 4 << 20;
const MOST_ITEMS = 64;
const MOST_TEXT = 20_000;

/** Reads the text of an answer, and says where it was left. */
export async function readText(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let piece; !(piece = await reader.read()).done; ) {
    text += piece.value;
    if (text.length > MOST_READ) {
      await reader.cancel();
      return { text, isWhole: false };
    }
  }
  return { text, isWhole: true };
}

/** The text in lines, where it is JSON: whole numbers with all their digits. */
export function pretty(text) {
  try {
    return cut(lines(JSON.parse(text, exact), ""));
  } catch {
    return cut(text);
  }
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
