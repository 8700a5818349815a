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
import { mustBeText, showFile } from "./page.ts";
import { patchOf } from "./patch.ts";
import { countBreaks, countLines, decode, encode, excerpt, isCrlf } from "./text.ts";
import { lacking, nearest, placesOf, toCrlf, toLf, type Form } from "./text.ts";

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
  ...changing(planWrite),
};

export const edit: Tool<Editing> = {
  name: "Edit",
  description:
    "Replaces old_string by new_string in a file that was Read. old_string is matched exactly, " +
    "white space included, without line numbers, and must occur once unless replace_all is set.",
  schema: editInput,
  ...changing(planEdit),
};

async function told(
  file: string,
  signal: AbortSignal,
  work: () => Promise<ToolOutput>,
): Promise<ToolOutput> {
  try {
    const output = await work();
    return { ...output, content: output.content.toWellFormed() };
  } catch (error) {
    signal.throwIfAborted();
    const content = complaint(error, file);
    if (content === null) throw error;
    return { content: content.toWellFormed(), isError: true };
  }
}

/** What is to be done; `old` and `before` are null for a new file, `content` is for the model. */
type Change = {
  place: Place;
  old: Buffer | null;
  bytes: Buffer;
  before: string | null;
  after: string;
  content: string;
};

/** A tool that plans a change, and makes it when it runs. The preview is null where it would fail. */
function changing<Input extends { file_path: string }>(
  plan: (input: Input, bench: Workbench) => Promise<Change>,
): Pick<Tool<Input>, "readOnly" | "run" | "preview"> {
  const diffOf = ({ place, before, after }: Change) => patchOf(place.name, before, after);
  return {
    readOnly: false,
    run: (input, bench, signal) =>
      told(input.file_path, signal, async () => {
        const change = await plan(input, bench);
        signal.throwIfAborted();
        await save(change.place, change.bytes, change.old, bench);
        return { content: change.content, patch: (await diffOf(change)) ?? undefined };
      }),
    preview: async (input, bench) => {
      try {
        return await diffOf(await plan(input, bench));
      } catch (error) {
        if (complaint(error, "") === null) throw error;
        return null;
      }
    },
  };
}

// ── Write ───────────────────────────────────────────────────────────────────────────────────────

const UTF8: Form = { encoding: "utf-8", bom: false, crlf: false };

async function planWrite({ file_path, content }: Writing, bench: Workbench): Promise<Change> {
  const place = await locate(file_path, bench);
  const old = place.stats && (await readToChange(place, bench));
  const was = old && decode(old);
  const isBinary = was !== null && was.text.includes("\0");
  const kept = was && !isBinary && lacking(content, was.encoding) === null ? was : UTF8;
  const form = { ...kept, crlf: kept.crlf && (isCrlf(content) || !content.includes("\r")) };
  const text = form.bom ? content.replace(/^\ufeff/, "") : content;
  const after = form.crlf ? toLf(text) : text;
  const count = countLines(after);
  const notes = [`${count} line${count === 1 ? "" : "s"}`];
  if (form.crlf) notes.push("CRLF line ends kept");
  if (form.encoding !== "utf-8") notes.push(`${form.encoding} kept`);
  if (was && form.encoding !== was.encoding) notes.push(`now UTF-8, no longer ${was.encoding}`);
  const done = `${was ? "Overwrote" : "Created"} ${place.name} (${notes.join(", ")}).`;
  const before = isBinary ? "" : (was?.text ?? null);
  return { place, old, bytes: encode(after, form), before, after, content: done };
}

// ── Edit ────────────────────────────────────────────────────────────────────────────────────────

async function planEdit(input: Editing, bench: Workbench): Promise<Change> {
  if (input.old_string === "") return await planFill(input, bench);
  const place = await locate(input.file_path, bench);
  const old = await readToChange(place, bench);
  const { text, ...form } = decode(old);
  mustBeText(place.name, old, text);
  const pairs = pairsOf(text, form, input);
  if (pairs.every(([wanted, wish]) => wanted === wish))
    throw new UsageError("old_string and new_string are the same: there is nothing to change.");
  const places = pairs
    .flatMap(([wanted]) => placesOf(text, wanted, MANY))
    .toSorted((a, b) => a - b);
  const [first] = places;
  if (first === undefined) throw new UsageError(whyNotFound(text, input.old_string, place.name));
  if (places.length > 1 && !input.replace_all)
    throw new UsageError(whyAmbiguous(text, places, place.name));
  let [after, count] = [text, 0];
  for (const [wanted, wish] of pairs) {
    const pieces = after.split(wanted);
    after = pieces.join(wish);
    count += pieces.length - 1;
  }
  const content = describe(after, first, input.new_string, count, place.name);
  return { place, old, bytes: encode(after, form), before: text, after, content };
}

/**
 * What to replace by what. Where line ends are mixed a text of several lines is meant with either:
 * Read shows no difference, so it must be unique in both, unless it has a CR itself.
 */
function pairsOf(
  text: string,
  { crlf }: Form,
  { old_string: wanted, new_string: wish }: Editing,
): [string, string][] {
  const isExact = !wanted.includes("\n") || (wanted.includes("\r") && text.includes(wanted));
  if (isExact && !crlf) return [[wanted, wish]];
  const [flat, flatWish] = [toLf(wanted), toLf(wish)];
  const pairs: [string, string][] = [[flat, flatWish]];
  if (!crlf) pairs.push([toCrlf(flat), toCrlf(flatWish)]);
  return pairs;
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

/** What was done, and how the (first) place now looks. */
function describe(after: string, at: number, wish: string, count: number, name: string): string {
  const row = countBreaks(after, 0, at);
  const rows = Math.max(1, countLines(wish));
  const where = rows > 1 ? `lines ${row + 1}–${row + rows}` : `line ${row + 1}`;
  const region = excerpt(after, row - 3, row + rows + 3);
  return count > 1
    ? `Replaced ${count} occurrences in ${name}; the first is now at ${where}:\n${region}`
    : `Edited ${name}, now at ${where}:\n${region}`;
}

function whyAmbiguous(text: string, places: readonly number[], name: string): string {
  const lines = places.slice(0, 10).map((at) => countBreaks(text, 0, at) + 1);
  const count = places.length < MANY ? `${places.length}` : `${MANY} or more`;
  const list = `${[...new Set(lines)].join(", ")}${places.length > 10 ? ", …" : ""}`;
  return `old_string occurs ${count} times in ${name} (lines ${list}): add surrounding lines to make it unique, or set replace_all.`;
}

function whyNotFound(text: string, wanted: string, name: string): string {
  const lines = wanted.split("\n").filter((line) => line.trim() !== "");
  const why =
    lines.length > 0 && lines.every((line) => /^\s*\d+(\t|→)/.test(line))
      ? "It holds the line numbers that Read prints: leave them and the tab after them out."
      : nearest(text, toLf(wanted));
  return `old_string was not found in ${name}. ${why ?? "Nothing in it is like old_string: Read it again."}`;
}
