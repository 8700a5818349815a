/**
 * A pattern as models write it, read into what scan.ts runs: JavaScript's regular expressions, with
 * what ripgrep and grep add, and what is known of its cost.
 *
 * Invariant: conservative. The needle stands in every match, and a pattern is called quick only if
 * it is; in doubt there is no needle, and RE2 is at hand.
 */
import type { RE2JS } from "re2js";
import { messageOf, UsageError } from "../errors.ts";

export type Query = {
  /** With the flags g and m; s where matches may span lines. */
  regex: RegExp;
  /** The same in linear time; null where it is not needed, or where RE2 has no such thing. */
  linear: RE2JS | null;
  isMultiline: boolean;
  /** What every match contains; null where that cannot be said. */
  needle: string | null;
  shape: Shape;
};

/**
 * How much a pattern may cost. `repeats`: how many of its parts repeat without a limit; a search of
 * n characters takes about n^(repeats + 1) steps at the worst, and no bound holds where a group
 * repeats. `leavesLine`: such a part takes line ends too.
 */
type Shape = { repeats: number; leavesLine: boolean };

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
export async function parseQuery(
  pattern: string,
  ignoreCase: boolean,
  isMultiline: boolean,
): Promise<Query> {
  const [, inline = "", body = ""] = /^(?:\(\?([imsux]+)\))?([\s\S]*)$/.exec(pattern) ?? [];
  const spans = isMultiline || inline.includes("s");
  const ours = body
    .replaceAll(/\[:(\w+):\]/g, (all, name: string) => classes[name] ?? all)
    .replaceAll("(?P<", "(?<")
    .replaceAll(/\\[AzZ]/g, (end) => (end === "\\A" ? "(?<![\\s\\S])" : "(?![\\s\\S])"));
  const source = spans ? ours : tokensOf(ours).map(stayInLine).join("");
  const folds = ignoreCase || inline.includes("i");
  const isUnicode = /\\[pP]\{|\\u\{/.test(source);
  const flags = `gm${folds ? "i" : ""}${spans ? "s" : ""}${isUnicode ? "u" : ""}`;
  const shape = shapeOf(source, spans);
  const isQuick = shape.repeats === 0 || (shape.repeats === 1 && !shape.leavesLine);
  return {
    regex: compile(source, flags, pattern),
    linear: isQuick ? null : await compileLinear(body, folds, spans),
    isMultiline,
    needle: folds ? null : needleOf(source) || null,
    shape,
  };
}

function compile(source: string, flags: string, pattern: string): RegExp {
  try {
    return new RegExp(source, flags);
  } catch (error) {
    throw new UsageError(
      `"${pattern}" is no regular expression (${messageOf(error)}). Put a \\ before each of . * + ? ( ) [ ] { } ^ $ | that stands for itself.`,
    );
  }
}

async function compileLinear(body: string, folds: boolean, spans: boolean): Promise<RE2JS | null> {
  const { RE2JS } = await import("re2js");
  const flags = RE2JS.MULTILINE | (folds ? RE2JS.CASE_INSENSITIVE : 0) | (spans ? RE2JS.DOTALL : 0);
  try {
    return RE2JS.compile(body, flags);
  } catch {
    return null; // look-around, back-references: what is then too costly is noted as not searched
  }
}

/** A pattern's parts: an escape, a class, a repeat, or one character. */
const tokensOf = (source: string): string[] =>
  source.match(
    /\\(?:x[\da-fA-F]{2}|u[\da-fA-F]{4}|[upP]\{[^}]*\}|c[A-Za-z]|k<[^>]*>|[\s\S])|\[(?:\\[\s\S]|[^\]\\])*\]|[*+?]\??|\{\d*,?\d*\}\??|[\s\S]/g,
  ) ?? [];

/** Where matches stay in their line, no part of the pattern need take a line end. */
function stayInLine(token: string): string {
  if (token === "\\s") return "[^\\S\\n]";
  if (token === "\\W" || token === "\\D") return `[^${token.toLowerCase()}\\n]`;
  if (token.startsWith("[^")) return `[^\\n${token.slice(2)}`;
  return token.startsWith("[") ? token.replaceAll("\\s", " \\t\\r\\f\\v\\u00a0") : token;
}

function shapeOf(source: string, spans: boolean): Shape {
  const shape: Shape = { repeats: 0, leavesLine: spans };
  let last = "";
  for (const token of tokensOf(source)) {
    const most = /^\{\d*(,?)(\d*)\}/.exec(token);
    if (/^[*+]/.test(token) || (most && (most[1] ? Number(most[2] || Infinity) : 0) > 10))
      shape.repeats += last === ")" ? Infinity : 1;
    shape.leavesLine ||= /^\\P|^\[.*\\[WDP]/s.test(token);
    last = token;
  }
  return shape;
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
  for (const token of tokensOf(source)) {
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
