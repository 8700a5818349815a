/**
 * Bytes and text: how a file is encoded, what is no text, and which of its lines resemble what was
 * looked for in vain.
 *
 * Invariant: `encode(decode(bytes))` is `bytes`, whatever they are, so that an edit leaves everything
 * outside its span as it was. What is neither UTF-8 nor valid, marked UTF-16 is taken for
 * Windows-1252, where every byte is one character. Nothing here touches a file.
 */
import { UsageError } from "../errors.ts";
import type { ImageType } from "../types.ts";

export type Encoding = "utf-8" | "utf-16le" | "utf-16be" | "windows-1252";
/** What a text does not hold itself; `crlf`: all of its line ends are CRLF. */
export type Form = { encoding: Encoding; bom: boolean; crlf: boolean };
export type Text = Form & { text: string };

const MARKS: [Encoding, string][] = [
  ["utf-8", "\xef\xbb\xbf"],
  ["utf-16le", "\xff\xfe"],
  ["utf-16be", "\xfe\xff"],
];

/** What Windows-1252 has at 0x80–0x9f, where Latin-1 has control characters. */
const HIGH = "€\x81‚ƒ„…†‡ˆ‰Š‹Œ\x8dŽ\x8f\x90‘’“”•–—˜™š›œ\x9džŸ";

/** The text, with LF where all line ends are CRLF. `more`: `bytes` may end inside a character. */
export function decode(bytes: Buffer, more = false): Text {
  const start = bytes.toString("latin1", 0, 3);
  const marked = MARKS.find(([, mark]) => start.startsWith(mark))?.[0];
  const held = (text: string, encoding: Encoding, bom: boolean): Text => {
    const crlf = isCrlf(text);
    return { text: crlf ? toLf(text) : text, encoding, bom, crlf };
  };
  const encoding = marked ?? "utf-8";
  try {
    const text = new TextDecoder(encoding, { fatal: true }).decode(bytes, { stream: more });
    return held(text, encoding, marked !== undefined);
  } catch {
    // Not in that encoding: that is an answer, not a failure.
    return held(new TextDecoder("windows-1252").decode(bytes), "windows-1252", false);
  }
}

/** The bytes of `text` in that form. Throws a UsageError where the encoding lacks a character. */
export function encode(text: string, { encoding, bom, crlf }: Form): Buffer {
  const bad = lacking(text, encoding);
  if (bad !== null)
    throw new UsageError(
      encoding === "windows-1252"
        ? `The file is not UTF-8 and taken for Windows-1252, which has no ${bad} (${codeOf(bad)}): convert it with \`iconv\` in Bash first, or do without that character.`
        : `The text has half a character (${codeOf(bad)}, one of a surrogate pair): write it whole.`,
    );
  const whole = (bom ? "\ufeff" : "") + (crlf ? toCrlf(text) : text);
  if (encoding === "utf-8") return Buffer.from(whole);
  if (encoding === "windows-1252") {
    const byteOf = (char: string) => String.fromCharCode(0x80 + HIGH.indexOf(char));
    return Buffer.from(whole.replace(/[^\0-\xff]/g, byteOf), "latin1");
  }
  const bytes = Buffer.from(whole, "utf16le");
  return encoding === "utf-16be" ? bytes.swap16() : bytes;
}

/** The first character that the encoding cannot hold, or null. */
export function lacking(text: string, encoding: Encoding): string | null {
  const foreign =
    encoding === "windows-1252" ? new RegExp(`[^\\0-\\x7f\\xa0-\\xff${HIGH}]`, "u") : /\p{Cs}/u;
  return text.match(foreign)?.[0] ?? null;
}

const codeOf = (char: string) =>
  `U+${char.codePointAt(0)?.toString(16).toUpperCase().padStart(4, "0")}`;

/** Whether there are line ends, and all are CRLF. */
export const isCrlf = (text: string) => text.includes("\n") && !/(?<!\r)\n/.test(text);
export const toLf = (text: string) => text.replaceAll("\r\n", "\n");
export const toCrlf = (text: string) => text.replaceAll("\n", "\r\n");

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

/** The kind of image that models take, by the bytes; what has no NUL only begins like one. */
export function imageTypeOf(bytes: Buffer): ImageType | null {
  const head = bytes.toString("latin1", 0, 12);
  if (bytes.length < 30 || !bytes.includes(0)) return null;
  if (head.startsWith("\x89PNG\r\n\x1a\n")) return "image/png";
  if (head.startsWith("\xff\xd8\xff")) return "image/jpeg";
  if (/^GIF8[79]a/.test(head)) return "image/gif";
  return head.startsWith("RIFF") && head.endsWith("WEBP") ? "image/webp" : null;
}

// ── Lines ───────────────────────────────────────────────────────────────────────────────────────

/** The line breaks in [from, to). */
export function countBreaks(text: string, from = 0, to = text.length): number {
  let count = 0;
  for (let at = from; at < to; at++) if (text.charCodeAt(at) === 10) count++;
  return count;
}

/** The lines, the last of which may lack its break. */
export const countLines = (text: string): number =>
  countBreaks(text) + (text === "" || text.endsWith("\n") ? 0 : 1);

/** As `cat -n` does it. */
export const numbered = (lines: readonly string[], first: number): string =>
  lines.map((line, i) => `${String(first + i).padStart(6)}\t${line.replace(/\r$/, "")}`).join("\n");

/** Lines from `from` to `to` (from 0, not included), numbered, cut to what an eye takes in. */
export function excerpt(text: string, from: number, to: number): string {
  const lines = text.replace(/\n$/, "").split("\n");
  const first = Math.max(0, from);
  const shown = lines.slice(first, Math.min(to, first + 30));
  return numbered(
    shown.map((line) => (line.length > 300 ? `${line.slice(0, 300)}…` : line)),
    first + 1,
  );
}

// ── What resembles it ───────────────────────────────────────────────────────────────────────────

const SEARCH_CHARS = 16_000_000;

/** The part of `text` most like `wanted` and how it differs, in words; null: nothing is like it. */
export function nearest(text: string, wanted: string): string | null {
  const searched = text.slice(0, SEARCH_CHARS);
  const lines = wanted.replace(/\n$/, "").split("\n");
  const start = bestStart(searched.toLowerCase(), lines);
  if (start === null) return null;
  const found = searched
    .replace(/\n$/, "")
    .split("\n")
    .slice(start, start + lines.length);
  const differing = lines.flatMap((line, i) => {
    const why = difference(found[i], line, i === 0, i === lines.length - 1);
    return why === null ? [] : [{ row: start + i, why: `line ${start + i + 1}: ${why}` }];
  });
  const from = (differing[0]?.row ?? start) - 3;
  const region = excerpt(searched, from, Math.min(from + 10, start + lines.length + 2));
  const reasons = differing.slice(0, 3).map(({ why }) => why);
  const differences = reasons.join("; ") || "the file lacks the line break at the end";
  return `The nearest text:\n${region}\nWhat differs: ${differences}.`;
}

/** The line (from 0) at which most terms of `lines`, weighed by rarity, stand where they should. */
function bestStart(low: string, lines: readonly string[]): number | null {
  // Runs of four characters find misspelt words, and scripts without spaces.
  const terms = [/[\p{L}\p{N}_]{3,80}/gu, /\S{4}/gu].flatMap((term) => termsOf(lines, term));
  const hits = terms.flatMap(({ term, line }) => {
    const found = placesOf(low, term, 400, term.length);
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

/** The longest that `pattern` finds, each once, with its line: long ones are rare, and tell most. */
function termsOf(lines: readonly string[], pattern: RegExp): { term: string; line: number }[] {
  const terms = new Map<string, number>();
  lines.forEach((text, line) => {
    for (const [term] of text.toLowerCase().matchAll(pattern))
      if (!terms.has(term)) terms.set(term, line);
  });
  const longest = [...terms].toSorted((a, b) => b[0].length - a[0].length).slice(0, 16);
  return longest.map(([term, line]) => ({ term, line }));
}

/** Where `wanted` begins in `text`, `max` times at most; matches are at least `step` apart. */
export function placesOf(text: string, wanted: string, max: number, step = 1): number[] {
  const found: number[] = [];
  let at = text.indexOf(wanted);
  while (at >= 0 && found.length < max) {
    found.push(at);
    at = text.indexOf(wanted, at + step);
  }
  return found;
}

/** How a line differs from the wanted one, whose first may begin and last may end inside it. */
function difference(
  line: string | undefined,
  wanted: string,
  isFirst: boolean,
  isLast: boolean,
): string | null {
  if (line === undefined) return "the file has ended before it";
  const start = isFirst ? line.toLowerCase().indexOf(wanted.slice(0, 4).toLowerCase()) : 0;
  const shift = Math.max(0, start);
  const file = line.slice(shift);
  if (file === wanted || (isLast && file.startsWith(wanted))) return null;
  let at = 0;
  while (at < wanted.length && file[at] === wanted[at]) at++;
  return `differs at column ${shift + at + 1}: ${quote(file, at)} in the file, ${quote(wanted, at)} in old_string`;
}

/** The text around `at`, and the character there by name where it could be mistaken for another. */
function quote(line: string, at: number): string {
  const char = line.slice(at, at + 2).match(/./su)?.[0];
  const around = `\`${line.slice(Math.max(0, at - 4), at + 16)}\``;
  if (char === undefined) return at > 0 ? `nothing after ${around}` : "nothing";
  if (/[!-~]/.test(char)) return around;
  return `${around} (${char === "\t" ? "a tab" : char === " " ? "a space" : codeOf(char)})`;
}
