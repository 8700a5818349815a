/**
 * What a change looks like to a person: a unified diff, in bounded time and size.
 *
 * Only the part between the first and the last difference is compared line by line; where that would
 * take long it is shown as wholly replaced. What is cut says so. A person reads this: nothing is ever
 * patched with it.
 */
import { countBreaks } from "./text.ts";

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
  const isLarge = removed.length + added.length > COMPARE_CHARS;
  const patch = isLarge ? undefined : structuredPatch(...names, removed, added, "", "", options);
  const out = () => structuredPatch(...names, removed.slice(0, PATCH_CHARS), "");
  const into = () => structuredPatch(...names, "", added.slice(0, PATCH_CHARS));
  const before = countBreaks(now, 0, start);
  const hunks = (patch?.hunks ?? [...out().hunks, ...into().hunks]).map((hunk) => ({
    ...hunk,
    oldStart: hunk.oldStart + before,
    newStart: hunk.newStart + before,
    lines: hunk.lines.map((line) => cutAt(line, LINE_CHARS, "… [cut]")),
  }));
  const whole = { ...structuredPatch(...names, "", ""), hunks };
  return cutAt(formatPatch(whole, FILE_HEADERS_ONLY), PATCH_CHARS, "\n\\ Cut here.\n");
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
  let [start, end] = [same + 1, Math.max(0, a.length - tail - 1)];
  for (let i = 0; i <= CONTEXT_LINES; i++) {
    start = start < 2 ? 0 : a.lastIndexOf("\n", start - 2) + 1;
    end = a.indexOf("\n", end) + 1 || a.length;
  }
  return { start, removed: a.slice(start, end), added: b.slice(start, end + b.length - a.length) };
}
