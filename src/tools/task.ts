/**
 * What is done with each file of a search, whichever thread does it: a Glob asks whether its path
 * fits and how old it is, a Grep looks into it.
 *
 * Invariant: a task and its share are plain data that pass between threads. One file that fails is
 * a loss that is counted, never the end of the search.
 */
import { lstatSync } from "node:fs";
import { Matcher, TooSlow } from "./match.ts";
import type { Pace } from "./pace.ts";
import { type Found, Scanner, type Show } from "./scan.ts";
import { countUnreadable, insideOf, type Path, type Tally } from "./walk.ts";

export type GlobTask = { kind: "glob"; glob: string; root: string };
export type GrepTask = {
  kind: "grep";
  pattern: string;
  ignoreCase: boolean;
  multiline: boolean;
  mode: "content" | "files_with_matches" | "count";
  before: number;
  after: number;
  lineNumbers: boolean;
  /** Paths below it are shown from there. */
  workspace: string;
  /** How many characters of lines are worth keeping. */
  maxChars: number;
};
export type Task = GlobTask | GrepTask;

/** What was not searched, or not shown. */
export type Losses = Tally & { binary: number; cut: number; slow: number };

export const noLosses = (): Losses => ({ ignored: 0, unreadable: 0, binary: 0, cut: 0, slow: 0 });

/** A file that fits. `matches` counts lines; `lines` are those to show, as they are to be shown. */
export type Finding = { path: string; mtimeMs: number; matches: number; lines: string[] };

/** What came of some files. */
export type Share = { findings: Finding[]; searched: number; losses: Losses };

export type Work = (paths: readonly Path[], pace: Pace) => Promise<Share>;

/** Throws a UsageError where the task's pattern is none. */
export function workOn(task: Task): Work {
  return task.kind === "glob" ? globWork(task) : grepWork(task);
}

function globWork({ glob, root }: GlobTask): Work {
  const wanted = new Bun.Glob(glob);
  return async (paths) => {
    const findings = paths
      .filter((path) => wanted.match(insideOf(root, path)))
      .map((path) => ({ path: String(path), mtimeMs: timeOf(path), matches: 0, lines: [] }));
    return { findings, searched: paths.length, losses: noLosses() };
  };
}

const timeOf = (path: Path): number => lstatSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;

// ── Grep ────────────────────────────────────────────────────────────────────────────────────────

function grepWork(task: GrepTask): Work {
  const { mode, before, after, lineNumbers, workspace } = task;
  let lines: string[] = [];
  let room = 0;
  const show: Show = (path, mark, line, text) => {
    if (room <= 0) return;
    const number = lineNumbers ? `${line}${mark}` : "";
    const shown = mark === "--" ? mark : `${nameOf(path, workspace)}${mark}${number}${text()}`;
    room -= shown.length + 1;
    lines.push(shown);
  };
  const scanner = new Scanner(new Matcher(task.pattern, task), {
    isFirstEnough: mode === "files_with_matches",
    before,
    after,
    show: mode === "content" ? show : null,
  });
  return async (paths, pace) => {
    const share: Share = { findings: [], searched: 0, losses: noLosses() };
    room = task.maxChars;
    for (const path of paths) {
      lines = [];
      const scan = scanner.scan(path);
      const first = attempt(scan, share.losses);
      const found = first && !first.done ? await finish(scan, pace, share.losses) : first?.value;
      share.searched++;
      if (found?.isCut) share.losses.cut++;
      if (found?.isBinary) share.losses.binary++;
      else if (found && found.matches > 0) {
        const mtimeMs = mode === "files_with_matches" ? timeOf(path) : 0;
        share.findings.push({ path: String(path), mtimeMs, matches: found.matches, lines });
      }
      if (pace.isDue()) await pace.rest();
      if (pace.isOver) break;
    }
    return share;
  };
}

/** Relative to the workspace where it is in there, and in one line whatever is in it. */
export function nameOf(path: Path, workspace: string): string {
  const text = String(path);
  const name = text.startsWith(`${workspace}/`) ? insideOf(workspace, text) : text;
  return name.replace(/[\p{Cc}\u2028\u2029]/gu, (char) => JSON.stringify(char).slice(1, -1));
}

type Scan = Generator<undefined, Found>;

/** The rest of a file that is read in pieces. */
async function finish(scan: Scan, pace: Pace, losses: Losses): Promise<Found | null> {
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
function attempt(scan: Scan, losses: Losses): IteratorResult<undefined, Found> | null {
  try {
    return scan.next();
  } catch (error) {
    if (error instanceof TooSlow) losses.slow++;
    else countUnreadable(error, losses);
    return null;
  }
}
