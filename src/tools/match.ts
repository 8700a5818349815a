/**
 * Finds a pattern in bytes, in time linear in their number whatever the pattern: a finite automaton
 * whose states are made when they are first reached (R. Cox, "Regular Expression Matching in the
 * Wild"). It reads UTF-8 as it lies in the file; a byte that is none counts as the character of that
 * number, and the line end CR LF as LF.
 *
 * Invariant: memory is bounded (states are thrown away and made again), and so is time: what takes
 * past `deadline` throws TooSlow. No position is kept between calls.
 */
import { type Needle, needlesOf, onlyText } from "./literals.ts";
import { type Options, parsePattern } from "./pattern.ts";
import { Alphabet, ASK, compile, END_CLASS, follow, type Program } from "./program.ts";
import { type Kind, END, NEWLINE, OTHER, START, WORD } from "./program.ts";

export class TooSlow extends Error {
  override name = "TooSlow";
}

/** A match: the lines it stands in, without the last line end, and a place inside it. */
export type Hit = { start: number; end: number; at: number };

/** What may come next: steps, always with the first one, after a character of kind `before`. */
type State = { steps: readonly number[]; before: Kind };

/**
 * A state has a row in the table, with a column for each class. The first rows are the match, and
 * for each kind the state in which nothing is matched so far.
 */
const COLUMNS = 256;
const UNKNOWN = -1;
const MATCH = 0;
const IDLE_ROWS = 4;
const LAST_IDLE = IDLE_ROWS * COLUMNS;
const MAX_STATES = 2_000;
const RARE_BYTES = 3;
/** The clock is read once in so many steps that are not in the table. */
const STEPS_PER_LOOK = 64;

export class Matcher {
  /** By performance.now(). */
  deadline = Infinity;
  readonly isMultiline: boolean;
  readonly #gates: readonly Gate[];
  /** In every match, and in few lines: worth to go from one to the next. */
  readonly #rare: Buffer | null;
  readonly #isLiteral: boolean;
  readonly #program: Program;
  readonly #alphabet: Alphabet;
  readonly #kinds: Kind[];
  #states: State[] = [];
  #rows = new Map<string, number>();
  #table = new Int32Array(16 * COLUMNS);
  /** For each idle row and byte whether the row stays the same: what most bytes of a file do. */
  readonly #stays = new Uint8Array(IDLE_ROWS * 256);
  #looked = 0;
  /** The last place before which no match can begin, and what stands before it. */
  #idle: { at: number; before: Kind } = { at: 0, before: START };

  /** Throws a UsageError where `text` is no pattern. */
  constructor(text: string, options: Options) {
    const { node, namesCr } = parsePattern(text, options);
    this.isMultiline = options.multiline;
    const sets = needlesOf(node);
    this.#gates = sets.map(gateOf);
    this.#isLiteral = onlyText(node) !== null;
    this.#rare = rareOf(sets, this.#isLiteral ? 1 : RARE_BYTES);
    this.#program = compile(node);
    this.#alphabet = new Alphabet(this.#program.atoms, { isMultiline: options.multiline, namesCr });
    this.#kinds = kindsOf(this.#program);
    this.#forget();
  }

  /** False: no match is in `bytes`. Much cheaper than to look for one. */
  mayMatch(bytes: Buffer): boolean {
    return this.#gates.every((isOpen) => isOpen(bytes));
  }

  /** The first match at or after `from`, the beginning of a line. `bytes` end where a line does. */
  next(bytes: Buffer, from: number): Hit | null {
    if (this.isMultiline) return this.#nextSpan(bytes, from);
    const literal = this.#rare;
    if (!literal) return this.#nextLine(bytes, from, bytes.length);
    for (let at = from; at < bytes.length;) {
      const found = bytes.indexOf(literal, at);
      if (found < 0) return null;
      const line = lineAt(bytes, found);
      if (this.#isLiteral) return { ...line, at: found };
      const hit = this.#nextLine(bytes, line.start, line.end);
      if (hit) return hit;
      at = line.end + 1;
    }
    return null;
  }

  #nextLine(bytes: Buffer, from: number, to: number): Hit | null {
    const at = this.#endOfMatch(bytes, from, to);
    return at < 0 ? null : { ...lineAt(bytes, at), at };
  }

  #nextSpan(bytes: Buffer, from: number): Hit | null {
    if (this.#endOfMatch(bytes, from, bytes.length) < 0) return null;
    const [start, end] = this.#span(bytes, this.#idle.at, this.#idle.before);
    if (start >= bytes.length) return null;
    const last = lineAt(bytes, Math.max(start, end - 1));
    return { start: lineAt(bytes, start).start, end: last.end, at: start };
  }

  /** Where the first match is found to be one, or -1. Sets `#idle`. */
  #endOfMatch(bytes: Uint8Array, from: number, to: number): number {
    const { ofByte } = this.#alphabet;
    const stays = this.#stays;
    let table = this.#table;
    let state = this.#idleRow(this.isMultiline && from === 0 ? START : NEWLINE);
    let idleAt = from;
    let idleRow = state;
    let at = from;
    while (at < to) {
      if (state <= LAST_IDLE) {
        const row = state - COLUMNS;
        while (at < to && stays[row + (bytes[at] ?? 0)] === 1) at++;
        idleAt = at;
        idleRow = state;
        if (at === to) break;
      }
      let column = ofByte[bytes[at] ?? 0] ?? ASK;
      let width = 1;
      if (column === ASK) {
        column = this.#alphabet.classAt(bytes, at);
        width = this.#alphabet.width;
      }
      let next = table[state + column] ?? UNKNOWN;
      if (next === UNKNOWN) {
        next = this.#step(state, column);
        table = this.#table;
      }
      if (next === MATCH) break;
      state = next;
      at += width;
    }
    this.#idle = { at: idleAt, before: this.#states[idleRow / COLUMNS]?.before ?? START };
    if (at < to) return at;
    // After the last line end there is no further line.
    const isOver = !this.isMultiline && (at > to || bytes[to - 1] === 10);
    if (isOver) return -1;
    const last = table[state + END_CLASS] ?? UNKNOWN;
    return (last === UNKNOWN ? this.#step(state, END_CLASS) : last) === MATCH ? to : -1;
  }

  #idleRow(kind: Kind): number {
    return COLUMNS * (1 + (this.#kinds[kind] ?? OTHER));
  }

  /** The row after `row` on a character of that class. */
  #step(row: number, column: number): number {
    this.#lookAtClock();
    const [program, states] = [this.#program, this.#states];
    const state = states[row / COLUMNS];
    const next = this.#alphabet.classes[column];
    if (!state || !next) throw new RangeError(`no state ${row} or class ${column}`);
    const steps: number[] = [];
    program.stamp++;
    const isMatch = state.steps.some((step) => follow(program, step, state.before, next, steps));
    const found = isMatch ? MATCH : this.#rowOf(steps, next.kind);
    if (states === this.#states) this.#table[row + column] = found;
    if (found === row && row <= LAST_IDLE) this.#stay(row, column);
    return found;
  }

  #stay(row: number, column: number): void {
    const { ofByte } = this.#alphabet;
    for (let byte = 0; byte < 256; byte++) {
      if (ofByte[byte] === column) this.#stays[row - COLUMNS + byte] = 1;
    }
  }

  #rowOf(steps: readonly number[], kind: Kind): number {
    const before = this.#kinds[kind] ?? OTHER;
    const all = [...new Set([...steps, this.#program.start])].sort((a, b) => a - b);
    const key = `${before} ${all.join()}`;
    const known = this.#rows.get(key);
    if (known !== undefined) return known;
    if (this.#states.length >= MAX_STATES) this.#forget();
    return this.#add(key, { steps: all, before });
  }

  #add(key: string, state: State): number {
    const row = COLUMNS * (this.#states.push(state) - 1);
    this.#rows.set(key, row);
    if (row >= this.#table.length) {
      const larger = new Int32Array(2 * this.#table.length).fill(UNKNOWN);
      larger.set(this.#table);
      this.#table = larger;
    }
    return row;
  }

  /** Starts anew, with the rows that always are. */
  #forget(): void {
    this.#states = [{ steps: [], before: END }];
    this.#rows = new Map();
    this.#table.fill(UNKNOWN);
    const { start } = this.#program;
    for (const before of [START, NEWLINE, WORD, OTHER] as const) {
      this.#add(`${before} ${start}`, { steps: [start], before });
    }
  }

  /** Where the first match at or after `from` begins and ends, by the preferences of the pattern. */
  #span(bytes: Buffer, from: number, before: Kind): [number, number] {
    const [program, alphabet] = [this.#program, this.#alphabet];
    let threads: { step: number; start: number }[] = [];
    let best: [number, number] | null = null;
    let kind = before;
    for (let at = from; ; at += alphabet.width) {
      this.#lookAtClock();
      const column = at < bytes.length ? alphabet.classAt(bytes, at) : END_CLASS;
      const next = alphabet.classes[column];
      if (!best) threads.push({ step: program.start, start: at });
      const after: typeof threads = [];
      program.stamp++;
      for (const { step, start } of threads) {
        const steps: number[] = [];
        const isMatch = next && follow(program, step, kind, next, steps);
        after.push(...steps.map((one) => ({ step: one, start })));
        if (!isMatch) continue;
        best = [start, at];
        break;
      }
      if (column === END_CLASS || (best && after.length === 0)) return best ?? [at, at];
      threads = after;
      kind = next?.kind ?? OTHER;
    }
  }

  #lookAtClock(): void {
    const isTime = ++this.#looked % STEPS_PER_LOOK === 0;
    if (isTime && performance.now() > this.deadline) throw new TooSlow();
  }
}

/** Whether one of a set of needles is in a text. */
type Gate = (bytes: Buffer) => boolean;

function gateOf(set: readonly Needle[]): Gate {
  if (set.some(({ isFolded }) => isFolded)) {
    const spellings = set.map(({ text }) => Buffer.from(text).toString("latin1"));
    const regex = new RegExp(spellings.map(quote).join("|"), "i");
    return (bytes) => regex.test(bytes.toString("latin1"));
  }
  const needles = set.map(({ text }) => Buffer.from(text));
  return (bytes) => needles.some((needle) => bytes.includes(needle));
}

const quote = (text: string): string => text.replace(/[^\w\s]/g, "\\$&");

function rareOf(sets: readonly Needle[][], minBytes: number): Buffer | null {
  const alone = sets.flatMap((set) => (set.length === 1 && set[0]?.isFolded === false ? set : []));
  const longest = Buffer.from(alone[0]?.text ?? "");
  return longest.length >= minBytes ? longest : null;
}

/** What of the kinds the pattern tells apart; the fewer, the fewer states. */
function kindsOf({ steps }: Program): Kind[] {
  const asked = steps.map((step) => (step.type === "assert" ? step.assertion : "")).join("");
  const isLine = /[\^A]/.test(asked);
  return [
    isLine ? START : OTHER,
    isLine ? NEWLINE : OTHER,
    /[bB<>]/.test(asked) ? WORD : OTHER,
    OTHER,
  ];
}

/** The line around `at`; its end is before the line feed. */
function lineAt(bytes: Buffer, at: number): { start: number; end: number } {
  const end = bytes.indexOf(10, at);
  return {
    start: at === 0 ? 0 : bytes.lastIndexOf(10, at - 1) + 1,
    end: end < 0 ? bytes.length : end,
  };
}
