/**
 * Bytes and text: what a file holds, how it is encoded, and which of its lines resemble what was
 * looked for in vain.
 *
 * Invariant: `encode(decode(bytes))` is `bytes`, whatever they are, so that an edit leaves everything
 * outside its span as it was. What is neither UTF-8 nor marked as UTF-16 is taken for Windows-1252,
 * where every byte is one character. Searches are bounded in time; nothing here touches a file.
 */
import type { ImageType } from "../types.ts";

export type Encoding = "utf-8" | "utf-16le" | "utf-16be" | "windows-1252";
export type Form = { encoding: Encoding; bom: boolean };
export type Text = Form & { text: string };

const MARKS: [Encoding, string][] = [
  ["utf-8", "\xef\xbb\xbf"],
  ["utf-16le", "\xff\xfe"],
  ["utf-16be", "\xfe\xff"],
];

/** How `bytes` are encoded. `more`: they are only the beginning, and may end inside a character. */
export function formOf(bytes: Buffer, more = false): Form {
  const start = bytes.toString("latin1", 0, 3);
  const marked = MARKS.find(([, mark]) => start.startsWith(mark))?.[0];
  if (marked?.startsWith("utf-16") && (more || bytes.length % 2 === 0))
    return { encoding: marked, bom: true };
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes, { stream: more });
    return { encoding: "utf-8", bom: marked === "utf-8" };
  } catch {
    // Not UTF-8: that is the answer, not a failure.
    return { encoding: "windows-1252", bom: false };
  }
}

/** The text without its byte order mark. */
export function decode(bytes: Buffer): Text {
  const form = formOf(bytes);
  const body = bytes.subarray(form.bom ? (form.encoding === "utf-8" ? 3 : 2) : 0);
  // Buffer keeps lone surrogates, which TextDecoder would replace.
  if (form.encoding === "utf-16le") return { ...form, text: body.toString("utf16le") };
  if (form.encoding === "utf-16be")
    return { ...form, text: Buffer.from(body).swap16().toString("utf16le") };
  return { ...form, text: new TextDecoder(form.encoding, { ignoreBOM: true }).decode(body) };
}

/** The bytes of `text` in that form; `unencodable` has said before that all of it fits. */
export function encode(text: string, { encoding, bom }: Form): Buffer {
  if (encoding === "windows-1252") return Buffer.from(bytesOf1252(text));
  const marked = bom && !text.startsWith("\ufeff") ? "\ufeff" + text : text;
  if (encoding === "utf-8") return Buffer.from(marked, "utf8");
  const bytes = Buffer.from(marked, "utf16le");
  return encoding === "utf-16be" ? bytes.swap16() : bytes;
}

/** The first character that the encoding cannot hold, or null. */
export function unencodable(text: string, encoding: Encoding): string | null {
  if (encoding === "windows-1252") {
    const bad = bytesOf1252(text).indexOf(UNKNOWN);
    return bad < 0 ? null : String.fromCodePoint(text.codePointAt(bad) ?? 0);
  }
  return text.isWellFormed() ? null : (text.match(/\p{Surrogate}/u)?.[0] ?? null);
}

const UNKNOWN = 0x100;

function bytesOf1252(text: string): Uint16Array {
  const high = Uint8Array.from({ length: 128 }, (_, i) => 128 + i);
  const chars = new TextDecoder("windows-1252").decode(high);
  const byteOf = new Map(Array.from(chars, (char, i) => [char.charCodeAt(0), 128 + i]));
  const bytes = new Uint16Array(text.length);
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    bytes[i] = code < 128 ? code : (byteOf.get(code) ?? UNKNOWN);
  }
  return bytes;
}

// ── What is no text ─────────────────────────────────────────────────────────────────────────────

/** Where the magic stands, what it is, and in words, with what shows such a file. */
const MAGIC: [number, string, string][] = [
  [0, "%PDF-", "a PDF: use `pdftotext FILE -`"],
  [0, "\x7fELF", "an ELF binary: use `file` or `objdump -d`"],
  [0, "PK\x03\x04", "a zip archive (or jar, docx, xlsx): use `unzip -l`"],
  [0, "\x1f\x8b", "gzip data: use `zcat FILE | head`"],
  [0, "BZh91AY&SY", "bzip2 data: use `bzcat FILE | head`"],
  [0, "\xfd7zXZ\0", "xz data: use `xzcat FILE | head`"],
  [0, "\x28\xb5\x2f\xfd", "zstd data: use `zstdcat FILE | head`"],
  [0, "7z\xbc\xaf\x27\x1c", "a 7z archive: use `7z l`"],
  [257, "ustar\0", "a tar archive: use `tar -tf`"],
  [257, "ustar  \0", "a tar archive: use `tar -tf`"],
  [0, "SQLite format 3\0", "an SQLite database: use `sqlite3 FILE .schema`"],
  [0, "\xca\xfe\xba\xbe", "a Java class or a Mach-O binary: use `file` or `javap -c`"],
  [0, "\xcf\xfa\xed\xfe", "a Mach-O binary: use `file` or `otool -L`"],
  [0, "MZ\x90\0", "a Windows executable: use `file`"],
  [0, "\0asm", "a WebAssembly module: use `file` or `wasm-objdump -x`"],
  [4, "ftyp", "an MP4-like video or a HEIC image: use `ffprobe`"],
  [0, "OggS\0", "Ogg media: use `ffprobe`"],
  [0, "\x89PNG\r\n\x1a\n", "a PNG image, maybe damaged: use `file`"],
  [0, "\xff\xd8\xff", "a JPEG image, maybe damaged: use `file`"],
];

/** What a file is that is no text, and what shows it; null where nothing says so at its start. */
export function magicOf(bytes: Buffer): string | null {
  const head = bytes.toString("latin1", 0, 300);
  // "ftyp" comes after a length, which for any real file begins with a zero byte.
  const hit = MAGIC.find(
    ([at, magic]) => head.startsWith(magic, at) && (magic !== "ftyp" || head.startsWith("\0")),
  );
  return hit?.[2] ?? null;
}

/** An image that models take, by its bytes, and its size in pixels where that is cheap to find. */
export function pictureOf(bytes: Buffer): { mediaType: ImageType; pixels: string } | null {
  const head = bytes.toString("latin1", 0, 16);
  if (bytes.length < 30) return null;
  if (head.startsWith("\x89PNG\r\n\x1a\n"))
    return {
      mediaType: "image/png",
      pixels: `${bytes.readUInt32BE(16)}×${bytes.readUInt32BE(20)}`,
    };
  if (/^GIF8[79]a/.test(head) && bytes.includes(0))
    return { mediaType: "image/gif", pixels: `${bytes.readUInt16LE(6)}×${bytes.readUInt16LE(8)}` };
  if (head.startsWith("\xff\xd8\xff"))
    return { mediaType: "image/jpeg", pixels: jpegPixels(bytes) };
  if (head.startsWith("RIFF") && head.startsWith("WEBP", 8))
    return { mediaType: "image/webp", pixels: "" };
  return null;
}

/** A JPEG is a row of segments; the one that starts a frame (SOF) has the size. */
function jpegPixels(bytes: Buffer): string {
  let at = 2;
  while (at + 9 < bytes.length && bytes[at] === 0xff) {
    const marker = bytes.readUInt8(at + 1);
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))
      return `${bytes.readUInt16BE(at + 7)}×${bytes.readUInt16BE(at + 5)}`;
    at += marker === 0xff ? 1 : 2 + bytes.readUInt16BE(at + 2);
  }
  return "";
}

// ── What resembles it ───────────────────────────────────────────────────────────────────────────

/** The line breaks in [from, to). */
export function countBreaks(text: string, from = 0, to = text.length): number {
  let count = 0;
  for (let at = from; at < to; at++) if (text.charCodeAt(at) === 10) count++;
  return count;
}

/** The lines, the last of which may lack its break. */
export const countLines = (text: string): number =>
  countBreaks(text) + (text === "" || text.endsWith("\n") ? 0 : 1);

/** From a span to the whole lines it touches, and `context` lines more on either side. */
export function widen(text: string, from: number, to: number, context: number): [number, number] {
  let [start, end] = [from + 1, Math.max(0, to - 1)];
  for (let i = 0; i <= context; i++) {
    start = start < 2 ? 0 : text.lastIndexOf("\n", start - 2) + 1;
    end = text.indexOf("\n", end) + 1 || text.length;
  }
  return [start, end];
}

/** Why `wanted` is not in `text`, where its spelling as a whole is at fault; null: it is not. */
export function misspelling(text: string, wanted: string): string | null {
  const lines = wanted.split("\n").filter((line) => line.trim() !== "");
  if (lines.length > 0 && lines.every((line) => /^\s*\d+(\t|→)/.test(line)))
    return "It holds the line numbers that Read prints: leave them and the tab after them out.";
  const unescaped = wanted.replace(/\\([ntr"'`\\/])/g, (_, c: string) => ESCAPES[c] ?? c);
  if (unescaped !== wanted && text.includes(unescaped))
    return 'It is escaped once too often: write \\n, \\t, \\" and the like as the characters themselves.';
  const breaks = wanted.replaceAll("\n", "\\n").replaceAll("\t", "\\t");
  const escaped = [breaks, JSON.stringify(wanted).slice(1, -1)];
  if (escaped.some((one) => one !== wanted && text.includes(one)))
    return 'The file has it escaped, with \\n, \\t or \\" spelt out: repeat those backslashes.';
  return null;
}

const ESCAPES: Record<string, string> = { n: "\n", t: "\t", r: "\r" };

/** Lines of a file, the first of them numbered `first`, and how they differ from those wanted. */
export type Near = { first: number; lines: string[]; differences: string[] };

const SHOWN_LINES = 10;
const SEARCH_CHARS = 16_000_000;

/** The part of `text` most like `wanted`, or null where nothing is; both have LF line ends. */
export function nearest(text: string, wanted: string): Near | null {
  const lines = wanted.replace(/\n$/, "").split("\n");
  const searched = text.slice(0, SEARCH_CHARS);
  const low = searched.toLowerCase();
  // Runs of four characters find misspelt words, and scripts without spaces.
  const terms = [/[\p{L}\p{N}_]{3,80}/gu, /\S{4}/gu].flatMap((term) => termsOf(lines, term));
  const start = bestStart(low, terms);
  if (start === null) return null;
  const all = searched.replace(/\n$/, "").split("\n");
  const differing = lines
    .map((line, i) => ({
      i,
      why: difference(all[start + i], line, i === 0, i === lines.length - 1),
    }))
    .filter(({ why }) => why !== null);
  const differences = differing.slice(0, 3).map(({ i, why }) => `line ${start + i + 1}: ${why}`);
  if (differences.length === 0) differences.push("the file lacks the line break at the end");
  const from = Math.max(0, start + (differing[0]?.i ?? 0) - 3);
  const to = Math.min(from + SHOWN_LINES, start + lines.length + 2);
  return { first: from + 1, lines: all.slice(from, to), differences };
}

/** A term, and the line of the wanted text it stands in. */
type Term = [string, number];

/** The longest that `pattern` finds, each once: the rarer one is, the better it tells its line. */
function termsOf(lines: readonly string[], pattern: RegExp): Term[] {
  const terms = new Map<string, number>();
  lines.forEach((line, i) => {
    for (const [term] of line.toLowerCase().matchAll(pattern))
      if (!terms.has(term)) terms.set(term, i);
  });
  return [...terms].toSorted((a, b) => b[0].length - a[0].length).slice(0, 16);
}

/** The line (from 0) where most terms, weighed by rarity, would stand at their place. */
function bestStart(low: string, terms: readonly Term[]): number | null {
  const hits = terms.flatMap(([term, line]) => {
    const found: number[] = [];
    let at = low.indexOf(term);
    while (at >= 0 && found.length < 400) {
      found.push(at);
      at = low.indexOf(term, at + term.length);
    }
    return found.map((at) => ({ at, line, weight: 1 / found.length }));
  });
  const scores = new Map<number, { weight: number; count: number }>();
  let [counted, row] = [0, 0];
  for (const { at, line, weight } of hits.toSorted((a, b) => a.at - b.at)) {
    row += countBreaks(low, counted, at);
    counted = at;
    const score = scores.get(row - line) ?? { weight: 0, count: 0 };
    scores.set(row - line, { weight: score.weight + weight, count: score.count + 1 });
  }
  const [best] = [...scores].toSorted((a, b) => b[1].weight - a[1].weight);
  return best && best[1].count * 3 >= terms.length ? Math.max(0, best[0]) : null;
}

/** How a line differs from the wanted one, whose first may begin and last may end inside it. */
function difference(
  line: string | undefined,
  wanted: string,
  isFirst: boolean,
  isLast: boolean,
): string | null {
  if (line === undefined) return "the file has ended before it";
  const shift = isFirst
    ? Math.max(0, line.toLowerCase().indexOf(wanted.slice(0, 4).toLowerCase()))
    : 0;
  const file = line.slice(shift);
  if (file === wanted || (isLast && file.startsWith(wanted))) return null;
  let at = 0;
  while (at < wanted.length && file[at] === wanted[at]) at++;
  const only = LIKENESSES.find(([, same]) => same(file) === same(wanted))?.[0] ?? "";
  return `differs${only} at column ${shift + at + 1}: ${quote(file, at)} in the file, ${quote(wanted, at)} in old_string`;
}

/** In what alone two lines differ that one of these makes the same. */
const LIKENESSES: [string, (line: string) => string][] = [
  [" in trailing white space", (line) => line.trimEnd()],
  [" in white space", (line) => line.replace(/\s+/g, "")],
  [" in case", (line) => line.toLowerCase()],
  [" in Unicode form (composed against decomposed)", (line) => line.normalize()],
  [" in look-alike characters", (line) => line.normalize("NFKC").replace(/[‘’“”"'`´‐-―-]/g, "'")],
];

/** The text around `at`, and the code point there where it could be mistaken for another. */
function quote(line: string, at: number): string {
  const char = line.codePointAt(at);
  const around = line.slice(Math.max(0, at - 4), at + 16).toWellFormed();
  if (char === undefined) return at > 0 ? `nothing after \`${around}\`` : "nothing";
  const code = `U+${char.toString(16).toUpperCase().padStart(4, "0")}`;
  const name = char === 9 ? "a tab" : char === 32 ? "a space" : code;
  return `\`${around}\`${char < 0x21 || char > 0x7e ? ` (${name})` : ""}`;
}
