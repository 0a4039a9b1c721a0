/** Numbers of 16 bits, which JSON cannot carry: FP16 and BF16, to bytes and back. */

const CODECS = { FP16: [toHalf, fromHalf], BF16: [toBrain, fromBrain] };
const floats = new Float32Array(1);
const bits = new Uint32Array(floats.buffer);

/** Whether a datatype travels as bytes only. */
export function isBinaryOnly(datatype) {
  return datatype in CODECS;
}

/** The bytes of numbers, each the nearest that there is. */
export function toBytes(datatype, numbers) {
  const view = new DataView(new ArrayBuffer(2 * numbers.length));
  numbers.forEach((number, index) => view.setUint16(2 * index, CODECS[datatype][0](number), true));
  return new Uint8Array(view.buffer);
}

/** The numbers of bytes. */
export function fromBytes(datatype, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: bytes.byteLength >> 1 }, (_, index) => CODECS[datatype][1](view.getUint16(2 * index, true)));
}

function toHalf(number) {
  floats[0] = number;
  const sign = (bits[0] >>> 16) & 0x8000;
  const size = Math.abs(floats[0]);
  if (Number.isNaN(size)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00; // what would be rounded to 65536, and infinity
  if (size < 2 ** -14) return sign | toEven(size * 2 ** 24);
  const exponent = Math.floor(Math.log2(size));
  return sign | (((exponent + 15) << 10) + toEven((size / 2 ** exponent - 1) * 1024)); // a carry goes to the exponent
}

function fromHalf(code) {
  const sign = code & 0x8000 ? -1 : 1;
  const exponent = (code >> 10) & 0x1f;
  const fraction = code & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function toBrain(number) {
  floats[0] = number;
  if (Number.isNaN(floats[0])) return 0x7fc0;
  return (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) >>> 16;
}

function fromBrain(code) {
  bits[0] = code << 16;
  return floats[0];
}

function toEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}
