/**
 * Read, Write and Edit.
 *
 * Invariant: a change replaces exactly what the model saw, and only that: encoding, byte order mark
 * and line ends stay, and so does every byte outside an edited span. A call that cannot be done says
 * the cure. Whether a path is permitted was decided before (agent/permissions.ts).
 */
import { z } from "zod";
import { config } from "../config.ts";
import { UsageError } from "../errors.ts";
import type { Tool, ToolOutput, Workbench } from "../types.ts";
import { complaint, locate, readToChange, save, type Place } from "./disk.ts";
import { mustBeText, numbered, showFile } from "./page.ts";
import { patchOf } from "./patch.ts";
import { countBreaks, countLines, decode, encode, misspelling, nearest } from "./text.ts";
import { unencodable, widen, type Form } from "./text.ts";

const readInput = z.object({
  file_path: z.string(),
  offset: z.int().optional().describe("first line, from 1"),
  limit: z.int().optional().describe("number of lines"),
});
const writeInput = z.object({ file_path: z.string(), content: z.string() });
const editInput = z.object({
  file_path: z.string(),
  old_string: z.string(),
  new_string: z.string(),
  replace_all: z.boolean().optional(),
});
type Writing = z.infer<typeof writeInput>;
type Editing = z.infer<typeof editInput>;

export const read: Tool<z.infer<typeof readInput>> = {
  name: "Read",
  description:
    `Reads a text file with line numbers, ${config.limits.readLines} lines at a time, or an ` +
    "image. Paths are absolute or start in the workspace.",
  schema: readInput,
  readOnly: true,
  run: (input, bench, signal) =>
    told(input.file_path, signal, () => showFile(input.file_path, input, bench, signal)),
};

export const write: Tool<Writing> = {
  name: "Write",
  description:
    "Writes a whole file and makes its folders. An existing file must have been Read; to change " +
    "a part of it use Edit.",
  schema: writeInput,
  readOnly: false,
  run: (input, bench, signal) =>
    told(input.file_path, signal, async () => make(await planWrite(input, bench), bench, signal)),
  preview: (input, bench) => foresee(() => planWrite(input, bench)),
};

export const edit: Tool<Editing> = {
  name: "Edit",
  description:
    "Replaces old_string by new_string in a file that was Read. old_string is matched exactly, " +
    "white space included, without line numbers, and must occur once unless replace_all is set.",
  schema: editInput,
  readOnly: false,
  run: (input, bench, signal) =>
    told(input.file_path, signal, async () => make(await planEdit(input, bench), bench, signal)),
  preview: (input, bench) => foresee(() => planEdit(input, bench)),
};

async function told(
  file: string,
  signal: AbortSignal,
  work: () => Promise<ToolOutput>,
): Promise<ToolOutput> {
  try {
    return await work();
  } catch (error) {
    signal.throwIfAborted();
    const content = complaint(error, file);
    if (content === null) throw error;
    return { content: content.toWellFormed(), isError: true };
  }
}

/** null where the call would fail; the call itself then says why. */
async function foresee(plan: () => Promise<Change>): Promise<string | null> {
  try {
    return await diffOf(await plan());
  } catch (error) {
    if (complaint(error, "") === null) throw error;
    return null;
  }
}

async function make(change: Change, bench: Workbench, signal: AbortSignal): Promise<ToolOutput> {
  signal.throwIfAborted();
  await save(change.place, encode(change.after, change.form), change.old, bench);
  return { content: change.content.toWellFormed(), patch: (await diffOf(change)) ?? undefined };
}

const diffOf = ({ place, before, after }: Change) => patchOf(place.name, before, after);

// ── Write ───────────────────────────────────────────────────────────────────────────────────────

/** What is to be done; `old` and `before` are null for a new file, `content` is for the model. */
type Change = {
  place: Place;
  old: Buffer | null;
  before: string | null;
  after: string;
  form: Form;
  content: string;
};

const UTF8: Form = { encoding: "utf-8", bom: false };

async function planWrite({ file_path, content: text }: Writing, bench: Workbench): Promise<Change> {
  const place = await locate(file_path, bench);
  const old = place.stats && (await readToChange(place, bench));
  const was = old && decode(old);
  const isBinary = was !== null && was.text.includes("\0");
  const isCrlf = was !== null && isWhollyCrlf(was.text) && !text.includes("\r");
  const after = isCrlf ? text.replaceAll("\n", "\r\n") : text;
  const form = was && !isBinary && unencodable(after, was.encoding) === null ? was : UTF8;
  mustFit(after, form, place.name);
  const count = countLines(after);
  const notes = [`${count} line${count === 1 ? "" : "s"}`];
  if (isCrlf) notes.push("CRLF line ends kept");
  if (was && form.encoding !== "utf-8") notes.push(`${was.encoding} kept`);
  if (was && form.encoding !== was.encoding) notes.push(`now UTF-8, no longer ${was.encoding}`);
  const content = `${was ? "Overwrote" : "Created"} ${place.name} (${notes.join(", ")}).`;
  return { place, old, before: isBinary ? "" : (was?.text ?? null), after, form, content };
}

const isWhollyCrlf = (text: string) => text.includes("\n") && !/(?<!\r)\n/.test(text);

function mustFit(text: string, { encoding }: Form, name: string): void {
  const bad = unencodable(text, encoding);
  if (bad === null) return;
  const code = `U+${bad.codePointAt(0)?.toString(16).toUpperCase().padStart(4, "0")}`;
  throw new UsageError(
    encoding === "windows-1252"
      ? `${name} is not UTF-8 and taken for Windows-1252, which has no ${bad} (${code}): convert it with \`iconv\` in Bash first, or do without that character.`
      : `The text has half a character (${code}, one of a surrogate pair): write it whole.`,
  );
}

// ── Edit ────────────────────────────────────────────────────────────────────────────────────────

/** Where in a text something stands: from, to (not included). */
type Span = [number, number];

async function planEdit(input: Editing, bench: Workbench): Promise<Change> {
  const { file_path, old_string: wanted, new_string: wish, replace_all: all = false } = input;
  if (wanted === wish)
    throw new UsageError("old_string and new_string are the same: there is nothing to change.");
  if (wanted === "") return await planFill(input, bench);
  const place = await locate(file_path, bench);
  const old = await readToChange(place, bench);
  const { text, ...form } = decode(old);
  mustBeText(place.name, old, text);
  mustFit(wish, form, place.name);
  const spans = spansOf(text, wanted, all);
  const [first] = spans;
  if (!first) throw new UsageError(whyNotFound(text, wanted, wish, place.name));
  if (spans.length > 1 && !all) throw new UsageError(whyAmbiguous(text, spans, place.name));
  const pieces = spans.map(([from], i) => text.slice(spans[i - 1]?.[1] ?? 0, from));
  const fitted = spans.map((span) => withEndsOf(text, span, wish));
  const after =
    pieces.map((piece, i) => piece + fitted[i]).join("") + text.slice(spans.at(-1)?.[1]);
  if (after === text)
    throw new UsageError(`Nothing would change: the line ends of ${place.name} stay as they are.`);
  const content = describe(after, first[0], fitted, place.name);
  return { place, old, before: text, after, form, content };
}

/** Without an old_string: only what is not there yet, or empty, can be meant. */
async function planFill({ file_path, new_string }: Editing, bench: Workbench): Promise<Change> {
  const change = await planWrite({ file_path, content: new_string }, bench);
  if (!change.before) return change;
  throw new UsageError(
    `old_string is empty, but ${change.place.name} is not: give the text to replace.`,
  );
}

/** More matches than anybody names; `replace_all` takes all there are. */
const MANY = 1000;

/**
 * Where `wanted` stands. LF and CRLF count as equal, since Read shows no difference, unless `wanted`
 * has a CR itself. To find what is ambiguous, matches may overlap; those to replace may not.
 */
function spansOf(text: string, wanted: string, all: boolean): Span[] {
  // Half a surrogate pair would match inside of characters.
  if (!wanted.isWellFormed()) return [];
  const find = (where: string, what: string) => {
    const found: number[] = [];
    let at = where.indexOf(what);
    while (at >= 0 && (all || found.length < MANY)) {
      found.push(at);
      at = where.indexOf(what, at + (all ? what.length : 1));
    }
    return found;
  };
  const splits = (at: number) => text[at - 1] === "\r" && text[at] === "\n";
  const exact = (wanted.includes("\r") ? find(text, wanted) : []).filter(
    (from) => !splits(from) && !splits(from + wanted.length),
  );
  if (exact.length === 1 || (all && exact.length > 0))
    return exact.map((at) => [at, at + wanted.length]);
  const flat = wanted.replaceAll("\r\n", "\n");
  const starts = find(text.replaceAll("\r\n", "\n"), flat);
  const [from, to] = [unflattener(text), unflattener(text)];
  return starts.map((at) => [from(at), to(at + flat.length)]);
}

/** Turns offsets, ascending, in `text` without the CRs of its line ends into offsets in `text`. */
function unflattener(text: string): (target: number) => number {
  let [raw, flat, cr] = [0, 0, text.indexOf("\r\n")];
  return (target) => {
    while (cr >= 0 && cr - raw < target - flat) {
      [raw, flat] = [cr + 2, flat + cr - raw + 1];
      cr = text.indexOf("\r\n", raw);
    }
    [raw, flat] = [raw + target - flat, target];
    return raw;
  };
}

/** `wish` with the line ends that the span has, or else its surroundings. */
function withEndsOf(text: string, [from, to]: Span, wish: string): string {
  if (!wish.includes("\n") || !text.includes("\n")) return wish;
  const inside = text.slice(from, to).indexOf("\n");
  const before = text.lastIndexOf("\n", Math.max(0, from - 1));
  const at = inside >= 0 ? from + inside : before >= 0 ? before : text.indexOf("\n", to);
  const flat = wish.replaceAll("\r\n", "\n");
  return text[at - 1] === "\r" ? flat.replaceAll("\n", "\r\n") : flat;
}

/** What was done, and how the (first) place now looks. */
function describe(after: string, start: number, fitted: readonly string[], name: string): string {
  const [wish = ""] = fitted;
  const line = countBreaks(after, 0, start) + 1;
  const last = Math.max(line, line + countLines(wish) - 1);
  const [from, to] = widen(after, start, start + wish.length, 3);
  const shown = linesOf(after.slice(from, Math.min(to, from + 20_000)));
  const region = numbered(shown, countBreaks(after, 0, from) + 1);
  const where = last > line ? `lines ${line}–${last}` : `line ${line}`;
  return fitted.length > 1
    ? `Replaced ${fitted.length} occurrences in ${name}; the first is now at ${where}:\n${region}`
    : `Edited ${name}, now at ${where}:\n${region}`;
}

/** At most 30 lines, cut to what an eye takes in. */
const linesOf = (text: string): string[] =>
  text
    .replace(/\r?\n$/, "")
    .split("\n", 30)
    .map((line) => (line.length > 300 ? `${line.slice(0, 300)}…` : line));

function whyAmbiguous(text: string, spans: readonly Span[], name: string): string {
  let [line, counted] = [1, 0];
  const lines = spans.slice(0, 10).map(([from]) => {
    line += countBreaks(text, counted, from);
    counted = from;
    return line;
  });
  const count = spans.length < MANY ? `${spans.length}` : `${MANY} or more`;
  const list = `${[...new Set(lines)].join(", ")}${spans.length > 10 ? ", …" : ""}`;
  return `old_string occurs ${count} times in ${name} (lines ${list}): add surrounding lines to make it unique, or set replace_all.`;
}

function whyNotFound(raw: string, wanted: string, wish: string, name: string): string {
  const [text = "", old = "", now = ""] = [raw, wanted, wish].map((one) =>
    one.replaceAll("\r\n", "\n"),
  );
  const done = now.trim().length > 8 ? text.indexOf(now) : -1;
  const made =
    done < 0 ? "" : ` new_string stands at line ${countBreaks(text, 0, done) + 1} already.`;
  const start = `old_string was not found in ${name}.${made}`;
  const slip = misspelling(text, old);
  if (slip) return `${start} ${slip}`;
  const near = nearest(text, old);
  if (!near) return `${start} Nothing in it is like old_string: Read it again.`;
  const { first, lines, differences } = near;
  const region = numbered(linesOf(`${lines.join("\n")}\n`), first);
  return `${start} The nearest text:\n${region}\nWhat differs: ${differences.join("; ")}.`;
}
