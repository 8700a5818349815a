/**
 * What a shell command line does, as data: its commands, and the files each is known to touch.
 *
 * Invariant: a part is `known` only where each of its words is understood; whatever is not in the
 * tables, not certain or not parsed makes it unknown, and then nobody may think it harmless. This
 * file runs nothing, looks at no file, and knows neither rules nor modes (permissions.ts).
 */
import { posix } from "node:path";
import { forEachChild, parse } from "unbash";
import type * as Shell from "unbash";
import {
  type Arg,
  ASSIGNABLE,
  effectsOf,
  type Here,
  type Touch,
  touching,
  type Within,
  withinOf,
} from "./programs.ts";

/**
 * One simple command, one redirection, or an expansion that could run something.
 * `text` is the command as written, one space between words, and null for the others. `plain` is
 * the same without quotes and without the program's folder.
 * `known`: it does nothing but `touches`. `passes`: it does only what `inner` does.
 */
export type Part = {
  text: string | null;
  plain: string;
  known: boolean;
  passes: boolean;
  touches: Touch[];
  inner: Part[];
};

/** `trouble`: why the line could not be read for certain, or null. */
export type Line = { trouble: string | null; parts: Part[] };

/** Where a line starts: absolute paths. `variables` are the ones whose values are certain. */
export type Place = { cwd: string; variables: Record<string, string> };

/** Longer lines are parsed, but are never known. */
const MAX_CHARS = 10_000;
/** `sudo env bash -c "timeout 5 sh -c …"`: past this depth nobody means well. */
const MAX_DEPTH = 6;
/** A line may be in this many folders at a time before it is said to be anywhere. */
const MAX_FOLDERS = 8;

type Walk = {
  place: Place;
  /** The folders the shell may be in; null: it may be anywhere. */
  cwds: string[] | null;
  /** Inside a substitution: what is printed becomes somebody's arguments. */
  nested: boolean;
  /** A first look at a loop, to see whether it leaves its folder. */
  probing: boolean;
  depth: number;
  line: Line;
};

const hereOf = ({ cwds, place }: Walk): Here => ({ cwds, start: place.cwd });

/** Reads `command`, which starts in `place.cwd`. Never throws. */
export function readLine(command: string, place: Place): Line {
  const line: Line = { trouble: null, parts: [] };
  if (command.includes("\0")) line.trouble = "it holds a NUL character";
  if (command.length > MAX_CHARS)
    line.parts.push(opaque(`a command of ${command.length.toLocaleString("en")} characters`));
  const cwds = [place.cwd];
  walk(parse(command), { place, cwds, nested: false, probing: false, depth: 0, line });
  return line;
}

/** The parts and what they run in turn. */
export const flatten = (parts: Part[]): Part[] =>
  parts.flatMap((part) => [part, ...flatten(part.inner)]);

/** Something that is no command, of which nothing is known. */
export const opaque = (plain: string): Part => ({
  text: null,
  plain,
  known: false,
  passes: false,
  touches: [],
  inner: [],
});

// ── The tree ────────────────────────────────────────────────────────────────────────────────────

function walk(node: Shell.SyntaxNode, w: Walk): void {
  const children = () => forEachChild(node, (child) => walk(child, w));
  const danger = dangerOf(node);
  if (danger !== null) w.line.parts.push(opaque(danger));
  switch (node.type) {
    case "Script":
      w.line.trouble ??= "errors" in node ? (node.errors?.[0]?.message ?? null) : null;
      return children();
    case "CommandExpansion":
    case "ProcessSubstitution":
    case "ArithmeticCommandExpansion":
      return forEachChild(node, (child) => walk(child, { ...w, nested: true }));
    case "Subshell":
      return forEachChild(node, (child) => walk(child, { ...w }));
    case "Pipeline": // Each command of one is a process of its own.
      return node.commands.forEach((child) => walk(child, node.operators[0] ? { ...w } : w));
    case "Statement":
      return walkStatement(node, w);
    case "AndOr":
      return walkAndOr(node, w);
    case "For":
    case "ArithmeticFor":
    case "Select":
    case "While":
      return walkLoop(node, w);
    case "Redirect":
      return addRedirect(node, w);
    case "Command":
      return walkCommand(node, w);
    default:
      return children();
  }
}

/** A loop that goes somewhere may be anywhere when it goes there again. */
function walkLoop(node: Shell.SyntaxNode, w: Walk): void {
  const probe: Walk = { ...w, probing: true, line: { trouble: null, parts: [] } };
  if (!w.probing) forEachChild(node, (child) => walk(child, probe));
  if (probe.cwds?.join() !== w.cwds?.join()) w.cwds = null;
  forEachChild(node, (child) => walk(child, w));
}

/** Any command may fail, and then the shell is still where it was. */
function walkStatement(node: Shell.Statement, w: Walk): void {
  const before = w.cwds;
  forEachChild(node, (child) => walk(child, w));
  w.cwds = union(before, w.cwds);
}

function walkAndOr(node: Shell.AndOr, w: Walk): void {
  const before = w.cwds;
  node.commands.forEach((command, i) => {
    if (node.operators[i - 1] === "||") w.cwds = union(before, w.cwds);
    walk(command, w);
  });
}

function union(a: string[] | null, b: string[] | null): string[] | null {
  const all = a && b && [...new Set([...a, ...b])];
  return all && all.length <= MAX_FOLDERS ? all : null;
}

/** Bash evaluates the values of variables in arithmetic, and `a[$(id)]` in one of them runs `id`. */
const NUMBERS = /^(\$\(|\$\[)?[\d\s+*/%()<>&|^!~?:-]*\]?$/;

/** What of a node itself, beside its commands, may run something or set a variable; or null. */
function dangerOf(node: Shell.SyntaxNode): string | null {
  switch (node.type) {
    case "ParameterExpansion":
      return isPlainExpansion(node) ? null : node.text;
    case "ArithmeticExpansion":
      return NUMBERS.test(node.text) ? null : node.text;
    case "ArithmeticCommand":
      return NUMBERS.test(node.body) ? null : `((${node.body}))`;
    case "ArithmeticFor":
      return "for ((…))";
    case "TestUnary":
      return /^-[a-zA-Z]$/.test(node.operator) && !/[vR]/.test(node.operator)
        ? null
        : `[[ ${node.operator} … ]]`;
    case "TestBinary": {
      const numeric = /^-(eq|ne|[lg][te])$/.test(node.operator);
      const certain = [node.left, node.right].every(({ text }) => /^\d+$/.test(text));
      return numeric && !certain ? `[[ … ${node.operator} … ]]` : null;
    }
    case "For":
    case "Select": // `for PATH in ./evil; do ls; done`
      return /^[a-z_]\w*$/.test(node.name.text) ? null : `${node.name.text}=…`;
    case "Function":
      return `function ${node.name.text}`;
    case "Coproc":
      return "coproc";
    case "FileDescriptorVariable":
      return `${node.name}=…`;
    default:
      return null;
  }
}

/** `${x}`, `${#x}`, `${x:-y}`, `${x%.ts}`: neither assigns, nor evaluates what a variable holds. */
function isPlainExpansion({ prefix, index, operation }: Shell.ParameterExpansionPart): boolean {
  if (prefix === "!" || (index && !/^(\d+|[@*])$/.test(index.text))) return false;
  if (operation?.type === "Default") return !operation.operator.includes("=");
  return !operation || ["Remove", "Replace", "CaseModification"].includes(operation.type);
}

// ── Words and redirections ──────────────────────────────────────────────────────────────────────

function readWord(word: Shell.Word, w: Walk): Arg {
  const arg: Arg = { raw: word.text, value: "", sure: true, glob: false };
  if (word.parts) for (const part of word.parts) addPart(arg, part, w);
  else arg.value = word.value;
  const home = w.place.variables.HOME ?? "";
  if (/^~(\/|$)/.test(word.text)) arg.value = home + arg.value.slice(1);
  else if (word.text.startsWith("~")) arg.sure = false;
  else if (/^\w+=~(\/|$)/.test(word.text)) arg.value = arg.value.replace("~", home);
  return arg;
}

function addPart(arg: Arg, part: Shell.WordPart, w: Walk): void {
  switch (part.type) {
    case "Literal":
    case "SingleQuoted":
    case "AnsiCQuoted":
      arg.value += part.value;
      return;
    case "DoubleQuoted":
      for (const child of part.parts) addPart(arg, child, w);
      return;
    case "Glob":
      arg.glob = true;
      arg.sure &&= !/[$`]/.test(part.text);
      arg.value += part.text;
      return;
    default: {
      const value = variableOf(part, w);
      arg.value += value ?? "";
      arg.sure &&= value !== undefined;
    }
  }
}

/** The value of `$HOME` and the like, where the shell will not split it. */
function variableOf(part: Shell.WordPart, w: Walk): string | undefined {
  const [, name = ""] = /^\$\{?(\w+)\}?$/.exec(part.text) ?? [];
  const { [name]: value } = w.place.variables;
  const known = name === "PWD" && w.cwds?.length === 1 ? w.cwds[0] : value;
  return known !== undefined && /^[\w./@+-]+$/.test(known) ? known : undefined;
}

function addRedirect(node: Shell.Redirect, w: Walk): void {
  const target = node.target && readWord(node.target, w);
  const duplicates = node.operator.endsWith("&") && /^(\d+-?|-)$/.test(node.target?.text ?? "");
  if (target && !duplicates) {
    const plain = `${node.operator} ${target.raw}`;
    const access = node.operator === "<" ? "read" : "write";
    w.line.parts.push({
      ...opaque(plain),
      known: true,
      touches: touching(access, [target], hereOf(w)),
    });
  }
  forEachChild(node, (child) => walk(child, w));
}

// ── Commands ────────────────────────────────────────────────────────────────────────────────────

function walkCommand(node: Shell.Command, w: Walk): void {
  const words = [...(node.name ? [node.name] : []), ...node.args];
  const args = words.map((word) =>
    word.type === "Word"
      ? readWord(word, w)
      : { raw: word.text, value: word.text, sure: false, glob: false },
  );
  const sets = node.prefix.filter((one) => one.type === "Assignment");
  const command = args.length > 0 ? [describe(args, w)] : [];
  if (sets.length === 0) w.line.parts.push(...command);
  else w.line.parts.push(setting(sets, command));
  forEachChild(node, (child) => walk(child, w));
  follow(args, command, w);
}

/** `LANG=C ls` does what `ls` does; `PAGER=x git log` may do anything. */
function setting(sets: Shell.Assignment[], inner: Part[]): Part {
  const safe = sets.every(({ text }) => ASSIGNABLE.test(text));
  const before = sets.map(({ text }) => text).join(" ");
  const text = [before, ...inner.map((part) => part.text)].join(" ");
  const plain = [before, ...inner.map((part) => part.plain)].join(" ");
  return { ...opaque(plain), text, passes: safe && inner.length > 0, inner };
}

/** Moves the walk to where a `cd` leads; to anywhere after what may hide one. */
function follow(args: Arg[], command: Part[], w: Walk): void {
  const moves = /^(cd|pushd|popd|eval|source|\.)( |$)/;
  if (!flatten(command).some(({ plain }) => moves.test(plain))) return;
  const [target, ...more] = args.slice(1).filter(({ value }) => value !== "--");
  const certain = target ? target.sure && !target.glob && !target.value.startsWith("-") : true;
  if (args[0]?.value !== "cd" || more.length > 0 || !certain) w.cwds = null;
  // Bash takes `..` off the name it came by, whatever links were in it.
  else if (!target) w.cwds = [w.place.variables.HOME ?? "/"];
  else w.cwds = w.cwds && w.cwds.map((cwd) => posix.resolve(cwd, target.value));
}

function describe(args: Arg[], w: Walk): Part {
  const [name = "", ...rest] = args.map(({ raw, value, sure }) => (sure ? value : raw));
  const plain = [posix.basename(name), ...rest].join(" ");
  const text = args.map(({ raw }) => raw).join(" ");
  const within = withinOf(args, text, plain);
  if (!within) {
    const { known, touches } = effectsOf(args, plain, hereOf(w));
    return { ...opaque(plain), text, known: known && !w.nested, touches };
  }
  if (w.depth >= MAX_DEPTH) w.line.trouble ??= "its commands are nested too deep";
  const deeper = { ...w, depth: w.depth + 1 };
  const inner = w.depth >= MAX_DEPTH ? [] : runs(within, deeper);
  return { ...opaque(plain), text, passes: within.only && inner.length > 0, inner };
}

function runs({ script, commands }: Within, w: Walk): Part[] {
  if (script === undefined) return commands.map((args) => describe(args, w));
  const line: Line = { trouble: null, parts: [] };
  walk(parse(script), { ...w, line });
  w.line.trouble ??= line.trouble;
  return line.parts;
}
