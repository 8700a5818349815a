/**
 * What a change looks like to a person: a unified diff, in bounded time and size.
 *
 * Only the part between the first and the last difference is compared line by line; where that would
 * take long it is shown as wholly replaced. What is left out is said.
 */
import type { StructuredPatchHunk } from "diff";
import { countBreaks, countLines, widen } from "./text.ts";

const CONTEXT_LINES = 3;
const COMPARE_CHARS = 4_000_000;
const COMPARE_MS = 100;
const PATCH_CHARS = 100_000;

/** The diff from `old` to `now`, or null where they are the same; `old` is null for a new file. */
export async function patchOf(
  name: string,
  old: string | null,
  now: string,
): Promise<string | null> {
  const { structuredPatch, formatPatch, FILE_HEADERS_ONLY } = await import("diff");
  const [a, b] = withoutCrs(old ?? "", now);
  if (a === b) return null;
  const { start, oldEnd, newEnd } = changedPart(a, b);
  const [removed, added] = [a.slice(start, oldEnd), b.slice(start, newEnd)];
  const names = [old === null ? "/dev/null" : `a/${name}`, `b/${name}`] as const;
  const timeout = removed.length + added.length > COMPARE_CHARS ? -1 : COMPARE_MS;
  const options = { context: CONTEXT_LINES, timeout };
  const patch =
    timeout > 0 ? structuredPatch(...names, removed, added, undefined, undefined, options) : null;
  const { hunks } = patch ?? { hunks: [replacing(removed, added)] };
  const before = countBreaks(a, 0, start);
  const moved = hunks.map((hunk) => ({
    ...hunk,
    oldStart: hunk.oldStart + before,
    newStart: hunk.newStart + before,
  }));
  const [oldFileName, newFileName] = names;
  const whole = { oldFileName, newFileName, oldHeader: "", newHeader: "", hunks: moved };
  return clip(formatPatch(whole, FILE_HEADERS_ONLY));
}

/** In a file that is and stays CRLF, a CR at the end of every line tells a person nothing. */
function withoutCrs(old: string, now: string): [string, string] {
  const isCrlf = (text: string) => !/(?<!\r)\n/.test(text);
  if (!isCrlf(old) || !isCrlf(now)) return [old, now];
  return [old.replaceAll("\r\n", "\n"), now.replaceAll("\r\n", "\n")];
}

/** Whole lines, from the context before the first difference to that after the last. */
function changedPart(a: string, b: string): { start: number; oldEnd: number; newEnd: number } {
  const shorter = Math.min(a.length, b.length);
  let same = 0;
  while (same < shorter && a.charCodeAt(same) === b.charCodeAt(same)) same++;
  const most = shorter - same;
  let tail = 0;
  while (tail < most && a.charCodeAt(a.length - 1 - tail) === b.charCodeAt(b.length - 1 - tail))
    tail++;
  const [start, end] = widen(a, same, a.length - tail, CONTEXT_LINES);
  return { start, oldEnd: end, newEnd: end + b.length - a.length };
}

/** Every old line out and every new line in; of each as much as may be shown in the end. */
function replacing(removed: string, added: string): StructuredPatchHunk {
  const signed = (sign: string, text: string) =>
    text === ""
      ? []
      : [sign + text.slice(0, PATCH_CHARS).replace(/\n$/, "").replaceAll("\n", `\n${sign}`)];
  const [oldLines, newLines] = [countLines(removed), countLines(added)];
  const lines = [...signed("-", removed), ...signed("+", added)];
  return { oldStart: 1, oldLines, newStart: 1, newLines, lines };
}

function clip(patch: string): string {
  if (patch.length <= PATCH_CHARS) return patch;
  const end = patch.lastIndexOf("\n", PATCH_CHARS) + 1 || PATCH_CHARS;
  const rest = countBreaks(patch, end);
  return `${patch.slice(0, end).toWellFormed()}\\ Cut here: ${rest} more lines changed.\n`;
}
