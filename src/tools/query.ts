/**
 * A pattern as models write it, in ripgrep's syntax, spelt for the engines that scan.ts runs:
 * JavaScript's, and RE2 for what could backtrack without end.
 *
 * Invariant: conservative. One of the needles stands in every match, and `repeats` is never too low.
 * Without `multiline`, no part of a pattern takes a line end that does not name it in a class.
 */
import type { RE2JS } from "re2js";
import { messageOf, UsageError } from "../errors.ts";

export type Query = {
  /** With the flags g and u. */
  regex: RegExp;
  /** The same in linear time; null where it is not needed, or where RE2 has no such thing. */
  linear: RE2JS | null;
  isMultiline: boolean;
  /** Every match contains one of them; none: that cannot be said. */
  needles: readonly string[];
  /**
   * How many parts repeat without a limit: n characters take JavaScript about n^(repeats + 1) steps
   * at the worst. Infinity where a group repeats.
   */
  repeats: number;
  /** JavaScript took too long somewhere: RE2 does the rest. Set by the search. */
  isCostly: boolean;
  /** The pattern speaks of \r: line ends are then left as they are. */
  keepsReturns: boolean;
};

/** Throws UsageError, with the cure, for what is no pattern. */
export async function parseQuery(
  pattern: string,
  ignoreCase: boolean,
  isMultiline: boolean,
): Promise<Query> {
  const [, inline = "", body = ""] = /^(?:\(\?([imsu]+)\))?([\s\S]*)$/.exec(pattern) ?? [];
  const tokens = body.match(TOKEN) ?? [];
  if (!isMultiline && tokens.some((token) => token === "\\n" || token === "\n"))
    throw new UsageError(
      `"${pattern}" cannot match within one line: set multiline to search across lines.`,
    );
  const folds = ignoreCase || inline.includes("i");
  const spell = (dialect: Dialect) =>
    tokens.map((token) => spellToken(token, isMultiline, dialect)).join("");
  const repeats = countRepeats(tokens);
  return {
    regex: compile(spell(javascript), folds, pattern),
    linear: repeats > 0 ? await compileLinear(spell(re2), folds) : null,
    isMultiline,
    needles: folds ? [] : needlesOf(tokens),
    repeats,
    isCostly: false,
    keepsReturns: tokens.some((token) => /^(?:\\r|\r|\\x0d)$/i.test(token)),
  };
}

function compile(source: string, folds: boolean, pattern: string): RegExp {
  try {
    return new RegExp(source, folds ? "giu" : "gu");
  } catch (error) {
    throw new UsageError(
      `"${pattern}" is no regular expression (${messageOf(error)}). Put a \\ before each of . * + ? ( ) [ ] { } ^ $ | that stands for itself.`,
    );
  }
}

async function compileLinear(source: string, folds: boolean): Promise<RE2JS | null> {
  const { RE2JS } = await import("re2js");
  try {
    return RE2JS.compile(source, RE2JS.MULTILINE | (folds ? RE2JS.CASE_INSENSITIVE : 0));
  } catch {
    return null; // look-around, back-references: what is then too costly is noted as not searched
  }
}

// ── Spelling ────────────────────────────────────────────────────────────────────────────────────

/** An escape, a class, the beginning of a group, a repeat, or one character. */
const TOKEN =
  /\\(?:[pPxu]\{[^}]*\}|[pP]\w|x[\da-f]{2}|u[\da-f]{4}|c[a-z]|k<\w+>|[\s\S])|\[\^?\]?(?:\[:\w+:\]|\\[\s\S]|[^\]\\])*\]|\(\?P?(?:<?[=!]|<\w+>|[\w-]*:)|[*+?]\??|\{(?:\d+(?:,\d*)?|,\d+)\}\??|[\s\S]/giu;

/** What stands in a class: a POSIX class, an escape, or one character. */
const ITEM =
  /\[:\w+:\]|\\(?:[pPxu]\{[^}]*\}|[pP]\w|x[\da-f]{2}|u[\da-f]{4}|c[a-z]|[\s\S])|[\s\S]/giu;

/** Letters, digits and the like, as ripgrep has them; white space but the line end. */
const word = "\\p{L}\\p{M}\\p{N}\\p{Pc}";
const space = " \\t\\v\\f\\r\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000";

const posix: Record<string, string> = {
  alnum: "A-Za-z0-9",
  alpha: "A-Za-z",
  blank: " \\t",
  digit: "0-9",
  lower: "a-z",
  punct: "!-\\/:-@\\[-`\\{-~",
  space: " \\t\\v\\f\\r",
  upper: "A-Z",
  word: "\\w",
  xdigit: "0-9A-Fa-f",
};

/** Where a line is all that is seen. */
const lineEdges: Record<string, string> = { "\\A": "^", "\\z": "$", "\\Z": "$" };

type Dialect = Record<string, string>;

// The engine's own ^ and $ stop at \r and U+2028 too, and its \b knows ASCII only.
const javascript: Dialect = {
  "^": "(?<![^\\n])",
  $: "(?![^\\n])",
  "\\b": `(?:(?<=[${word}])(?![${word}])|(?<![${word}])(?=[${word}]))`,
  "\\B": `(?:(?<=[${word}])(?=[${word}])|(?<![${word}])(?![${word}]))`,
  // To some the edge of a word, to others an angle bracket.
  "\\<": `(?:<|(?<![${word}])(?=[${word}]))`,
  "\\>": `(?:>|(?<=[${word}])(?![${word}]))`,
  "\\A": "(?<![\\s\\S])",
  "\\z": "(?!\\n[\\s\\S]|[^\\n])",
  "\\Z": "(?!\\n[\\s\\S]|[^\\n])",
};
const re2: Dialect = {
  "\\<": "(?:<|\\b)",
  "\\>": "(?:>|\\b)",
  "\\z": "\\n?\\z",
  "\\Z": "\\n?\\z",
};

function spellToken(original: string, spans: boolean, dialect: Dialect): string {
  const token = spans ? original : (lineEdges[original] ?? original);
  const own = dialect[token];
  if (own !== undefined) return own;
  if (token === ".") return spans ? "[\\s\\S]" : "[^\\n]";
  if (/^\\[wdsWDS]$/.test(token)) {
    const isNot = token !== token.toLowerCase();
    return spellClass(`[${isNot ? "^" : ""}${token.toLowerCase()}]`, spans);
  }
  if (token === "[]") return "\\[\\]";
  if (/^\[.*\]$/s.test(token)) return spellClass(token, spans);
  if (/^[{}\]]$/.test(token)) return `\\${token}`;
  if (token.startsWith("\\")) return spellEscape(token);
  return token.replace("(?P<", "(?<").replace("{,", "{0,");
}

/** An escape that both engines understand. */
function spellEscape(token: string): string {
  const [, code = "", letter = ""] = /^\\(?:[xu]\{?([\da-f]+)\}?|[pP](\w))$/i.exec(token) ?? [];
  if (code) return quote(String.fromCodePoint(Math.min(parseInt(code, 16), 0x10ffff)));
  if (letter) return `${token.slice(0, 2)}{${letter}}`;
  if (/^\\[\W_]$/u.test(token)) return quote(token.slice(1));
  return token.replace(
    /(?<=^\\p\{)(?=(?:Han|Hangul|Hiragana|Katakana|Latin|Greek|Cyrillic|Arabic|Hebrew|Thai)\})/i,
    "Script=",
  );
}

const quote = (char: string): string => (/[\^$\\.*+?()[\]{}|/]/.test(char) ? `\\${char}` : char);

function spellClass(token: string, spans: boolean): string {
  const isNot = token.startsWith("[^");
  const items = token.slice(isNot ? 2 : 1, -1).match(ITEM) ?? [];
  const spelt = items.map((item) => spellItem(item, spans));
  const isOne = (at: number) => items[at] !== undefined && !isSet(items[at]);
  let rangeEnd = 0; // where the last range ended: what ends one begins none
  const body = items.map((item, at) => {
    if (item !== "-") return spelt[at];
    const isRange = at > rangeEnd && isOne(at - 1) && isOne(at + 1);
    if (isRange) rangeEnd = at + 2;
    return isRange ? "-" : "\\-";
  });
  return `[${isNot ? "^" : ""}${isNot && !spans ? "\\n" : ""}${body.join("")}]`;
}

const isSet = (item: string): boolean => /^\[:|^\\[wWdDsSpP]/.test(item);

function spellItem(item: string, spans: boolean): string {
  const name = /^\[:(\w+):\]$/.exec(item)?.[1];
  const breaks = spans ? "\\n" : "";
  if (name !== undefined && Object.hasOwn(posix, name))
    return posix[name] + (name === "space" ? breaks : "");
  if (item === "\\w") return word;
  if (item === "\\d") return "\\p{Nd}";
  if (item === "\\s") return space + breaks;
  if (item === "\\b") return "\\x08";
  const spelt = item.startsWith("\\") ? spellEscape(item) : quote(item);
  return spelt === "-" ? "\\-" : spelt;
}

// ── What is known of a pattern ──────────────────────────────────────────────────────────────────

function countRepeats(tokens: readonly string[]): number {
  let repeats = 0;
  for (const [at, token] of tokens.entries()) {
    const isGroup = tokens[at - 1] === ")";
    const [, comma = "", most = ""] = /^\{\d*(,?)(\d*)\}/.exec(token) ?? [];
    const isLong = comma !== "" && (most === "" || isGroup || Number(most) > 10);
    if (/^[*+]/.test(token) || isLong) repeats += isGroup ? Infinity : 1;
  }
  return repeats;
}

/**
 * For every alternative the longest text that its matches contain: a run of plain characters
 * outside of groups and classes, each but the last not followed by something that makes it
 * optional. None where one of them may have none.
 */
function needlesOf(tokens: readonly string[]): string[] {
  const choices = [[""]];
  let depth = 0;
  for (const token of tokens) {
    const runs = choices.at(-1) ?? [];
    if (token.startsWith("(")) depth += 1;
    if (token === ")") depth -= 1;
    if (token === "|" && depth === 0) choices.push([""]);
    if (/^(?:[*?]|\{.)/.test(token)) runs.push((runs.pop() ?? "").slice(0, -1));
    const plain = depth === 0 ? plainOf(token) : "";
    if (plain) runs.push((runs.pop() ?? "") + plain);
    else runs.push("");
  }
  const needles = choices.map((runs) => runs.reduce((a, b) => (b.length > a.length ? b : a)));
  return needles.every((needle) => needle !== "") ? needles : [];
}

/** The character that a token stands for as it is; "" where it does not. */
function plainOf(token: string): string {
  if (/^\\[!-/:;=?@[-`{-~]$/.test(token)) return token.slice(1);
  return /^(?:[^\s\\^$.*+?()[|\ufffd]|[ \t])$/.test(token) ? token : "";
}
