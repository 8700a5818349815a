/**
 * The grammar of Grep's patterns: text in, a tree out. It is that of ripgrep (Rust's regex crate),
 * with what models bring along from JavaScript and grep where its meaning is plain.
 *
 * Invariant: every tree can be matched in time linear in the text, so what needs backtracking
 * (look-around, back-references, possessive quantifiers) is refused. A refusal is a UsageError that
 * says what to write instead. Nothing here reads a text.
 */
import { UsageError } from "../errors.ts";

/** Which characters may stand at one place; `only`, where it is one, or one letter in either case. */
export type Atom = {
  accepts(char: string): boolean;
  only: { text: string; isFolded: boolean } | null;
};

/** `^` and `$` hold at lines, `A` and `z` at the text's ends, `b B < >` at words'. */
export type Assertion = "^" | "$" | "A" | "z" | "b" | "B" | "<" | ">";

export type Node =
  | { type: "atom"; atom: Atom }
  | { type: "assert"; assertion: Assertion }
  | { type: "all"; nodes: Node[] }
  | { type: "any"; nodes: Node[] }
  | { type: "repeat"; node: Node; min: number; max: number; isLazy: boolean };

export type Options = { ignoreCase: boolean; multiline: boolean };

/** What `\w` means, as the inside of a character class. */
export const WORD_CHARS = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200c\\u200d";

type Flags = { ignoreCase: boolean; dotAll: boolean };
/** The text, how far it is read, and what holds for all of it. */
type Source = { text: string; at: number; depth: number; multiline: boolean; namesCr: boolean };

const MAX_CHARS = 20_000;
const MAX_DEPTH = 200;

/** `namesCr`: a carriage return is asked for, and so is not part of the line end. */
export type Parsed = { node: Node; namesCr: boolean };

/** Throws a UsageError where `text` is no pattern. */
export function parsePattern(text: string, { ignoreCase, multiline }: Options): Parsed {
  if (text.length > MAX_CHARS)
    throw new UsageError(`The pattern is longer than ${MAX_CHARS} characters.`);
  const source = { text, at: 0, depth: 0, multiline, namesCr: false };
  const node = parseAny(source, { ignoreCase, dotAll: multiline });
  if (source.at < text.length)
    fail(source, "has a `)` that closes nothing; write \\) for the character");
  return { node, namesCr: source.namesCr };
}

function fail({ text }: Source, what: string): never {
  const shown = text.length > 100 ? `${text.slice(0, 100)}…` : text;
  throw new UsageError(`The pattern ${shown} ${what}.`);
}

const peek = ({ text, at }: Source): string => text[at] ?? "";

/** Steps over what `wanted` matches right here (sticky), and gives it back. */
function take(source: Source, wanted: RegExp): RegExpExecArray | null {
  wanted.lastIndex = source.at;
  const found = wanted.exec(source.text);
  if (found) source.at += found[0].length;
  return found;
}

// ── Structure ───────────────────────────────────────────────────────────────────────────────────

function parseAny(source: Source, flags: Flags): Node {
  if (++source.depth > MAX_DEPTH) fail(source, `nests more than ${MAX_DEPTH} groups`);
  const scope = { ...flags };
  const nodes = [parseAll(source, scope)];
  while (take(source, /\|/y)) nodes.push(parseAll(source, scope));
  source.depth--;
  return nodes.length === 1 && nodes[0] ? nodes[0] : { type: "any", nodes };
}

/** `(?i)` in the middle changes `flags` for what follows in the same group. */
function parseAll(source: Source, flags: Flags): Node {
  const nodes: Node[] = [];
  while (source.at < source.text.length && peek(source) !== "|" && peek(source) !== ")") {
    const node = quantify(source, parseOne(source, flags));
    nodes.push(...(node.type === "all" ? node.nodes : [node]));
  }
  return { type: "all", nodes };
}

function quantify(source: Source, node: Node): Node {
  const found = take(source, /(?:([*+?])|\{(\d+)(,?)(\d*)\}|\{,(\d+)\})(\??)/y);
  if (!found) return node;
  const [, sign, low, comma, high, upTo, lazy] = found;
  if (take(source, /\+/y)) {
    fail(
      source,
      `has the possessive quantifier ${found[0]}+, which is not supported: leave the last + out`,
    );
  }
  const min = sign ? (sign === "+" ? 1 : 0) : Number(low ?? 0);
  const max = sign
    ? sign === "?"
      ? 1
      : Infinity
    : Number(upTo ?? (comma ? high || Infinity : low));
  if (max < min) fail(source, `has {${min},${max}}, where the first number must not be the larger`);
  return quantify(source, { type: "repeat", node, min, max, isLazy: lazy === "?" });
}

function parseOne(source: Source, flags: Flags): Node {
  const char = String.fromCodePoint(source.text.codePointAt(source.at) ?? 0);
  if (char === "(") return parseGroup(source, flags);
  if (char === "[") return set(parseClass(source), flags);
  if (char === "\\") return parseEscape(source, flags);
  source.at += char.length;
  if (char === ".") return atom(flags.dotAll ? () => true : (one) => one !== "\n");
  if (char === "^" || char === "$") return { type: "assert", assertion: char };
  if ("*+?".includes(char)) {
    fail(
      source,
      `has a ${char} with nothing before it to repeat; write \\${char} for the character, .* for any text`,
    );
  }
  return literal(source, char, flags);
}

function parseGroup(source: Source, flags: Flags): Node {
  const [opening = ""] =
    take(source, /\((?:\?(?:P?<(?![=!])[^>]*>|[a-zA-Z]*(?:-[a-zA-Z]+)?[:)]|<?[=!]|.?))?/y) ?? [];
  if (/^\(\?<?[=!]/.test(opening)) {
    fail(
      source,
      "uses look-around, which is not supported: match more and filter what comes, or use Bash with grep -P",
    );
  }
  const [, on = "", off = "", end] = /^\(\?([a-zA-Z]*)-?([a-zA-Z]*)([:)])$/.exec(opening) ?? [];
  if (!end && /^\(\?(?!P?<)/.test(opening)) {
    fail(
      source,
      `has a group ${opening}, which is not supported; (?:…) groups, \\( is the character`,
    );
  }
  const inner = withFlags(source, flags, on, off);
  if (end === ")") return (Object.assign(flags, inner), { type: "all", nodes: [] });
  const node = parseAny(source, inner);
  if (!take(source, /\)/y))
    fail(source, "has a `(` that is never closed; write \\( for the character");
  return node;
}

function withFlags(source: Source, flags: Flags, on: string, off: string): Flags {
  const unknown = /[^imsuUR]/.exec(on + off)?.[0];
  if (unknown) fail(source, `sets the flag ${unknown}, which is not supported: i, m and s are`);
  const pick = (letter: string, now: boolean) =>
    !off.includes(letter) && (now || on.includes(letter));
  return { ignoreCase: pick("i", flags.ignoreCase), dotAll: pick("s", flags.dotAll) };
}

// ── Characters ──────────────────────────────────────────────────────────────────────────────────

const atom = (accepts: Atom["accepts"], only: Atom["only"] = null): Node => ({
  type: "atom",
  atom: { accepts, only },
});

function literal(source: Source, char: string, { ignoreCase }: Flags): Node {
  if (char === "\n" && !source.multiline)
    fail(source, "spans lines: set multiline to true for that");
  if (char === "\r") source.namesCr = true;
  const [lower, upper] = [char.toLowerCase(), char.toUpperCase()];
  if (!ignoreCase || lower === upper)
    return atom((one) => one === char, { text: char, isFolded: false });
  // Beyond ASCII a letter has more than two cases, and a case more than one letter.
  if (char > "\x7f") return set(hexOf(char), { ignoreCase });
  return atom((one) => one === lower || one === upper, { text: lower, isFolded: true });
}

const hexOf = (char: string): string => `\\u{${(char.codePointAt(0) ?? 0).toString(16)}}`;

/** `inside` is what stands in a JavaScript class under the flag v. */
function set(inside: string, { ignoreCase }: Pick<Flags, "ignoreCase">): Node {
  const regex = new RegExp(`^[${inside}]$`, ignoreCase ? "iv" : "v");
  return atom((char) => regex.test(char));
}

const SETS: Record<string, string> = {
  d: "\\p{Nd}",
  D: "\\P{Nd}",
  s: "\\s",
  S: "\\S",
  w: WORD_CHARS,
  W: `[^${WORD_CHARS}]`,
  h: "\\t\\p{Zs}",
};
const CHARS: Record<string, string> = {
  n: "\n",
  r: "\r",
  t: "\t",
  f: "\f",
  v: "\v",
  a: "\x07",
  e: "\x1b",
  0: "\0",
};
const ASSERTIONS: Record<string, Assertion> = {
  b: "b",
  B: "B",
  "<": "<",
  ">": ">",
  A: "A",
  z: "z",
  Z: "z",
};

function parseEscape(source: Source, flags: Flags): Node {
  const assertion = ASSERTIONS[source.text[source.at + 1] ?? ""];
  if (assertion) {
    source.at += 2;
    // One line is all that a search by lines sees of a text.
    const inLine = assertion === "A" ? "^" : assertion === "z" ? "$" : assertion;
    return { type: "assert", assertion: source.multiline ? assertion : inLine };
  }
  const quoted = take(source, /\\Q(.*?)(?:\\E|$)/sy);
  if (quoted)
    return {
      type: "all",
      nodes: Array.from(quoted[1] ?? "", (char) => literal(source, char, flags)),
    };
  const found = escaped(source);
  return "char" in found ? literal(source, found.char, flags) : set(found.inside, flags);
}

/** What an escape stands for, in a class or outside: a character, or a set of them. */
function escaped(source: Source): { char: string } | { inside: string } {
  const code = take(
    source,
    /\\(?:x|u|U)(?:\{([0-9a-fA-F]{1,6})\}|(?<=x)([0-9a-fA-F]{2})|(?<=u)([0-9a-fA-F]{4})|(?<=U)([0-9a-fA-F]{8}))/y,
  );
  if (code) return { char: charOf(source, code[1] ?? code[2] ?? code[3] ?? code[4] ?? "") };
  const property = take(source, /\\(p|P)(?:\{(\^?)([^}]*)\}|([A-Za-z]))/y);
  if (property) return { inside: propertyOf(source, property) };
  const [whole, char] = take(source, /\\(.|$)/suy) ?? [];
  if (!char) fail(source, "ends in a lone backslash; write \\\\ for the character");
  if (SETS[char]) return { inside: SETS[char] };
  if (CHARS[char]) return { char: CHARS[char] };
  if (/[1-9k]/.test(char))
    fail(
      source,
      `has the back-reference ${whole}, which is not supported: match more and filter what comes`,
    );
  if (/[a-zA-Z]/.test(char))
    fail(
      source,
      `has ${whole}, which is no escape: write ${char}, or \\\\${char} to find the backslash too`,
    );
  return { char };
}

function charOf(source: Source, hex: string): string {
  const code = parseInt(hex, 16);
  if (code > 0x10ffff) fail(source, `has the code ${hex}, which is no character`);
  return String.fromCodePoint(code);
}

function propertyOf(source: Source, [whole, letter, not, braced, short]: RegExpExecArray): string {
  const name = braced ?? short ?? "";
  const sign = (letter === "P") !== (not === "^") ? "P" : "p";
  const spellings = [`\\${sign}{${name}}`, `\\${sign}{Script=${name}}`];
  const known = spellings.find((spelling) => isClass(spelling));
  return (
    known ??
    fail(source, `has ${whole}, which is no Unicode property; \\p{L}, \\p{Lu}, \\p{Greek} are`)
  );
}

function isClass(inside: string): boolean {
  try {
    return new RegExp(`[${inside}]`, "v") instanceof RegExp;
  } catch {
    return false; // That is the answer.
  }
}

// ── Classes ─────────────────────────────────────────────────────────────────────────────────────

const POSIX: Record<string, string> = {
  alnum: "0-9A-Za-z",
  alpha: "A-Za-z",
  ascii: "\\x00-\\x7f",
  blank: "\\t ",
  cntrl: "\\x00-\\x1f\\x7f",
  digit: "0-9",
  graph: "!-~",
  lower: "a-z",
  print: " -~",
  punct: "!-\\/:-@\\[-`\\{-~",
  space: "\\s",
  upper: "A-Z",
  word: "\\w",
  xdigit: "0-9A-Fa-f",
};

/** `[…]`, as what stands in a JavaScript class. A `]` that comes first is a character. */
function parseClass(source: Source): string {
  const not = take(source, /\[(\^?)/y)?.[1] ?? "";
  const parts: string[] = [];
  while (parts.length === 0 || !take(source, /\]/y)) {
    if (source.at >= source.text.length) {
      fail(source, "has a `[` that is never closed; write \\[ for the character");
    }
    parts.push(parseMember(source));
  }
  return not ? `[^${parts.join("")}]` : parts.join("");
}

function parseMember(source: Source): string {
  const posix = take(source, /\[:(\^?)([a-z]+):\]/y);
  const named = POSIX[posix?.[2] ?? ""];
  if (posix && !named) fail(source, `has ${posix[0]}; known are ${Object.keys(POSIX).join(", ")}`);
  if (named) return `[${posix?.[1]}${named}]`;
  const low = member(source);
  if ("inside" in low) return `[${low.inside}]`;
  if (!take(source, /-(?!\])/y)) return hexOf(low.char);
  const high = member(source);
  if ("inside" in high) return `${hexOf(low.char)}\\-[${high.inside}]`;
  if ((high.char.codePointAt(0) ?? 0) < (low.char.codePointAt(0) ?? 0)) {
    fail(
      source,
      `has the range ${low.char}-${high.char}, which runs backwards; write \\- for the character`,
    );
  }
  return `${hexOf(low.char)}-${hexOf(high.char)}`;
}

function member(source: Source): { char: string } | { inside: string } {
  if (peek(source) !== "\\") return { char: take(source, /./suy)?.[0] ?? "" };
  if (source.text[source.at + 1] !== "b") return escaped(source);
  source.at += 2;
  return { char: "\b" };
}
