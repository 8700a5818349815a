/**
 * What a change looks like to a person: a unified diff, in bounded time and size.
 *
 * Only the part between the first and the last difference is compared line by line; where that would
 * take long it is shown as wholly replaced. What is cut says so. A person reads this: nothing is ever
 * patched with it.
 */
import type { StructuredPatchHunk } from "diff";
import { countBreaks, countLines, widen } from "./text.ts";

const CONTEXT_LINES = 3;
const COMPARE_CHARS = 8_000_000;
const COMPARE_MS = 100;
const PATCH_CHARS = 100_000;
const LINE_CHARS = 2_000;

/** The diff from `old` to `now`, or null where they are the same; `old` is null for a new file. */
export async function patchOf(
  name: string,
  old: string | null,
  now: string,
): Promise<string | null> {
  if (old === now) return null;
  const { structuredPatch, formatPatch, FILE_HEADERS_ONLY } = await import("diff");
  const { start, removed, added } = changedPart(old ?? "", now);
  const names = [old === null ? "/dev/null" : `a/${name}`, `b/${name}`] as const;
  const options = { context: CONTEXT_LINES, timeout: COMPARE_MS };
  const compared =
    removed.length + added.length < COMPARE_CHARS
      ? structuredPatch(...names, removed, added, "", "", options)
      : undefined;
  const before = countBreaks(now, 0, start);
  const hunks = (compared?.hunks ?? [replacing(removed, added)]).map((hunk) => ({
    ...hunk,
    oldStart: hunk.oldStart + before,
    newStart: hunk.newStart + before,
    lines: hunk.lines.map((line) => cutAt(line, LINE_CHARS, "… [cut]")),
  }));
  const patch = { ...structuredPatch(...names, "", ""), hunks };
  return cutAt(formatPatch(patch, FILE_HEADERS_ONLY), PATCH_CHARS, "\n\\ Cut here.\n");
}

const cutAt = (text: string, chars: number, mark: string): string =>
  text.length > chars ? text.slice(0, chars).toWellFormed() + mark : text;

/** Whole lines, from the context before the first difference to that after the last. */
function changedPart(a: string, b: string): { start: number; removed: string; added: string } {
  const shorter = Math.min(a.length, b.length);
  let same = 0;
  while (same < shorter && a.charCodeAt(same) === b.charCodeAt(same)) same++;
  const most = shorter - same;
  let tail = 0;
  while (tail < most && a.charCodeAt(a.length - 1 - tail) === b.charCodeAt(b.length - 1 - tail))
    tail++;
  const [start, end] = widen(a, same, a.length - tail, CONTEXT_LINES);
  const parts = [a.slice(start, end), b.slice(start, end + b.length - a.length)];
  // Where all lines end in CRLF and go on to, the CRs tell a person nothing.
  const isCrlf = parts.every((part) => !/(?<!\r)\n/.test(part));
  const [removed = "", added = ""] = isCrlf
    ? parts.map((part) => part.replaceAll("\r\n", "\n"))
    : parts;
  return { start, removed, added };
}

/** Every old line out and every new line in; of each as much as may be shown in the end. */
function replacing(removed: string, added: string): StructuredPatchHunk {
  const signed = (sign: string, text: string) => {
    const lines = text.slice(0, PATCH_CHARS).replace(/\n$/, "").split("\n");
    return text === "" ? [] : lines.map((line) => sign + line);
  };
  const [oldLines, newLines] = [countLines(removed), countLines(added)];
  const lines = [...signed("-", removed), ...signed("+", added)];
  return { oldStart: 1, oldLines, newStart: 1, newLines, lines };
}
