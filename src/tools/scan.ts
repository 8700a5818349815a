/**
 * Looks for a pattern in files: with JavaScript's regular expressions while they are quick, with RE2
 * where they could backtrack without end.
 *
 * Invariant: memory and time are bounded whatever the file and the pattern, and no step takes longer
 * than a part of a second. Most files are rejected by a search of their bytes for a text that every
 * match must contain, before anything is decoded. What could not be looked at is noted.
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
  /** Only the beginning was looked at, and nothing of it is in `lines`. */
  isBinary: boolean;
  /** The pattern was given up on somewhere. */
  isSlow: boolean;
  /** Not all of the file could be seen at once, or it was left at a NUL. */
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

// ── Files ───────────────────────────────────────────────────────────────────────────────────────

/** How much of a file is looked at once; of a larger one, context and matches end there. */
const pieceBytes = 8_000_000;
/** A NUL in the first of these makes a file a binary, of which the second are looked at. */
const [headBytes, binaryBytes] = [8192, 256_000];
let buffer = Buffer.allocUnsafe(256_000);

/** Looks into one file, and pauses now and then. Throws the system's errors. */
export function* scanFile(path: Path, query: Query, wanted: Wanted): Generator<undefined, Found> {
  const found: Found = { lines: [], count: 0, isBinary: false, isSlow: false, isCut: false };
  const file = openSync(path, OPEN_FLAGS);
  const isSeamless = !query.isMultiline && wanted.before + wanted.after === 0;
  try {
    let [lineNumber, isFirst] = [1, true];
    for (const piece of piecesOf(file, query, found)) {
      found.isCut ||= !isFirst && !isSeamless;
      const text = mayMatch(piece, query) ? decode(piece, query) : "";
      const breaks = piece.isLast || wanted.first ? 0 : countBreaks(piece.bytes);
      yield* scanText(text, lineNumber, query, wanted, found);
      if (found.isSlow || (wanted.first && found.count > 0)) break;
      [lineNumber, isFirst] = [lineNumber + breaks, false];
    }
    return found;
  } finally {
    closeSync(file);
  }
}

/** `latin1`: a binary. The bytes are good until the scan pauses. */
type Piece = { bytes: Buffer; encoding: ReturnType<typeof encodingOf>; isLast: boolean };

/** What is in a file and may match: whole lines, up to its end or a NUL. */
function* piecesOf(file: number, query: Query, found: Found): Generator<Piece> {
  let rest = buffer.subarray(0, 0); // a line whose end was not read yet
  for (let isFirst = true; ; isFirst = false) {
    const size = fill(file, rest);
    const isEnd = size < buffer.length;
    const bytes = buffer.subarray(0, size);
    const encoding = isFirst ? encodingOf(bytes) : "utf-8";
    if (encoding !== "utf-8") {
      found.isBinary = encoding === "latin1";
      found.isCut = !isEnd && !found.isBinary;
      const shown = found.isBinary ? bytes.subarray(0, binaryBytes) : bytes;
      return yield { bytes: shown, encoding, isLast: true };
    }
    if (isEnd && !mayMatch({ bytes, encoding }, query)) return;
    const nul = bytes.indexOf(0);
    const isLast = isEnd || nul >= 0;
    const lastBreak = isLast ? 0 : bytes.lastIndexOf(10) + 1;
    const whole = nul >= 0 ? nul : lastBreak || size;
    found.isCut ||= nul >= 0 || (!isLast && lastBreak === 0);
    if (!isLast) rest = Buffer.from(bytes.subarray(whole)); // others use the buffer in a pause
    yield { bytes: bytes.subarray(0, whole), encoding, isLast };
    if (isLast) return;
  }
}

/** Reads on behind what is carried over; returns how many bytes the buffer holds then. */
function fill(file: number, carried: Buffer): number {
  carried.copy(buffer);
  for (let size = carried.length; ;) {
    const count = readSync(file, buffer, size, buffer.length - size, null);
    size += count;
    if (count === 0) return size;
    if (size < buffer.length) continue;
    if (buffer.length >= pieceBytes) return size;
    buffer = Buffer.concat([buffer], pieceBytes);
  }
}

function encodingOf(bytes: Buffer): "utf-8" | "utf-16le" | "utf-16be" | "latin1" {
  const mark = bytes.length > 1 ? bytes.readUInt16BE(0) : 0;
  if (mark === 0xfffe) return "utf-16le";
  if (mark === 0xfeff) return "utf-16be";
  return bytes.subarray(0, headBytes).includes(0) ? "latin1" : "utf-8";
}

const mayMatch = ({ bytes, encoding }: Omit<Piece, "isLast">, { needles }: Query): boolean =>
  needles.length === 0 ||
  encoding.startsWith("utf-16") ||
  needles.some((one) => bytes.includes(one));

function decode({ bytes, encoding }: Piece, { keepsReturns }: Query): string {
  const isWide = encoding === "utf-16le" || encoding === "utf-16be";
  const marked = isWide ? new TextDecoder(encoding).decode(bytes) : bytes.toString(encoding);
  const text = marked.startsWith("\ufeff") ? marked.slice(1) : marked;
  return keepsReturns || !text.includes("\r\n") ? text : text.replaceAll("\r\n", "\n");
}

function countBreaks(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) count += 1;
  return count;
}

// ── Matches ─────────────────────────────────────────────────────────────────────────────────────

/** What one step may take at the worst in JavaScript, which takes about 10^9 of them a second. */
const stepLimit = 1e8;
/** How much is looked at between two looks at the clock, at first; what a costly match takes. */
const [blockChars, costlyMs] = [16_000, 100];
/** How long one piece may take. */
const pieceMs = 1000;

/** A place as offsets in a text: of a match, or of the lines that it is in. */
type Span = { start: number; end: number };
type Find = (text: string, from: number) => Span | null;
/** Lines to look into; `isLong`: JavaScript may take them only after a trial. */
type Block = { text: string; isLong: boolean };
type Search = { query: Query; isOne: boolean; deadline: number; found: Found };

/** Adds what a text holds to `found`. */
function* scanText(
  text: string,
  firstNumber: number,
  query: Query,
  wanted: Wanted,
  found: Found,
): Generator<undefined> {
  const isOne = wanted.first || found.isBinary;
  const search = { query, isOne, deadline: performance.now() + pieceMs, found };
  const hits: Span[] = [];
  let chars = blockChars;
  for (let from = 0; from < text.length;) {
    const startedAt = performance.now();
    const block = blockOf(text, from, chars, query);
    for (const { start, end } of findIn(block, search))
      hits.push({ start: from + start, end: from + end });
    from += block.text.length;
    if (isOne && hits.length > 0) break;
    const now = performance.now();
    found.isSlow ||= now > search.deadline && from < text.length;
    if (now > search.deadline) break;
    chars = now - startedAt < 10 ? chars * 4 : blockChars;
    yield;
  }
  found.count += hits.length;
  if (!isOne) addLines(text, hits, firstNumber, wanted, found);
}

/** The lines from `from` on, about `chars` long in all; a long line is alone. */
function blockOf(text: string, from: number, chars: number, query: Query): Block {
  const longest =
    query.repeats === 0 ? Infinity : Math.max(32, stepLimit ** (1 / (query.repeats + 1)));
  if (query.isMultiline) return { text, isLong: text.length > longest };
  // Where RE2 takes every line by itself, their length does not matter.
  const most = query.linear && isRisky(query) ? chars : longest;
  let end = from;
  while (end - from < chars) {
    if (text.length - end <= most) return { text: text.slice(from), isLong: false };
    const next = text.lastIndexOf("\n", end + most) + 1;
    if (next <= end) break;
    end = next;
  }
  if (end > from) return { text: text.slice(from, end), isLong: false };
  return { text: text.slice(from, endOfLine(text, from) + 1), isLong: true };
}

/** JavaScript has taken too long, or it would be hard to say how long it takes. */
const isRisky = ({ isCostly, repeats }: Query): boolean => isCostly || repeats > 2;

function findIn({ text, isLong }: Block, search: Search): Span[] {
  const { query, found } = search;
  const { regex, linear } = query;
  if (linear && (isLong || isRisky(query))) return findLinear(text, linear, search);
  if (isLong && !isBearable(regex, text)) {
    found.isSlow = true;
    return [];
  }
  let slowestMs = 0;
  const hits = findEach(text, search, (lines, from) => {
    const startedAt = performance.now();
    regex.lastIndex = from;
    const match = regex.exec(lines);
    slowestMs = Math.max(slowestMs, performance.now() - startedAt);
    return match && { start: match.index, end: match.index + match[0].length };
  });
  if (slowestMs < costlyMs) return hits;
  query.isCostly = true;
  if (linear) return findLinear(text, linear, search);
  found.isSlow = true; // the engine may have given up, which looks like no match
  return hits;
}

/** Tries the beginnings of a text, to learn how the time grows. */
function isBearable(regex: RegExp, text: string): boolean {
  for (let size = 64; size < text.length; size *= 2) {
    const startedAt = performance.now();
    regex.lastIndex = 0;
    regex.test(text.slice(0, size));
    if ((performance.now() - startedAt) * 16 > pieceMs) return false;
  }
  return true;
}

/** RE2 tells faster whether a line matches than where. */
function findLinear(text: string, linear: RE2JS, search: Search): Span[] {
  if (!search.query.isMultiline)
    return findEach(text, search, (lines, from) => {
      for (let start = from; start < lines.length;) {
        const end = endOfLine(lines, start);
        if (linear.test(lines.slice(start, end))) return { start, end: start };
        start = end + 1;
      }
      return null;
    });
  const matcher = linear.matcher(text);
  return findEach(text, search, (_, from) =>
    matcher.find(from) ? { start: matcher.start(), end: matcher.end() } : null,
  );
}

/** The lines of the matches, one after the other, until the time is over. */
function findEach(text: string, { query, isOne, deadline, found }: Search, find: Find): Span[] {
  const hits: Span[] = [];
  for (let from = 0; from < text.length;) {
    const span = find(text, from);
    // Behind the last line end there is no line.
    if (!span || (span.start === text.length && text.endsWith("\n"))) break;
    const start = startOfLine(text, span.start);
    const last = query.isMultiline ? Math.max(span.start, span.end - 1) : span.start;
    const end = endOfLine(text, last);
    // What leaves its line does not count, but the line may match without that.
    const isHit = query.isMultiline || span.end <= end || find(text.slice(start, end), 0) !== null;
    if (isHit) hits.push({ start, end });
    if (isHit && isOne) break;
    from = end + 1;
    if (performance.now() < deadline) continue;
    found.isSlow ||= from < text.length;
    break;
  }
  return hits;
}

const startOfLine = (text: string, at: number): number =>
  at === 0 ? 0 : text.lastIndexOf("\n", at - 1) + 1;

function endOfLine(text: string, at: number): number {
  const end = text.indexOf("\n", at);
  return end < 0 ? text.length : end;
}

// ── Lines ───────────────────────────────────────────────────────────────────────────────────────

/** Adds the hits' lines, numbered, with those around them. */
function addLines(
  text: string,
  hits: Span[],
  firstNumber: number,
  { before, after, maxLines }: Wanted,
  found: Found,
): void {
  let [number, at] = [firstNumber, 0]; // of a hit's first line
  let next = 0; // where what is not yet shown begins
  for (const [index, { start, end }] of hits.entries()) {
    if (found.lines.length >= maxLines) return;
    for (; at < start; at = endOfLine(text, at) + 1) number += 1;
    let [from, back] = [start, 0];
    for (; back < before && from > next; back++) from = startOfLine(text, from - 1);
    const limit = hits[index + 1]?.start ?? text.length;
    let [line, beyond] = [number - back, 0];
    for (; from < limit && (from <= end || beyond++ < after); line++) {
      const stop = endOfLine(text, from);
      const isHit = from >= start && from <= end;
      found.lines.push({ number: line, text: text.slice(from, stop), isHit });
      from = stop + 1;
    }
    next = from;
  }
}
