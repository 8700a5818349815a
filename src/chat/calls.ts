/**
 * How tool calls, their results, diffs and questions look, as lines. Pure.
 *
 * Invariant: what a person is asked about is shown whole and escaped; what is only reported may be
 * folded, and then says by how much.
 */
import { relative } from "node:path";
import type { Event, Question, ToolCall } from "../types.ts";
import { escapeLine, escapeText } from "../escape.ts";
import { paintDiffLine } from "./markdown.ts";
import {
  bold,
  dim,
  fit,
  glyphs,
  green,
  magenta,
  minus,
  plural,
  printable,
  red,
  strikethrough,
  wrap,
} from "./style.ts";

export type ToolResult = Event & { type: "tool_result" };

/** Where paths are shown from, how wide a line may be, and whether nothing is folded. */
export type View = { cwd: string; columns: number; verbose: boolean };

/** Far more than any screen is wide. */
const maxTitleChars = 1000;
const maxLines = { result: 4, error: 10, patch: 40, verbose: 2000 };

// ── Calls ───────────────────────────────────────────────────────────────────────────────────────

/** What a call is about, in one line of any length: a command, a path, a pattern. */
export function titleOf({ name, input, invalid }: ToolCall, cwd: string): string {
  if (name === "TodoWrite" && invalid === undefined) return "";
  const { command, file_path: path, pattern, path: folder, glob } = input;
  const texts = [invalid, command, path, pattern, ...Object.values(input)];
  const text = texts.find((value) => typeof value === "string") ?? JSON.stringify(input);
  const where = text === pattern ? (folder ?? glob) : undefined;
  const title =
    (text === path ? shortPath(text, cwd) + rangeOf(input) : text.trim()) +
    (typeof where === "string" ? ` in ${shortPath(where, cwd)}` : "");
  return title === "{}" ? "" : escapeLine(title.slice(0, maxTitleChars));
}

function rangeOf({ offset, limit }: Record<string, unknown>): string {
  if (offset === undefined && limit === undefined) return "";
  const first = Number(offset ?? 1);
  return `:${first}${limit === undefined ? "" : `-${first + Number(limit) - 1}`}`;
}

export function shortPath(path: string, cwd: string): string {
  const inside = path.startsWith("/") ? relative(cwd, path) : path;
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
  const note = result.denied ? red(` ${glyphs.no} not permitted`) : counts;
  const room = view.columns - Bun.stringWidth(note) - 1;
  const title = call ? titleOf(call, view.cwd) : "";
  const head = `${paint(glyphs.dot)} ${bold(nameOf(result.name))} ${title}`.trimEnd();
  return [fit(head, room) + note, ...underElbow(bodyOf(call, result, view, patchSeen))];
}

/** The first line stands behind the elbow, the others below it. */
export function underElbow(lines: string[]): string[] {
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
  const { name, content, patch, images = [], isError } = result;
  const text = printable(content.replaceAll("\r\n", "\n").trimEnd()) || "(no output)";
  // An error is wrapped, so that none of it is cut.
  if (isError) return fold(wrap(text, view.columns - 6).map(red), maxLines.error, view);
  const todos = name === "TodoWrite" ? call?.input["todos"] : null;
  if (Array.isArray(todos)) return todos.map(renderTodo);
  if (patch) return patchSeen ? [dim("as shown")] : fold(renderPatch(patch), maxLines.patch, view);
  if (images.length > 0) return [dim(plural(images.length, "image"))];
  const read = name === "Read" ? (content.match(/^ *\d+[\t→|]/gm)?.length ?? 0) : 0;
  if (read > 0 && !view.verbose) return [dim(plural(read, "line"))];
  return fold(text.split("\n").map(dim), maxLines.result, view);
}

/** The first `max` lines, cut to the screen's width, and how many more there are. */
function fold(lines: string[], max: number, { verbose, columns }: View): string[] {
  const limit = verbose ? maxLines.verbose : max;
  const count = lines.length === limit + 1 ? limit + 1 : limit; // one more is no longer than its note
  const shown = lines.slice(0, count);
  const more = lines.length - shown.length;
  return [
    ...(verbose ? shown : shown.map((line) => fit(line, Math.max(8, columns - 6)))),
    ...(more > 0 ? [dim(`${glyphs.more} +${plural(more, "line")}`)] : []),
  ];
}

function renderTodo(todo: { content?: string; status?: string } | null): string {
  const text = escapeLine(todo?.content ?? "");
  if (todo?.status === "completed")
    return `${green(`[${glyphs.yes}]`)} ${dim(strikethrough(text))}`;
  return todo?.status === "in_progress" ? bold(`[${glyphs.prompt}] ${text}`) : `[ ] ${text}`;
}

// ── Diffs ───────────────────────────────────────────────────────────────────────────────────────

function countChanges(patch: string): string {
  const count = (sign: string) => hunkLines(patch).filter((line) => line.startsWith(sign)).length;
  return ` ${green(`+${count("+")}`)} ${red(`${minus}${count("-")}`)}`;
}

/** The lines of a unified diff from its first hunk on, without the names of the files. */
function hunkLines(patch: string): string[] {
  const lines = patch.replace(/\n+$/, "").split("\n");
  const hunks = lines.slice(
    Math.max(
      0,
      lines.findIndex((line) => line.startsWith("@@")),
    ),
  );
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
    const text = printable(line);
    if (line.startsWith("\\")) return [dim(`     ${text}`)];
    const number = line.startsWith("-") ? oldLine : newLine;
    if (!line.startsWith("+")) oldLine += 1;
    if (!line.startsWith("-")) newLine += 1;
    return [`${dim(String(number).padStart(4))} ${paintDiffLine(text)}`];
  });
}

// ── Questions ───────────────────────────────────────────────────────────────────────────────────

/** What a question is about: the command, the diff or the arguments, whole, and the reason. */
export function renderQuestion({ call, verdict, patch }: Question, view: View): string[] {
  const { command, file_path: path, ...others } = call.input;
  let what = `use ${nameOf(call.name)}`;
  let body = escapeText(JSON.stringify(call.input, null, 2)).split("\n");
  if (call.name === "Bash" && typeof command === "string") {
    what = "run this command";
    body = [...printable(command).split("\n"), ...commandNotes(others)];
  } else if (patch) {
    if (typeof path === "string") what = `change ${escapeLine(shortPath(path, view.cwd))}`;
    body = renderPatch(patch);
  }
  const reason = wrap(escapeText(verdict.reason), view.columns - 3);
  return [
    `${magenta(glyphs.dot)} ${bold(`claw wants to ${what}`)}`,
    ...body.map((line) => `    ${line}`),
    ...reason.map((line) => dim(`  ${line}`)),
  ];
}

function commandNotes({ run_in_background: background, timeout }: Record<string, unknown>) {
  return [
    ...(background ? [dim("(runs in the background)")] : []),
    ...(typeof timeout === "number" ? [dim(`(timeout ${timeout / 1000} s)`)] : []),
  ];
}
