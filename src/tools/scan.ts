/**
 * Reads files and shows the lines in which a pattern matches, with those around them.
 *
 * Invariant: memory does not grow with the file. It is read in pieces that end where a line does, and
 * between them the caller has its turn; only what must be seen whole (a pattern over several lines,
 * UTF-16) is, up to WHOLE_BYTES. What was not searched is said in `Found`.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import type { Hit, Matcher } from "./match.ts";
import { decode } from "./text.ts";
import { OPEN_FLAGS, type Path } from "./walk.ts";

/** `mark` is ":" for a line that matches, "-" for one around it, "--" for a gap between them. */
export type Show = (path: Path, mark: ":" | "-" | "--", line: number, text: () => string) => void;

/** What is wanted of a file: whether there is a match, their number, or the lines themselves. */
export type Wish = { isFirstEnough: boolean; before: number; after: number; show: Show | null };

/**
 * How many times the pattern matched, by lines. `isBinary`: in what is no text, and nothing was
 * shown. `isCut`: not all of the file was searched, or not all of a line at once.
 */
export type Found = { matches: number; isBinary: boolean; isCut: boolean };

const PIECE_BYTES = 1 << 18;
const WHOLE_BYTES = 1 << 24;
/** Of a longer line only this much is shown. */
const LINE_BYTES = 500;
/** What a piece may take. It takes a thousandth of that, but for a pattern made to take longer. */
const PIECE_MS = 500;

export class Scanner {
  readonly #matcher: Matcher;
  readonly #wish: Wish;
  readonly #buffer = Buffer.allocUnsafeSlow(PIECE_BYTES);
  #path: Path = "";
  #found: Found = { matches: 0, isBinary: false, isCut: false };
  /** Offsets in the present piece: lines are shown up to `to`, counted up to `at` in line `line`. */
  #shown = { to: 0, due: 0, at: 0, line: 1 };

  constructor(matcher: Matcher, wish: Wish) {
    this.#matcher = matcher;
    this.#wish = wish;
  }

  /** Searches a file; yields between pieces. Throws what the system does, and TooSlow. */
  *scan(path: Path): Generator<undefined, Found> {
    this.#path = path;
    this.#found = { matches: 0, isBinary: false, isCut: false };
    this.#shown = { to: 0, due: 0, at: 0, line: 1 };
    const file = openSync(path, OPEN_FLAGS);
    try {
      const filled = this.#read(file, 0);
      if (this.#matcher.isMultiline || isMarked(this.#buffer, filled))
        this.#scanWhole(file, filled);
      else if (filled < PIECE_BYTES) this.#search(this.#buffer.subarray(0, filled), 0);
      else yield* this.#scanPieces(file);
    } finally {
      closeSync(file);
    }
    return this.#found;
  }

  /** Gives back how far the buffer is filled. A file's bytes come short only at its end. */
  #read(file: number, at: number): number {
    return at + readSync(file, this.#buffer, at, PIECE_BYTES - at, null);
  }

  *#scanPieces(file: number): Generator<undefined> {
    let [from, filled] = [0, PIECE_BYTES];
    while (filled === PIECE_BYTES) {
      const end = this.#endOfLines(from);
      if (!this.#search(this.#buffer.subarray(0, end), from)) return;
      const kept = this.#firstKept(end);
      this.#buffer.copyWithin(0, kept, filled);
      this.#shown.to -= kept;
      this.#shown.at -= kept;
      from = end - kept;
      filled = this.#read(file, filled - kept);
      yield;
    }
    this.#search(this.#buffer.subarray(0, filled), from);
  }

  /** The end of the last whole line in a full buffer; of the buffer, where a line does not fit. */
  #endOfLines(from: number): number {
    const end = this.#buffer.lastIndexOf(10) + 1;
    if (end > from) return end;
    this.#found.isCut = true;
    return PIECE_BYTES;
  }

  /** Where the lines begin that may be shown before a match in the next piece. */
  #firstKept(end: number): number {
    this.#countTo(this.#buffer, end);
    let first = end;
    for (let i = 0; i < this.#wish.before && first > 0; i++)
      first = startOfLine(this.#buffer, first - 1);
    return end - first > PIECE_BYTES / 2 ? end : first;
  }

  #scanWhole(file: number, filled: number): void {
    const { size } = fstatSync(file);
    const bytes = Buffer.allocUnsafe(Math.max(filled, Math.min(size, WHOLE_BYTES)));
    this.#buffer.copy(bytes, 0, 0, filled);
    let end = filled;
    for (let read = 1; read > 0 && end < bytes.length; end += read) {
      read = readSync(file, bytes, end, bytes.length - end, null);
    }
    const text = bytes.subarray(0, end);
    this.#found.isCut = size > end;
    this.#search(isMarked(text, end) ? Buffer.from(decode(text).text) : text, 0);
  }

  /** False: nothing more is wanted of this file. */
  #search(bytes: Buffer, from: number): boolean {
    const [matcher, found, { show, isFirstEnough }] = [this.#matcher, this.#found, this.#wish];
    if (matcher.mayMatch(bytes)) {
      matcher.deadline = performance.now() + PIECE_MS;
      let hit = from < bytes.length ? matcher.next(bytes, from) : null;
      while (hit) {
        if (found.matches++ === 0) found.isBinary = bytes.includes(0);
        if (isFirstEnough || found.isBinary) return false;
        if (show) this.#showHit(bytes, hit, show);
        hit = hit.end + 1 < bytes.length ? matcher.next(bytes, hit.end + 1) : null;
      }
    }
    if (show) this.#showDue(bytes, bytes.length, show);
    return true;
  }

  // ── Lines ─────────────────────────────────────────────────────────────────────────────────────

  #showHit(bytes: Buffer, hit: Hit, show: Show): void {
    const { before, after } = this.#wish;
    this.#showDue(bytes, hit.start, show);
    const shown = this.#shown;
    let first = hit.start;
    for (let i = 0; i < before && first > Math.max(0, shown.to); i++) {
      first = startOfLine(bytes, first - 1);
    }
    if (first > shown.to && this.#found.matches > 1 && before + after > 0)
      show(this.#path, "--", 0, String);
    for (let at = first; at <= hit.end && at < bytes.length;) {
      at = this.#showLine(bytes, at, at < hit.start ? "-" : ":", hit.at, show);
    }
    shown.due = after;
  }

  /** The lines due after the last match, as far as `to`. */
  #showDue(bytes: Buffer, to: number, show: Show): void {
    const shown = this.#shown;
    for (; shown.due > 0 && shown.to < to; shown.due--) {
      this.#showLine(bytes, shown.to, "-", shown.to, show);
    }
  }

  /** Shows the line that begins at `start`; gives back where the next one does. */
  #showLine(bytes: Buffer, start: number, mark: ":" | "-", at: number, show: Show): number {
    this.#countTo(bytes, start);
    const found = bytes.indexOf(10, start);
    const end = found < 0 ? bytes.length : found;
    show(this.#path, mark, this.#shown.line, () => textOf(bytes, start, end, at));
    return (this.#shown.to = end + 1);
  }

  #countTo(bytes: Buffer, to: number): void {
    if (!this.#wish.show) return;
    const shown = this.#shown;
    for (; shown.at < to; shown.at++) if (bytes[shown.at] === 10) shown.line++;
  }
}

/** As UTF-16, or with the mark that UTF-8 does not need. */
function isMarked(bytes: Buffer, length: number): boolean {
  if ((bytes[0] ?? 0) < 0xef) return false;
  const start = bytes.toString("latin1", 0, Math.min(length, 3));
  return start.startsWith("\xff\xfe") || start.startsWith("\xfe\xff") || start === "\xef\xbb\xbf";
}

function startOfLine(bytes: Buffer, at: number): number {
  return at <= 0 ? 0 : bytes.lastIndexOf(10, at - 1) + 1;
}

/** The line without its end; of a long one what is around `at`. */
function textOf(bytes: Buffer, start: number, end: number, at: number): string {
  const stop = end > start && bytes[end - 1] === 13 ? end - 1 : end;
  if (stop - start <= LINE_BYTES) return decodeLine(bytes.subarray(start, stop));
  let from = Math.max(start, Math.min(at - LINE_BYTES / 2, stop - LINE_BYTES));
  let to = from + LINE_BYTES;
  while (from < to && isInside(bytes, from) && from > start) from++;
  while (to > from && isInside(bytes, to) && to < stop) to--;
  const shown = decodeLine(bytes.subarray(from, to));
  return `${from > start ? "…" : ""}${shown}${to < stop ? "…" : ""} [of ${stop - start} bytes]`;
}

/** Whether a character of UTF-8 goes on at `at`. */
const isInside = (bytes: Buffer, at: number): boolean => (bytes[at] ?? 0) >> 6 === 2;

function decodeLine(bytes: Buffer): string {
  const text = bytes.toString();
  return text.includes("\ufffd") ? decode(bytes).text : text;
}
