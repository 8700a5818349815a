/**
 * Looks for a pattern in files: with JavaScript's regular expressions where they are sure to be
 * quick, with RE2 where they could backtrack without end.
 *
 * Invariant: memory and time are bounded whatever the file and the pattern. Most files are rejected
 * by a search of their bytes for a text that every match must contain, before anything is decoded.
 * What could not be looked at in full is noted, never passed over.
 */
import { closeSync, openSync, readSync } from "node:fs";
import type { RE2JS } from "re2js";
import type { Query } from "./query.ts";
import { OPEN_FLAGS, type Path } from "./walk.ts";

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

/** How much of a file is looked at once; of a larger one, context and matches end there. */
const pieceBytes = 8_000_000;
/** How long one piece may take, and how many steps a line: JavaScript takes about 10^9 a second. */
const pieceMs = 1000;
const lineSteps = 1e8;
/** Steps that a search of a whole text, which nothing can interrupt, may take at the worst. */
const textSteps = 1e9;
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
          mayMatch(bytes, query) &&
          findHits(bytes.toString("latin1"), query, true, found).length > 0;
        return found;
      }
      found.isCut ||= !isLast && (query.isMultiline || buffer[whole - 1] !== 10);
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

function findHits(text: string, query: Query, firstOnly: boolean, found: Found): Hit[] {
  if (query.isMultiline) return findSpans(text, query, firstOnly, found);
  const { repeats, leavesLine } = query.shape;
  const most = (textSteps / text.length) ** (1 / repeats);
  const isQuick = repeats === 0 || (!leavesLine && !hasLongLine(text, most));
  return isQuick ? findInText(text, query, firstOnly) : findByLine(text, query, firstOnly, found);
}

/** Whether a line may be longer than `most`. */
function hasLongLine(text: string, most: number): boolean {
  for (let at = 0; text.length - at > most;) {
    const end = text.lastIndexOf("\n", at + most);
    if (end < at) return true;
    at = end + 1;
  }
  return false;
}

/** The pattern runs over the whole text; where a match leaves its line, the line alone decides. */
function findInText(text: string, { regex }: Query, firstOnly: boolean): Hit[] {
  const hits: Hit[] = [];
  for (let from = 0; from < text.length;) {
    regex.lastIndex = from;
    const match = regex.exec(text);
    if (!match || match.index === text.length) break;
    const start = text.lastIndexOf("\n", match.index - 1) + 1;
    const end = endOfLine(text, match.index);
    const stays = match.index + match[0].length <= end;
    if (stays || testLine(regex, text.slice(start, end))) hits.push({ start, end });
    if (firstOnly && hits.length > 0) break;
    from = end + 1;
  }
  return hits;
}

/** Line by line, of those that hold the needle; a line that could take too long goes to RE2. */
function findByLine(text: string, query: Query, firstOnly: boolean, found: Found): Hit[] {
  const { regex, linear, needle, shape } = query;
  const deadline = performance.now() + pieceMs;
  const hits: Hit[] = [];
  for (let from = 0; from < text.length;) {
    const at = needle === null ? from : text.indexOf(needle, from);
    if (at < 0) break;
    const start = text.lastIndexOf("\n", at - 1) + 1;
    const end = endOfLine(text, at);
    const isCheap = (end - start) ** (shape.repeats + 1) <= lineSteps;
    if (!isCheap && !linear) found.isSlow = true;
    else if (
      isCheap ? testLine(regex, text.slice(start, end)) : linear?.test(text.slice(start, end))
    )
      hits.push({ start, end });
    if (firstOnly && hits.length > 0) break;
    from = end + 1;
    if (performance.now() < deadline) continue;
    found.isSlow = true;
    break;
  }
  return hits;
}

/** Matches that may span lines: RE2 alone knows how long that takes. */
function findSpans(text: string, query: Query, firstOnly: boolean, found: Found): Hit[] {
  const { regex, linear, shape } = query;
  if (shape.repeats > 0 && !linear) {
    found.isSlow = true;
    return [];
  }
  const deadline = performance.now() + pieceMs;
  const hits: Hit[] = [];
  for (let from = 0; from < text.length;) {
    const span = linear ? findLinear(linear, text, from) : findOnce(regex, text, from);
    if (!span || span.start === text.length) break;
    const start = text.lastIndexOf("\n", span.start - 1) + 1;
    const end = endOfLine(text, Math.max(span.start, span.end - 1));
    hits.push({ start, end });
    if (firstOnly) break;
    from = end + 1;
    if (performance.now() < deadline) continue;
    found.isSlow = true;
    break;
  }
  return hits;
}

function testLine(regex: RegExp, line: string): boolean {
  regex.lastIndex = 0;
  return regex.test(line);
}

function findOnce(regex: RegExp, text: string, from: number): Hit | null {
  regex.lastIndex = from;
  const match = regex.exec(text);
  return match && { start: match.index, end: match.index + match[0].length };
}

function findLinear(linear: RE2JS, text: string, from: number): Hit | null {
  const matcher = linear.matcher(text);
  return matcher.find(from) ? { start: matcher.start(), end: matcher.end() } : null;
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
