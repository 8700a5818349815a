/**
 * Glob and Grep: which files there are, and where in them a pattern matches.
 *
 * Invariant: a search changes nothing, opens only regular files, can be aborted, and ends after
 * config.limits.searchMs. What was left out, cut or could not be read is said in the result. Whether
 * a path is permitted was decided before (agent/permissions.ts).
 */
import { existsSync, lstatSync, realpathSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { config } from "../config.ts";
import { UsageError } from "../errors.ts";
import type { Tool, ToolOutput, Workbench } from "../types.ts";
import { globFilter, namesIn, splitPattern, typeFilter } from "./filter.ts";
import { parseQuery, type Query } from "./query.ts";
import { type Found, scanFile, type Wanted } from "./scan.ts";
import { countUnreadable, insideOf, isSystemError, type Path, type Tally, walk } from "./walk.ts";

const GLOB_FILES = 100;
const GREP_FILES = 250;

const globInput = z.object({
  pattern: z.string(),
  path: z.string().optional().describe("Folder; the workspace by default"),
});
const grepInput = z.object({
  pattern: z.string(),
  path: z.string().optional().describe("File or folder; the workspace by default"),
  glob: z.string().optional().describe('Only files like this: "*.{ts,tsx}", "!*.test.ts"'),
  type: z.string().optional().describe("Only files of a language: js, py, rust, go, …"),
  output_mode: z.enum(["content", "files_with_matches", "count"]).optional(),
  "-i": z.boolean().optional().describe("Ignore case"),
  "-n": z.boolean().optional().describe("Line numbers, true by default"),
  "-A": z.number().optional().describe("Lines after"),
  "-B": z.number().optional().describe("Lines before"),
  "-C": z.number().optional().describe("Lines around"),
  multiline: z.boolean().optional().describe("Matches may span lines, . matches line ends"),
  head_limit: z.number().optional().describe("Most lines or files shown"),
});
type GlobInput = z.infer<typeof globInput>;
type GrepInput = z.infer<typeof grepInput>;

export const glob: Tool<GlobInput> = {
  name: "Glob",
  description: `Finds files by name, e.g. "**/*.ts" or "src/{a,b}/*.json"; the newest ${GLOB_FILES} come first. Files that .gitignore hides are found only by their full name.`,
  schema: globInput,
  readOnly: true,
  run: (input, workbench, signal) => answer(() => runGlob(input, workbench, signal)),
};

export const grep: Tool<GrepInput> = {
  name: "Grep",
  description:
    "Searches file contents for a regular expression (ripgrep's syntax), without what .gitignore hides. Lists files, newest first, unless output_mode is content or count. Use it rather than grep or rg in Bash.",
  schema: grepInput,
  readOnly: true,
  run: (input, workbench, signal) => answer(() => runGrep(input, workbench, signal)),
};

async function answer(work: () => Promise<string>): Promise<ToolOutput> {
  try {
    return { content: await work() };
  } catch (error) {
    if (error instanceof UsageError) return { content: error.message, isError: true };
    throw error;
  }
}

// ── Places and time ─────────────────────────────────────────────────────────────────────────────

/** `path` is absolute and real. */
type Place = { path: string; isFolder: boolean };

/** Throws a UsageError where nothing is that could be searched. */
function locate(path: string, { roots }: Workbench): Place {
  const wanted = resolve(roots[0] ?? "/", path);
  try {
    const stats = statSync(wanted);
    if (stats.isFile() || stats.isDirectory()) {
      return { path: realpathSync(wanted), isFolder: stats.isDirectory() };
    }
  } catch (error) {
    if (!isSystemError(error)) throw error;
    throw new UsageError(complain(wanted, error.code));
  }
  throw new UsageError(`${wanted} is neither a file nor a folder: only these are searched.`);
}

function complain(path: string, code: string): string {
  if (code !== "ENOENT" && code !== "ENOTDIR") return `${path} cannot be searched (${code}).`;
  let known = dirname(path);
  while (!existsSync(known)) known = dirname(known);
  return `${path} does not exist, ${known} does: look with Glob what is in it.`;
}

// ── Pace ────────────────────────────────────────────────────────────────────────────────────────

const pauseMs = 20;

/** Lets the event loop run now and then, so that an abort is seen; says when the time is over. */
function newPace(signal: AbortSignal): () => Promise<boolean> {
  const end = performance.now() + config.limits.searchMs;
  let next = performance.now() + pauseMs;
  return async () => {
    const lateMs = performance.now() - next;
    if (lateMs < 0) return false;
    // After a long step timers are due as well, which run behind this otherwise.
    await (lateMs > 100 ? Bun.sleep(1) : new Promise((wake) => setImmediate(wake)));
    signal.throwIfAborted();
    next = performance.now() + pauseMs;
    return next > end;
  };
}

/** What was left out of a search, in numbers of files. */
type Losses = Tally & {
  binary: number;
  cut: number;
  slow: number;
  denied: number;
  isOver: boolean;
};
const noLosses = (): Losses => ({
  ignored: 0,
  unreadable: 0,
  binary: 0,
  cut: 0,
  slow: 0,
  denied: 0,
  isOver: false,
});

type Aged = { path: string; mtimeMs: number };

function age(path: Path): Aged {
  try {
    return { path: String(path), mtimeMs: lstatSync(path).mtimeMs };
  } catch (error) {
    if (!isSystemError(error)) throw error;
    return { path: String(path), mtimeMs: 0 }; // gone, or in a folder that tells names only
  }
}
const newestFirst = <One extends Aged>(files: readonly One[]): One[] =>
  files.toSorted((a, b) => b.mtimeMs - a.mtimeMs);

// ── Glob ────────────────────────────────────────────────────────────────────────────────────────

async function runGlob(
  input: GlobInput,
  workbench: Workbench,
  signal: AbortSignal,
): Promise<string> {
  const { base, rest, levels } = splitPattern(input.pattern);
  const from = base.startsWith("/") ? "/" : locate(input.path ?? "", workbench).path;
  const { path: root, isFolder } = locate(resolve(from, base), workbench);
  if (!isFolder) throw new UsageError(`${root} is a file: Glob looks in folders.`);
  const range = { levels, named: namesIn(rest), workspace: workbench.roots[0] ?? "/" };
  const losses = noLosses();
  const isTimeOver = newPace(signal);
  const wanted = new Bun.Glob(rest);
  const files: Aged[] = [];
  for (const path of walk(root, range, losses)) {
    if (wanted.match(insideOf(root, path))) files.push(age(path));
    if ((losses.isOver = await isTimeOver())) break;
  }
  const page = new Page(GLOB_FILES);
  for (const { path } of newestFirst(files)) page.add(spell(path));
  if (files.length === 0)
    page.note(`No file matches ${input.pattern} in ${from}.${hintOn(root, rest, losses)}`);
  if (page.isFull)
    page.note(
      `The newest ${page.length} of ${files.length} files; narrow pattern or path to see the others.`,
    );
  return page.end(losses);
}

function hintOn(root: string, rest: string, losses: Losses): string {
  if (existsSync(resolve(root, rest))) return ` It is a folder: its files are ${rest}/**.`;
  if (!rest.includes("/") && !rest.includes("**")) return ` For any depth write **/${rest}.`;
  return hidden(losses);
}

// ── Grep ────────────────────────────────────────────────────────────────────────────────────────

type Match = Aged & { count: number };

async function runGrep(
  input: GrepInput,
  workbench: Workbench,
  signal: AbortSignal,
): Promise<string> {
  const { output_mode: mode = "files_with_matches", "-C": around = 0 } = input;
  const query = await parseQuery(input.pattern, input["-i"] ?? false, input.multiline ?? false);
  const { head_limit: asked = 0 } = input;
  const page = new Page(asked > 0 ? asked : mode === "content" ? Infinity : GREP_FILES);
  const wanted: Wanted = {
    first: mode === "files_with_matches",
    before: input["-B"] ?? around,
    after: input["-A"] ?? around,
    maxLines: mode === "content" ? config.limits.resultChars : 0,
  };
  const losses = noLosses();
  const [workspace = "/"] = workbench.roots;
  const place = locate(input.path ?? "", workbench);
  const isTimeOver = newPace(signal);
  const matches: Match[] = [];
  let searched = 0;
  for (const path of filesOf(place, input, workspace, losses)) {
    searched += 1;
    const found = await lookInto(path, query, wanted, losses, isTimeOver);
    if (found?.isBinary) losses.binary += Number(found.count > 0 || !place.isFolder);
    else if (found && found.count > 0 && workbench.hides?.(String(path))) losses.denied += 1;
    else if (found && found.count > 0) {
      const match = { ...age(path), path: nameOf(path, workspace), count: found.count };
      matches.push(match);
      if (mode === "count") page.add(`${match.path}:${match.count}`);
      if (mode === "content") addLines(page, match.path, found, wanted, input["-n"] ?? true);
      if (page.isFull) wanted.maxLines = 0;
    }
    if (losses.isOver || (losses.isOver = await isTimeOver())) break;
  }
  if (wanted.first) for (const { path } of newestFirst(matches)) page.add(path);
  const note = summaryOf(matches, searched, losses, page, input);
  if (note) page.note(note);
  return page.end(losses);
}

/** null where the file cannot be read, or the time is over. */
async function lookInto(
  path: Path,
  query: Query,
  wanted: Wanted,
  losses: Losses,
  isTimeOver: () => Promise<boolean>,
): Promise<Found | null> {
  const scan = scanFile(path, query, wanted);
  try {
    for (let step = scan.next(); ; step = scan.next()) {
      if (step.done) {
        const { isCut, isSlow } = step.value;
        losses.cut += Number(isCut);
        losses.slow += Number(isSlow);
        return step.value;
      }
      if ((losses.isOver = await isTimeOver())) return null;
    }
  } catch (error) {
    countUnreadable(error, losses);
    return null;
  } finally {
    scan.return({ lines: [], count: 0, isBinary: false, isSlow: false, isCut: false });
  }
}

function* filesOf(
  place: Place,
  { glob: globs, type }: GrepInput,
  workspace: string,
  losses: Losses,
): Generator<Path> {
  const isType = type ? typeFilter(type) : null;
  const isWanted = globs ? globFilter(globs) : null;
  if (!place.isFolder) return yield place.path;
  const range = { levels: Infinity, named: namesIn(globs ?? ""), workspace };
  for (const path of walk(place.path, range, losses)) {
    const inside = insideOf(place.path, path);
    if (isType && !isType(inside.slice(inside.lastIndexOf("/") + 1))) continue;
    if (isWanted && !isWanted([inside, nameOf(path, workspace)])) continue;
    yield path;
  }
}

// ── Results ─────────────────────────────────────────────────────────────────────────────────────

/** Relative to the workspace where it is in there. */
function nameOf(path: Path, workspace: string): string {
  const text = String(path);
  return spell(text.startsWith(`${workspace}/`) ? insideOf(workspace, text) : text);
}

/** In one line, whatever is in the path. */
const spell = (path: string): string =>
  path.replace(/[\p{Cc}\u2028\u2029]/gu, (char) => JSON.stringify(char).slice(1, -1));

const LINE_CHARS = 500;

/** As ripgrep prints them: `path:12:text`, with `-` for context and `--` between what is apart. */
function addLines(
  page: Page,
  name: string,
  { lines }: Found,
  { before, after }: Wanted,
  isNumbered: boolean,
): void {
  let last = page.length > 0 ? -1 : Infinity;
  for (const { number, text, isHit } of lines) {
    if (before + after > 0 && (last < 0 || number > last + 1)) page.add("--");
    last = number;
    const mark = isHit ? ":" : "-";
    const shown =
      text.length > LINE_CHARS
        ? `${text.slice(0, LINE_CHARS).toWellFormed()} [${text.length} characters]`
        : text;
    page.add(`${name}${mark}${isNumbered ? `${number}${mark}` : ""}${shown}`);
  }
}

function summaryOf(
  matches: readonly Match[],
  searched: number,
  losses: Losses,
  page: Page,
  { pattern, output_mode: mode = "files_with_matches" }: GrepInput,
): string | null {
  if (searched === 0) return `No file fits path, glob and type.${hidden(losses)}`;
  const hint = pattern.includes("\\|") ? " \\| is the character |; a plain | is for either." : "";
  if (matches.length === 0) return `No match in ${searched} files.${hint}${hidden(losses)}`;
  if (!page.isFull) return null;
  const files = `${matches.length} files`;
  const lines = matches.reduce((sum, match) => sum + match.count, 0);
  const all = mode === "files_with_matches" ? files : `${lines} lines of ${files}`;
  return `Cut after ${page.length} ${mode === "content" ? "lines" : "files"}: ${all} match. Raise head_limit, or narrow with path, glob or type.`;
}

const hidden = ({ ignored }: Losses): string =>
  ignored > 0 ? ` Ignore files hide ${ignored} entries; to look into one, name it in path.` : "";

const LOSSES: [keyof Losses, string][] = [
  ["unreadable", "could not be read"],
  ["binary", "hold no text and are searched at their beginning only; grep -a in Bash shows more"],
  [
    "cut",
    "could not be seen as a whole (over 8 MB, or a NUL in the text): matches and context end there",
  ],
  ["denied", "match but may not be shown: a permission rule denies reading them"],
  ["slow", "took the pattern too long and may hold more: simplify it"],
];

/** Kept free in a result for notes. */
const NOTES_CHARS = 1_000;

/** Lines up to what a result may hold, and then notes. */
class Page {
  /** Something was left out. */
  isFull = false;
  readonly #lines: string[] = [];
  readonly #notes: string[] = [];
  readonly #maxLines: number;
  #room = config.limits.resultChars - NOTES_CHARS;

  constructor(maxLines: number) {
    this.#maxLines = maxLines;
  }

  get length(): number {
    return this.#lines.length;
  }

  add(line: string): void {
    this.isFull ||= this.length >= this.#maxLines || line.length >= this.#room;
    if (this.isFull) return;
    this.#lines.push(line);
    this.#room -= line.length + 1;
  }

  note(text: string): void {
    this.#notes.push(this.length > 0 ? `[${text}]` : text);
  }

  end(losses: Losses): string {
    for (const [kind, what] of LOSSES)
      if (Number(losses[kind]) > 0) this.note(`Files that ${what}: ${losses[kind]}.`);
    if (losses.isOver)
      this.note(
        `Stopped after ${config.limits.searchMs / 1000} s, before all was searched: narrow with path, glob or type.`,
      );
    return [...this.#lines, ...this.#notes].join("\n");
  }
}
