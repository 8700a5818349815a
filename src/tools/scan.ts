/**
 * Looks for a pattern in files, in JavaScript's regular expressions with what models bring along
 * from ripgrep and grep.
 *
 * Invariant: memory is bounded whatever the file. Most files are rejected by a search of their bytes
 * for a text that every match must contain, before anything is decoded. The engine gives up on a
 * pattern that backtracks without end (after about half a second); that is noticed and told.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { UsageError } from "../errors.ts";
import { OPEN_FLAGS, type Path } from "./walk.ts";

export type Query = {
  /** With the flags g and m; s where matches may span lines. */
  regex: RegExp;
  isMultiline: boolean;
  /** What every match contains; null where that cannot be said. */
  needle: Buffer | null;
};

/** `isHit` is false for a line of context. */
export type Line = { number: number; text: string; isHit: boolean };

export type Found = {
  lines: Line[];
  /** Lines that match (with `multiline`: places); 1 at the most where `first` is enough. */
  count: number;
  isBinary: boolean;
  /** The pattern was given up on somewhere. */
  isSlow: boolean;
  /** The file was too large for all of it to be seen at once. */
  isCut: boolean;
};

export type Wanted = {
  /** That the file matches is all that is asked. */
  first: boolean;
  before: number;
  after: number;
  /** 0: only the count is asked. */
  maxLines: number;
};

// ── Patterns ────────────────────────────────────────────────────────────────────────────────────

const classes: Record<string, string> = {
  alnum: "A-Za-z0-9",
  alpha: "A-Za-z",
  blank: " \\t",
  digit: "0-9",
  lower: "a-z",
  punct: "!-\\/:-@\\[-`{-~",
  space: "\\s",
  upper: "A-Z",
  word: "\\w",
  xdigit: "0-9A-Fa-f",
};

/** Throws UsageError, with the cure, for what is no pattern. */
export function parseQuery(pattern: string, ignoreCase: boolean, isMultiline: boolean): Query {
  const [, inline = "", body = ""] = /^(?:\(\?([imsux]+)\))?([\s\S]*)$/.exec(pattern) ?? [];
  const source = body
    .replaceAll(/\[:(\w+):\]/g, (all, name: string) => classes[name] ?? all)
    .replaceAll("(?P<", "(?<")
    .replaceAll(/\\[AzZ]/g, (end) => (end === "\\A" ? "(?<![\\s\\S])" : "(?![\\s\\S])"));
  const folds = ignoreCase || inline.includes("i");
  const spans = isMultiline || inline.includes("s");
  const isUnicode = /\\[pP]\{|\\u\{/.test(source);
  const flags = `gm${folds ? "i" : ""}${spans ? "s" : ""}${isUnicode ? "u" : ""}`;
  try {
    const needle = folds ? "" : needleOf(source);
    return {
      regex: new RegExp(source, flags),
      isMultiline,
      needle: needle ? Buffer.from(needle) : null,
    };
  } catch (error) {
    throw new UsageError(
      `"${pattern}" is no regular expression (${(error as Error).message}). Put a \\ before each of . * + ? ( ) [ ] { } ^ $ | that stands for itself.`,
    );
  }
}

/**
 * The longest text that every match contains: a run of plain characters outside of groups and
 * classes, each but the last not followed by something that makes it optional. "" where there may
 * be none.
 */
function needleOf(source: string): string {
  if (/\||\(\?/.test(source)) return "";
  const runs = [""];
  let depth = 0;
  const tokens = source.match(/\\[\s\S]|\[(?:\\[\s\S]|[^\]\\])*\]|[*+?](?:\?)?|\{[^}]*\}|[\s\S]/g);
  for (const token of tokens ?? []) {
    if (token === "(") depth += 1;
    if (token === ")") depth -= 1;
    if (/^[*?{]/.test(token)) runs[runs.length - 1] = (runs.at(-1) ?? "").slice(0, -1);
    const plain = /^\\[^\w\s]$/.test(token)
      ? token.slice(1)
      : /^[\w\s"'#%&,/:;<=>@`~!-]$/.test(token)
        ? token
        : null;
    if (depth === 0 && plain !== null) runs[runs.length - 1] += plain;
    else runs.push("");
  }
  return runs.reduce((a, b) => (b.length > a.length ? b : a));
}

// ── Files ───────────────────────────────────────────────────────────────────────────────────────

/** How much of a file is looked at once; of a larger one, context and matches end there. */
const pieceBytes = 8_000_000;
const slowMs = 200;
let buffer = Buffer.allocUnsafe(256_000);

/** Looks into one file, a piece at a time. Throws the system's errors. */
export function* scanFile(path: Path, query: Query, wanted: Wanted): Generator<undefined, Found> {
  const found: Found = { lines: [], count: 0, isBinary: false, isSlow: false, isCut: false };
  const file = openSync(path, OPEN_FLAGS);
  try {
    let carried = 0; // bytes at the front of the buffer: a line whose end was not read yet
    let lineNumber = 1;
    for (let isFirst = true; ; isFirst = false) {
      const size = fill(file, carried);
      const isLast = size < buffer.length;
      const whole = isLast ? size : buffer.lastIndexOf(10, size - 1) + 1 || size;
      const bytes = buffer.subarray(0, whole);
      if (isFirst && isBinary(bytes)) {
        found.isBinary =
          mayMatch(bytes, query) && findHits(bytes.toString("latin1"), query, true, found).length > 0;
        return found;
      }
      found.isCut ||= !isLast && (query.isMultiline || whole === size);
      lineNumber += scanPiece(bytes, lineNumber, query, wanted, found);
      if (isLast || (wanted.first && found.count > 0)) return found;
      buffer.copyWithin(0, whole, size);
      carried = size - whole;
      yield;
    }
  } finally {
    closeSync(file);
  }
}

/** Reads on behind `carried` bytes; returns how many the buffer holds. It grows for a large file. */
function fill(file: number, carried: number): number {
  let size = carried;
  for (;;) {
    const count = readSync(file, buffer, size, buffer.length - size, null);
    size += count;
    if (count === 0) return size;
    if (size < buffer.length) continue;
    if (buffer.length >= pieceBytes) return size;
    buffer = Buffer.concat([buffer], pieceBytes);
  }
}

const isUtf16 = (bytes: Buffer): boolean => {
  const mark = bytes.length > 1 ? bytes.readUInt16BE(0) : 0;
  return mark === 0xfffe || mark === 0xfeff;
};

const isBinary = (bytes: Buffer): boolean => bytes.subarray(0, 8192).includes(0) && !isUtf16(bytes);

const mayMatch = (bytes: Buffer, { needle }: Query): boolean =>
  needle === null || isUtf16(bytes) || bytes.includes(needle);

/** Adds what whole lines hold to `found`; returns how many lines they are. */
function scanPiece(
  bytes: Buffer,
  firstNumber: number,
  query: Query,
  wanted: Wanted,
  found: Found,
): number {
  if (!mayMatch(bytes, query)) return wanted.first ? 0 : countBreaks(bytes);
  const text = decode(bytes);
  const hits = findHits(text, query, wanted.first, found);
  found.count += hits.length;
  if (wanted.first) return 0;
  return addLines(text, hits, firstNumber, wanted, found);
}

function decode(bytes: Buffer): string {
  const text = isUtf16(bytes)
    ? new TextDecoder(bytes[0] === 0xff ? "utf-16le" : "utf-16be").decode(bytes)
    : bytes.toString();
  return text.includes("\r\n") ? text.replaceAll("\r\n", "\n") : text;
}

function countBreaks(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) count += 1;
  return count;
}

/** Lines that match, as the offsets of their beginnings and ends in `text`, in order. */
type Hit = { start: number; end: number };

/**
 * The pattern runs over the whole text, which is fast; where a match leaves its line and must not,
 * the line alone decides.
 */
function findHits(text: string, query: Query, firstOnly: boolean, found: Found): Hit[] {
  const { regex, isMultiline } = query;
  const hits: Hit[] = [];
  for (let from = 0; from <= text.length;) {
    const match = run(regex, text, from, found);
    if (!match) break;
    const last = match.index + Math.max(0, match[0].length - 1);
    const start = text.lastIndexOf("\n", match.index - 1) + 1;
    const ownEnd = endOfLine(text, match.index);
    const end = isMultiline ? endOfLine(text, last) : ownEnd;
    const stays = isMultiline || last <= ownEnd;
    const isEmptyRest = start === text.length && text.endsWith("\n"); // no line after the last break
    if (!isEmptyRest && (stays || run(regex, text.slice(start, ownEnd), 0, found)))
      hits.push({ start, end });
    if (firstOnly && hits.length > 0) break;
    from = end + 1;
  }
  return hits;
}

/** JSC gives up on endless backtracking by itself; then "no match" is no answer, and that is noted. */
function run(regex: RegExp, text: string, from: number, found: Found): RegExpExecArray | null {
  const startedAt = performance.now();
  regex.lastIndex = from;
  const match = regex.exec(text);
  found.isSlow ||= !match && performance.now() - startedAt > slowMs;
  return match;
}

function endOfLine(text: string, at: number): number {
  const end = text.indexOf("\n", at);
  return end < 0 ? text.length : end;
}

/** Adds the hits' lines, numbered, with those around them; returns how many lines `text` has. */
function addLines(
  text: string,
  hits: Hit[],
  firstNumber: number,
  wanted: Wanted,
  found: Found,
): number {
  const lines = hits.length > 0 && wanted.maxLines > 0 ? text.split("\n") : [];
  let [number, at, shown] = [0, 0, 0];
  for (const { start, end } of hits) {
    if (found.lines.length >= wanted.maxLines) break;
    for (; at < start; at = endOfLine(text, at) + 1) number += 1;
    const span = text.slice(start, end).split("\n").length;
    const first = Math.max(shown, number - wanted.before);
    const last = Math.min(
      lines.length - (text.endsWith("\n") ? 2 : 1),
      number + span - 1 + wanted.after,
    );
    for (let index = first; index <= last; index++)
      found.lines.push({
        number: firstNumber + index,
        text: lines[index] ?? "",
        isHit: index >= number && index < number + span,
      });
    shown = Math.max(shown, last + 1);
  }
  return lines.length > 0 ? lines.length - 1 : countIn(text);
}

function countIn(text: string): number {
  let count = 0;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) count += 1;
  return count;
}
