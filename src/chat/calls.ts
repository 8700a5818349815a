/**
 * How tool calls, their results, diffs and questions look, as lines. Pure.
 *
 * Invariant: what a person is asked about is shown whole and escaped; what is only reported may be
 * folded, and then says by how much.
 */
import { relative } from "node:path";
import type { Event, Question, ToolCall } from "../types.ts";
import { escapeLine, escapeText } from "./escape.ts";
import { paintDiffLine } from "./markdown.ts";
import {
  bold,
  dim,
  expandTabs,
  fit,
  glyphs,
  green,
  magenta,
  minus,
  plural,
  red,
  strikethrough,
  wrap,
} from "./style.ts";

export type ToolResult = Event & { type: "tool_result" };

/** Where paths are shown from, how wide a line may be, and whether nothing is folded. */
export type View = { cwd: string; columns: number; verbose: boolean };

/** Far more than any screen is wide. */
const maxTitleChars = 1000;
const folded = { result: 4, error: 10, patch: 40 };
const verboseLines = 2000;

// ── Calls ───────────────────────────────────────────────────────────────────────────────────────

/** What a call is about, in one line of any length: a command, a path, a pattern. */
export function titleOf(call: ToolCall, cwd: string): string {
  const { input } = call;
  const text = (name: string): string => (typeof input[name] === "string" ? input[name] : "");
  if (call.invalid !== undefined) return escapeLine(call.invalid.slice(0, maxTitleChars));
  switch (call.name) {
    case "Bash":
      return escapeLine(text("command").trim().slice(0, maxTitleChars));
    case "Read":
    case "Write":
    case "Edit":
      return escapeLine(shortPath(text("file_path"), cwd)) + rangeOf(input);
    case "Grep":
    case "Glob": {
      const where = text("path") || text("glob");
      return escapeLine(text("pattern") + (where && ` in ${shortPath(where, cwd)}`));
    }
    case "TodoWrite":
      return "";
    default: {
      const values = Object.values(input).filter((value) => typeof value === "string");
      return escapeLine(values[0] ?? (Object.keys(input).length > 0 ? JSON.stringify(input) : ""));
    }
  }
}

function rangeOf({ offset, limit }: Record<string, unknown>): string {
  if (offset === undefined && limit === undefined) return "";
  const first = Number(offset ?? 1);
  return `:${first}${limit === undefined ? "" : `-${first + Number(limit) - 1}`}`;
}

export function shortPath(path: string, cwd: string): string {
  if (!path.startsWith("/")) return path;
  const inside = relative(cwd, path);
  return inside.startsWith("..") || inside === "" ? path : inside;
}

export const nameOf = (tool: string): string =>
  escapeLine(tool.replace(/^mcp__(.+?)__/, "$1 ").trim() || "(no name)");

/** A call with its result: one line, and below it what came of it. */
export function renderResult(
  call: ToolCall | null,
  result: ToolResult,
  view: View,
  patchSeen: boolean,
): string[] {
  const paint = result.isError ? red : green;
  const counts = result.patch && !result.isError ? countChanges(result.patch) : "";
  const title = call ? titleOf(call, view.cwd) : "";
  const note = result.denied ? red(` ${glyphs.no} not permitted`) : counts;
  const room = view.columns - Bun.stringWidth(note) - 1;
  const head = `${paint(glyphs.dot)} ${bold(nameOf(result.name))} ${title}`.trimEnd();
  return [fit(head, room) + note, ...indent(bodyOf(call, result, view, patchSeen))];
}

/** The first line stands behind the elbow, the others below it. */
function indent(lines: string[]): string[] {
  const elbow = `  ${dim(glyphs.result)} `;
  const pad = " ".repeat(Bun.stringWidth(elbow));
  return lines.map((line, index) => (index === 0 ? elbow : pad) + line);
}

function bodyOf(
  call: ToolCall | null,
  result: ToolResult,
  view: View,
  patchSeen: boolean,
): string[] {
  if (!result.isError) {
    const todos = result.name === "TodoWrite" ? readTodos(call) : [];
    if (todos.length > 0) return todos.map(renderTodo);
    if (result.patch) return patchSeen ? [dim("as shown")] : foldPatch(result.patch, view);
    if (result.images?.length) return [dim(plural(result.images.length, "image"))];
    const read = result.name === "Read" ? (result.content.match(/^ *\d+[\t→|]/gm)?.length ?? 0) : 0;
    if (read > 0 && !view.verbose) return [dim(plural(read, "line"))];
  }
  return foldText(result, view);
}

function foldText({ content, isError }: ToolResult, view: View): string[] {
  const width = Math.max(8, view.columns - 6);
  const text = expandTabs(escapeText(content.replaceAll("\r\n", "\n").trimEnd()));
  if (!text) return [dim("(no output)")];
  const all = text.split("\n");
  const lines = isError && !view.verbose ? all.flatMap((line) => wrap(line, width)) : all;
  const max = view.verbose ? verboseLines : isError ? folded.error : folded.result;
  const shown = lines.slice(0, lines.length === max + 1 ? max + 1 : max);
  const cut = shown.map((line) => (view.verbose ? line : fit(line, width)));
  return [...cut.map((line) => (isError ? red(line) : dim(line))), ...rest(lines, shown)];
}

const rest = (all: readonly string[], shown: readonly string[]): string[] =>
  all.length > shown.length
    ? [dim(`${glyphs.more} +${plural(all.length - shown.length, "line")}`)]
    : [];

// ── Todos ───────────────────────────────────────────────────────────────────────────────────────

type Todo = { content: string; status: string };

function readTodos(call: ToolCall | null): Todo[] {
  const todos = call?.input["todos"];
  if (!Array.isArray(todos)) return [];
  return todos.map((todo: Partial<Todo> | null) => ({
    content: todo?.content ?? "",
    status: todo?.status ?? "",
  }));
}

function renderTodo({ content, status }: Todo): string {
  const text = escapeLine(content);
  if (status === "completed") return `${green(`[${glyphs.yes}]`)} ${dim(strikethrough(text))}`;
  return status === "in_progress" ? bold(`[${glyphs.prompt}] ${text}`) : `[ ] ${text}`;
}

// ── Diffs ───────────────────────────────────────────────────────────────────────────────────────

const changed = (patch: string, sign: "+" | "-"): number =>
  hunkLines(patch).filter((line) => line.startsWith(sign)).length;

function countChanges(patch: string): string {
  return ` ${green(`+${changed(patch, "+")}`)} ${red(`${minus}${changed(patch, "-")}`)}`;
}

/** The lines of a unified diff from its first hunk on, without the names of the files. */
function hunkLines(patch: string): string[] {
  const lines = patch.replace(/\n+$/, "").split("\n");
  const first = lines.findIndex((line) => line.startsWith("@@"));
  const hunks = first < 0 ? lines : lines.slice(first);
  const isCrlf = hunks.every((line) => line.endsWith("\r") || /^[@\\]/.test(line));
  return isCrlf ? hunks.map((line) => line.replace(/\r$/, "")) : hunks;
}

/** A diff whole, with line numbers and colours. */
export function renderPatch(patch: string): string[] {
  let [oldLine, newLine] = [0, 0];
  return hunkLines(patch).flatMap((line, index) => {
    const hunk = /^@@ -(\d+)(?:,\d+)? \+(\d+)/.exec(line);
    if (hunk) {
      [oldLine, newLine] = [Number(hunk[1]), Number(hunk[2])];
      return index === 0 ? [] : [dim(`     ${glyphs.more}`)];
    }
    const text = expandTabs(escapeText(line));
    if (line.startsWith("\\")) return [dim(`     ${text}`)];
    const number = line.startsWith("-") ? oldLine : newLine;
    if (!line.startsWith("+")) oldLine += 1;
    if (!line.startsWith("-")) newLine += 1;
    return [`${dim(String(number).padStart(4))} ${paintDiffLine(text)}`];
  });
}

function foldPatch(patch: string, view: View): string[] {
  const lines = renderPatch(patch);
  const max = view.verbose ? verboseLines : folded.patch;
  const shown = lines.slice(0, max);
  const cut = shown.map((line) => (view.verbose ? line : fit(line, view.columns - 6)));
  return [...cut, ...rest(lines, shown)];
}

// ── Questions ───────────────────────────────────────────────────────────────────────────────────

/** What a question is about: the command, the diff or the arguments, whole, and the reason. */
export function renderQuestion({ call, verdict, patch }: Question, view: View): string[] {
  const { command, file_path: path } = call.input;
  const isCommand = call.name === "Bash" && typeof command === "string";
  const what = isCommand
    ? "run this command"
    : patch && typeof path === "string"
      ? `change ${escapeLine(shortPath(path, view.cwd))}`
      : `use ${nameOf(call.name)}`;
  const body = isCommand
    ? commandLines(command, call.input)
    : patch
      ? renderPatch(patch)
      : escapeText(JSON.stringify(call.input, null, 2)).split("\n");
  const reason = wrap(escapeText(verdict.reason), view.columns - 3);
  return [
    `${magenta(glyphs.dot)} ${bold(`claw wants to ${what}`)}`,
    ...body.map((line) => `    ${line}`),
    ...reason.map((line) => dim(`  ${line}`)),
  ];
}

function commandLines(command: string, input: Record<string, unknown>): string[] {
  const notes = [
    ...(input["run_in_background"] ? ["runs in the background"] : []),
    ...(typeof input["timeout"] === "number" ? [`timeout ${input["timeout"] / 1000} s`] : []),
  ];
  return [
    ...expandTabs(escapeText(command)).split("\n"),
    ...(notes.length > 0 ? [dim(`(${notes.join(", ")})`)] : []),
  ];
}
