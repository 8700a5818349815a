/**
 * A pattern as a program of small steps (K. Thompson, "Regular Expression Search Algorithm"), and the
 * classes of characters that it cannot tell apart.
 *
 * Invariant: `follow` looks at every step once for each character at most; that is what makes a search
 * linear. A program is never changed once it is compiled; the alphabet grows with what it meets.
 */
import { UsageError } from "../errors.ts";
import { type Assertion, type Atom, type Node, WORD_CHARS } from "./pattern.ts";

/** A step of the program. A split prefers `next`, then `other`. */
export type Step =
  | { type: "atom"; index: number; next: number }
  | { type: "split"; next: number; other: number }
  | { type: "assert"; assertion: Assertion; next: number }
  | { type: "match" };

/** `seen` marks the steps that were looked at for the present character by its number, `stamp`. */
export type Program = {
  steps: Step[];
  atoms: Atom[];
  start: number;
  seen: Uint32Array;
  stamp: number;
};

/** What stands before a place, or after it: a text's end, a line's, or a character. */
export type Kind = typeof START | typeof NEWLINE | typeof WORD | typeof OTHER | typeof END;
export const [START, NEWLINE, WORD, OTHER, END] = [0, 1, 2, 3, 4] as const;

/** Characters that the pattern cannot tell apart, and which of its atoms accept them. */
export type Class = { accepts: readonly boolean[]; kind: Kind };

const MAX_STEPS = 20_000;

export function compile(node: Node): Program {
  const program: Program = {
    steps: [{ type: "match" }],
    atoms: [],
    start: 0,
    seen: new Uint32Array(),
    stamp: 0,
  };
  program.start = build(program, node, 0);
  program.seen = new Uint32Array(program.steps.length);
  return program;
}

function add(program: Program, step: Step): number {
  if (program.steps.length > MAX_STEPS) {
    throw new UsageError(
      "The pattern is too large once its {n,m} are written out: use smaller numbers.",
    );
  }
  return program.steps.push(step) - 1;
}

/** Adds the steps that match `node` and then go on at `next`; gives back where they begin. */
function build(program: Program, node: Node, next: number): number {
  switch (node.type) {
    case "atom": {
      const known = program.atoms.indexOf(node.atom);
      const index = known >= 0 ? known : program.atoms.push(node.atom) - 1;
      return add(program, { type: "atom", index, next });
    }
    case "assert":
      return add(program, { type: "assert", assertion: node.assertion, next });
    case "all":
      return node.nodes.reduceRight((after, part) => build(program, part, after), next);
    case "any":
      return node.nodes
        .map((part) => build(program, part, next))
        .reduceRight((other, first) => add(program, { type: "split", next: first, other }));
    case "repeat":
      return repeat(program, node, next);
  }
}

function repeat(
  program: Program,
  { node, min, max, isLazy }: Node & { type: "repeat" },
  next: number,
): number {
  const choose = (more: number) =>
    add(
      program,
      isLazy ? { type: "split", next, other: more } : { type: "split", next: more, other: next },
    );
  let at = next;
  if (max === Infinity) {
    at = choose(next);
    const split = program.steps[at];
    const body = build(program, node, at);
    if (split?.type === "split") Object.assign(split, isLazy ? { other: body } : { next: body });
  } else {
    for (let i = min; i < max; i++) at = choose(build(program, node, at));
  }
  for (let i = 0; i < min; i++) at = build(program, node, at);
  return at;
}

/**
 * Adds to `out`, by preference, the steps that can be taken from `from` on over a character of `next`
 * standing after one of kind `before`. True: there was a match first.
 */
export function follow(
  program: Program,
  from: number,
  before: Kind,
  next: Class,
  out: number[],
): boolean {
  const { steps, seen, stamp } = program;
  const stack = [from];
  for (let at = stack.pop(); at !== undefined; at = stack.pop()) {
    const step = steps[at];
    if (!step || seen[at] === stamp) continue;
    seen[at] = stamp;
    if (step.type === "match") return true;
    if (step.type === "atom" && next.accepts[step.index]) out.push(step.next);
    if (step.type === "split") stack.push(step.other, step.next);
    if (step.type === "assert" && holds(step.assertion, before, next.kind)) stack.push(step.next);
  }
  return false;
}

function holds(assertion: Assertion, before: Kind, after: Kind): boolean {
  const [isAfterWord, isBeforeWord] = [before === WORD, after === WORD];
  switch (assertion) {
    case "^":
      return before === START || before === NEWLINE;
    case "$":
      return after === NEWLINE || after === END;
    case "A":
      return before === START;
    case "z":
      return after === END;
    case "b":
      return isAfterWord !== isBeforeWord;
    case "B":
      return isAfterWord === isBeforeWord;
    case "<":
      return !isAfterWord && isBeforeWord;
    case ">":
      return isAfterWord && !isBeforeWord;
  }
}

// ── Characters ──────────────────────────────────────────────────────────────────────────────────

export const NEWLINE_CLASS = 0;
export const END_CLASS = 1;
/** No class, but that `classAt` must be asked. */
export const ASK = 255;

const WORD_CHAR = new RegExp(`^[${WORD_CHARS}]$`, "v");

export type AlphabetOptions = { isMultiline: boolean; namesCr: boolean };

export class Alphabet {
  readonly classes: Class[] = [];
  /** The class of each byte that is a character by itself, else ASK. */
  readonly ofByte = new Uint8Array(256).fill(ASK);
  /** How many bytes the character has that `classAt` saw last. */
  width = 1;
  readonly #atoms: readonly Atom[];
  readonly #wide = new Map<number, number>();
  readonly #numbers = new Map<string, number>();
  readonly #cr: number;

  constructor(atoms: readonly Atom[], { isMultiline, namesCr }: AlphabetOptions) {
    this.#atoms = atoms;
    this.classes.push({
      accepts: atoms.map((atom) => isMultiline && atom.accepts("\n")),
      kind: NEWLINE,
    });
    this.classes.push({ accepts: [], kind: END });
    this.#cr = this.#classOf("\r");
    for (let byte = 0; byte < 128; byte++)
      this.ofByte[byte] = this.#classOf(String.fromCharCode(byte));
    this.ofByte[10] = NEWLINE_CLASS;
    if (!namesCr) this.ofByte[13] = ASK;
  }

  /** The class of the character at `at`, of more than one byte perhaps; its `width` is set. */
  classAt(bytes: Uint8Array, at: number): number {
    this.width = 1;
    const byte = bytes[at] ?? 0;
    const known = this.ofByte[byte] ?? ASK;
    if (known !== ASK) return known;
    if (byte === 13 && bytes[at + 1] !== 10) return this.#cr;
    if (byte === 13) {
      this.width = 2;
      return NEWLINE_CLASS;
    }
    const code = this.#decode(bytes, at, byte);
    const found = this.#wide.get(code) ?? this.#classOf(String.fromCodePoint(code));
    if (this.#wide.size > 50_000) this.#wide.clear();
    this.#wide.set(code, found);
    return found;
  }

  #decode(bytes: Uint8Array, at: number, first: number): number {
    const more = first < 0xc2 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : 0;
    let code = first & (0x3f >> more);
    for (let i = 1; i <= more; i++) {
      const byte = bytes[at + i] ?? 0;
      if (byte >> 6 !== 2) return first;
      code = (code << 6) | (byte & 0x3f);
    }
    if (code > 0x10ffff || more === 0) return first;
    this.width = more + 1;
    return code;
  }

  #classOf(char: string): number {
    const accepts = this.#atoms.map((atom) => atom.accepts(char));
    const kind = WORD_CHAR.test(char) ? WORD : OTHER;
    const signature = `${kind}${accepts.map(Number).join("")}`;
    const known = this.#numbers.get(signature);
    if (known !== undefined) return known;
    const number = this.classes.push({ accepts, kind }) - 1;
    if (number >= ASK) {
      throw new UsageError(
        "The pattern tells too many characters apart: use classes like [a-z] or \\w.",
      );
    }
    this.#numbers.set(signature, number);
    return number;
  }
}
