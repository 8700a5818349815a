/**
 * Glob and Grep: which files there are, and where in them a pattern matches.
 *
 * Invariant: a search changes nothing, opens only regular files, can be aborted, and ends after
 * config.limits.searchMs. What was left out, cut or could not be read is said in the result. Whether
 * a path is permitted was decided before (agent/permissions.ts).
 */
import { existsSync, realpathSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { config } from "../config.ts";
import { UsageError } from "../errors.ts";
import type { Tool, ToolOutput, Workbench } from "../types.ts";
import { shareOut } from "./crew.ts";
import { globFilter, namesIn, splitPattern, typeFilter } from "./filter.ts";
import { Pace } from "./pace.ts";
import { type Finding, type Losses, nameOf, noLosses, type Share, type Task } from "./task.ts";
import { insideOf, isSystemError, type Path, walk } from "./walk.ts";

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

// ── The search ──────────────────────────────────────────────────────────────────────────────────

type Outcome = { findings: Finding[]; searched: number; losses: Losses; isOver: boolean };

/** `onFinding` sees them in the order of their paths; those it gives back true for are kept. */
async function search(
  task: Task,
  signal: AbortSignal,
  pathsOf: (losses: Losses) => Iterator<Path>,
): Promise<Outcome> {
  const pace = new Pace(signal);
  const losses = noLosses();
  const outcome: Outcome = { findings: [], searched: 0, losses, isOver: false };
  await shareOut(task, pathsOf(losses), pace, (share: Share) => {
    outcome.findings.push(...share.findings);
    outcome.searched += share.searched;
    for (const kind of KINDS) losses[kind] += share.losses[kind];
  });
  outcome.isOver = pace.isOver;
  return outcome;
}

const KINDS: readonly (keyof Losses)[] = ["ignored", "unreadable", "binary", "cut", "slow"];

const newestFirst = (findings: readonly Finding[]): Finding[] =>
  findings.toSorted((a, b) => b.mtimeMs - a.mtimeMs);

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
  const outcome = await search({ kind: "glob", glob: rest, root }, signal, (losses) =>
    walk(root, range, losses),
  );
  const files = newestFirst(outcome.findings);
  const page = new Page(GLOB_FILES);
  for (const { path } of files) page.add(nameOf(path, ""));
  if (files.length === 0)
    page.note(`No file matches ${input.pattern} in ${from}.${hintOn(root, rest, outcome)}`);
  if (page.isFull)
    page.note(
      `The newest ${page.length} of ${files.length} files; narrow pattern or path to see the others.`,
    );
  return page.end(outcome);
}

function hintOn(root: string, rest: string, outcome: Outcome): string {
  if (existsSync(resolve(root, rest))) return ` It is a folder: its files are ${rest}/**.`;
  if (!rest.includes("/") && !rest.includes("**")) return ` For any depth write **/${rest}.`;
  return hidden(outcome);
}

async function runGrep(
  input: GrepInput,
  workbench: Workbench,
  signal: AbortSignal,
): Promise<string> {
  const { output_mode: mode = "files_with_matches" } = input;
  const [workspace = "/"] = workbench.roots;
  const place = locate(input.path ?? "", workbench);
  const task: Task = {
    kind: "grep",
    pattern: input.pattern,
    ignoreCase: input["-i"] ?? false,
    multiline: input.multiline ?? false,
    mode,
    before: input["-B"] ?? input["-C"] ?? 0,
    after: input["-A"] ?? input["-C"] ?? 0,
    lineNumbers: input["-n"] ?? true,
    workspace,
    maxChars: config.limits.resultChars,
  };
  const outcome = await search(task, signal, (losses) => filesOf(place, input, workspace, losses));
  const page = new Page(input.head_limit || (mode === "content" ? Infinity : GREP_FILES));
  const found = mode === "files_with_matches" ? newestFirst(outcome.findings) : outcome.findings;
  for (const { path, matches, lines } of found) {
    if (mode === "content") for (const line of lines) page.add(line);
    else page.add(nameOf(path, workspace) + (mode === "count" ? `:${matches}` : ""));
  }
  for (const note of summaryOf(outcome, page, mode)) page.note(note);
  return page.end(outcome);
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

function summaryOf(
  { findings, searched, ...outcome }: Outcome,
  page: Page,
  mode: string,
): string[] {
  if (searched === 0) return [`No file fits path, glob and type.${hidden(outcome)}`];
  if (findings.length === 0) return [`No match in ${searched} files.${hidden(outcome)}`];
  if (!page.isFull) return [];
  const matches = findings.reduce((sum, finding) => sum + finding.matches, 0);
  const files = `${findings.length} files`;
  const all = mode === "files_with_matches" ? files : `${matches} lines of ${files}`;
  return [
    `Cut after ${page.length} ${mode === "content" ? "lines" : "files"}: ${all} match. Raise head_limit, or narrow with path, glob or type.`,
  ];
}

const hidden = ({ losses }: Pick<Outcome, "losses">): string =>
  losses.ignored > 0
    ? ` Ignore files hide ${losses.ignored} entries; to look into one, name it in path.`
    : "";

const LOSSES: [keyof Losses, string][] = [
  ["unreadable", "could not be read"],
  ["binary", "matched but hold no text; grep -a in Bash shows them"],
  ["cut", "were searched in part: they are too large, or have lines that are"],
  ["slow", "were given up: the pattern takes too long there, simplify it"],
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

  end({ losses, isOver }: Outcome): string {
    for (const [kind, what] of LOSSES) {
      if (losses[kind] > 0) this.note(`Files that ${what}: ${losses[kind]}.`);
    }
    const seconds = config.limits.searchMs / 1000;
    if (isOver)
      this.note(
        `Stopped after ${seconds} s, before all was searched: narrow with path, glob or type.`,
      );
    return [...this.#lines, ...this.#notes].join("\n");
  }
}
