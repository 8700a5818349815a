/**
 * Glob and Grep: which files there are, and where in them a pattern matches.
 *
 * Invariant: a search changes nothing and never blocks: it looks for an abort every PAUSE_MS, ends
 * after config.limits.searchMs, and opens only regular files. What was left out, cut or unreadable is
 * said in the result. Whether a path is permitted was decided before (agent/permissions.ts).
 */
import { existsSync, lstatSync, realpathSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { config } from "../config.ts";
import { UsageError } from "../errors.ts";
import type { Tool, ToolOutput, Workbench } from "../types.ts";
import { globFilter, namesIn, splitPattern, typeFilter } from "./filter.ts";
import { Matcher, TooSlow } from "./match.ts";
import { type Found, Scanner, type Show } from "./scan.ts";
import { countUnreadable, isSystemError, type Path, type Tally, walk } from "./walk.ts";

const GLOB_FILES = 100;
const GREP_FILES = 250;
const PAUSE_MS = 20;

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

/** Lets the event loop run now and then, so that an abort is seen; throws the signal's reason. */
class Pace {
  readonly #end = performance.now() + config.limits.searchMs;
  readonly #signal: AbortSignal;
  #next = performance.now() + PAUSE_MS;
  isOver = false;

  constructor(signal: AbortSignal) {
    signal.throwIfAborted();
    this.#signal = signal;
  }

  /** Whether it is time to `rest`. */
  isDue(): boolean {
    return performance.now() > this.#next;
  }

  async rest(): Promise<void> {
    await new Promise((wake) => setImmediate(wake));
    this.#signal.throwIfAborted();
    const now = performance.now();
    this.#next = now + PAUSE_MS;
    this.isOver = now > this.#end;
  }
}

/** The path below the folder `root`. */
const insideOf = (root: string, path: Path): string =>
  String(path).slice(root === "/" ? 1 : root.length + 1);

/** The path in one line, whatever is in it. */
const spell = (path: string): string =>
  path.replace(/[\p{Cc}\u2028\u2029]/gu, (char) => JSON.stringify(char).slice(1, -1));

async function newestFirst(paths: readonly Path[], pace: Pace): Promise<string[]> {
  const dated: { path: string; mtimeMs: number }[] = [];
  for (const path of paths) {
    const stats = lstatSync(path, { throwIfNoEntry: false });
    dated.push({ path: String(path), mtimeMs: stats?.mtimeMs ?? 0 });
    if (pace.isDue()) await pace.rest();
  }
  return dated.sort((a, b) => b.mtimeMs - a.mtimeMs).map(({ path }) => path);
}

// ── Results ─────────────────────────────────────────────────────────────────────────────────────

/** What was not searched, or not shown. */
type Losses = Tally & { binary: number; cut: number; slow: number };

const hidden = ({ ignored }: Losses): string =>
  ignored > 0 ? ` Ignore files hide ${ignored} entries; to look into one, name it in path.` : "";

const noLosses = (): Losses => ({ ignored: 0, unreadable: 0, binary: 0, cut: 0, slow: 0 });

const LOSSES: [keyof Losses, string][] = [
  ["unreadable", "could not be read"],
  ["binary", "matched but hold no text; grep -a in Bash shows them"],
  ["cut", "were searched in part: they are too large, or have lines that are"],
  ["slow", "were given up: the pattern takes too long there, simplify it"],
];

function notesOn(losses: Losses, pace: Pace): string[] {
  const notes = LOSSES.filter(([kind]) => losses[kind] > 0).map(
    ([kind, what]) => `Files that ${what}: ${losses[kind]}.`,
  );
  const seconds = config.limits.searchMs / 1000;
  if (pace.isOver)
    notes.push(
      `Stopped after ${seconds} s, before all was searched: narrow with path, glob or type.`,
    );
  return notes;
}

/** Kept free in a result for notes. */
const NOTES_CHARS = 1_000;

/** Lines up to what a result may hold. */
class Page {
  readonly lines: string[] = [];
  readonly #most: number;
  #room = config.limits.resultChars - NOTES_CHARS;
  isFull = false;

  constructor(most: number) {
    this.#most = most;
  }

  add(line: string): void {
    this.isFull ||= this.lines.length >= this.#most || line.length >= this.#room;
    if (this.isFull) return;
    this.lines.push(line);
    this.#room -= line.length + 1;
  }

  with(notes: readonly string[]): string {
    return [
      ...this.lines,
      ...notes.map((note) => (this.lines.length > 0 ? `[${note}]` : note)),
    ].join("\n");
  }
}

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
  const [wanted, losses, pace] = [new Bun.Glob(rest), noLosses(), new Pace(signal)];
  const found: Path[] = [];
  const range = { levels, named: namesIn(rest), workspace: workbench.roots[0] ?? "/" };
  for (const path of walk(root, range, losses)) {
    if (wanted.match(insideOf(root, path))) found.push(path);
    if (pace.isDue()) await pace.rest();
    if (pace.isOver) break;
  }
  const page = new Page(GLOB_FILES);
  for (const path of await newestFirst(found, pace)) page.add(spell(path));
  const notes = notesOn(losses, pace);
  if (page.isFull)
    notes.unshift(
      `The newest ${page.lines.length} of ${found.length} files; narrow pattern or path to see the others.`,
    );
  if (found.length === 0)
    notes.unshift(
      `No file matches ${input.pattern} in ${from}.${hintOn(resolve(root, rest), rest, losses)}`,
    );
  return page.with(notes);
}

function hintOn(path: string, rest: string, losses: Losses): string {
  if (existsSync(path)) return ` It is a folder: its files are ${rest}/**.`;
  if (!rest.includes("/") && !rest.includes("**")) return ` For any depth write **/${rest}.`;
  return hidden(losses);
}

// ── Grep ────────────────────────────────────────────────────────────────────────────────────────

type Job = { losses: Losses; pace: Pace; searched: number; files: number; matches: number };

async function runGrep(
  input: GrepInput,
  workbench: Workbench,
  signal: AbortSignal,
): Promise<string> {
  const { output_mode: mode = "files_with_matches", multiline = false } = input;
  const [root = "/"] = workbench.roots;
  const place = locate(input.path ?? "", workbench);
  const matcher = new Matcher(input.pattern, { ignoreCase: input["-i"] ?? false, multiline });
  const page = new Page(input.head_limit || (mode === "content" ? Infinity : GREP_FILES));
  const show: Show = (path, mark, line, text) => {
    const number = input["-n"] === false ? "" : `${line}${mark}`;
    if (!page.isFull)
      page.add(mark === "--" ? mark : `${nameOf(path, root)}${mark}${number}${text()}`);
  };
  const scanner = new Scanner(matcher, {
    isFirstEnough: mode === "files_with_matches",
    before: input["-B"] ?? input["-C"] ?? 0,
    after: input["-A"] ?? input["-C"] ?? 0,
    show: mode === "content" ? show : null,
  });
  const job: Job = {
    losses: noLosses(),
    pace: new Pace(signal),
    searched: 0,
    files: 0,
    matches: 0,
  };
  const hits: Path[] = [];
  await searchAll(scanner, filesOf(place, input, root, job.losses), job, (path, matches) => {
    if (mode === "files_with_matches") hits.push(path);
    if (mode === "count") page.add(`${nameOf(path, root)}:${matches}`);
  });
  for (const path of await newestFirst(hits, job.pace)) page.add(nameOf(path, root));
  return page.with([...summaryOf(job, page, mode), ...notesOn(job.losses, job.pace)]);
}

/** Relative to the workspace, where it is in there. */
const nameOf = (path: Path, root: string): string =>
  spell(String(path).startsWith(`${root}/`) ? insideOf(root, path) : String(path));

function* filesOf(
  place: Place,
  { glob, type }: GrepInput,
  workspace: string,
  losses: Losses,
): Generator<Path> {
  const isType = type ? typeFilter(type) : null;
  const isWanted = glob ? globFilter(glob) : null;
  if (!place.isFolder) return yield place.path;
  const range = { levels: Infinity, named: namesIn(glob ?? ""), workspace };
  for (const path of walk(place.path, range, losses)) {
    const inside = insideOf(place.path, path);
    if (isType && !isType(inside.slice(inside.lastIndexOf("/") + 1))) continue;
    if (isWanted && !isWanted([inside, nameOf(path, workspace)])) continue;
    yield path;
  }
}

function summaryOf(job: Job, page: Page, mode: string): string[] {
  const { files, matches, searched, losses } = job;
  if (files === 0)
    return [
      `No match in ${searched} files.${searched === 0 ? " None fits path, glob and type." : ""}${hidden(losses)}`,
    ];
  if (!page.isFull) return [];
  const unit = mode === "content" ? "lines" : "files";
  const all =
    mode === "files_with_matches" ? `${files} files` : `${matches} lines of ${files} files`;
  return [
    `The first ${page.lines.length} ${unit}; ${all} match. Raise head_limit, or narrow with path, glob or type.`,
  ];
}

type OnFound = (path: Path, matches: number) => void;

async function searchAll(
  scanner: Scanner,
  paths: Iterable<Path>,
  job: Job,
  onFound: OnFound,
): Promise<void> {
  for (const path of paths) {
    const scan = scanner.scan(path);
    const first = attempt(scan, job.losses);
    const found = first && !first.done ? await finish(scan, job) : first?.value;
    job.searched++;
    if (found?.isCut) job.losses.cut++;
    if (found?.isBinary) job.losses.binary++;
    else if (found && found.matches > 0) {
      job.files++;
      job.matches += found.matches;
      onFound(path, found.matches);
    }
    if (job.pace.isDue()) await job.pace.rest();
    if (job.pace.isOver) return;
  }
}

/** The rest of a file that is read in pieces. */
async function finish(
  scan: Generator<undefined, Found>,
  { losses, pace }: Job,
): Promise<Found | null> {
  try {
    for (;;) {
      if (pace.isDue()) await pace.rest();
      const step = pace.isOver ? null : attempt(scan, losses);
      if (!step || step.done) return step?.value ?? null;
    }
  } finally {
    scan.return({ matches: 0, isBinary: false, isCut: false }); // Closes the file.
  }
}

/** null, and a loss, where the file cannot be searched. */
function attempt(
  scan: Generator<undefined, Found>,
  losses: Losses,
): IteratorResult<undefined, Found> | null {
  try {
    return scan.next();
  } catch (error) {
    if (error instanceof TooSlow) losses.slow++;
    else countUnreadable(error, losses);
    return null;
  }
}
