/**
 * The slash commands: one table, and what each does with the desk that the REPL hands it. A command
 * prints blocks of lines; it never draws, and it never throws for what a person can type.
 */
import { writeFile } from "node:fs/promises";
import { resolve } from "node:path";
import type { Session, SessionOptions } from "../agent/session.ts";
import { messageOf, UsageError } from "../errors.ts";
import type { SessionInfo } from "../types.ts";
import type { Suggestions } from "./editor.ts";
import { escapeLine } from "./escape.ts";
import { paintDiffLine } from "./markdown.ts";
import { personalCall } from "./mentions.ts";
import type { Option } from "./picker.ts";
import { conversation, costLines, measure, statusLines, windowLines } from "./report.ts";
import { bold, cyan, dim, glyphs, paintMode, plural, shortNumber, widthOf, wrap } from "./style.ts";

/** What commands work with. */
export type Desk = {
  session: Session;
  options: SessionOptions;
  columns: number;
  /** Prints a block; its lines have to be escaped. */
  say: (lines: string[]) => void;
  choose: <T>(title: string, options: Option<T>[]) => Promise<T | null>;
  /** Puts a prompt to the agent, as if it had been typed. */
  ask: (prompt: string) => void;
  /** Goes on in another session, or in a new one. */
  reopen: (changes: Pick<SessionOptions, "resume" | "fork">) => Promise<void>;
  /** Does something that takes time, under a label, until it is interrupted. */
  work: <T>(label: string, job: (signal: AbortSignal) => Promise<T>) => Promise<T | null>;
  leave: () => void;
};

type Run = (desk: Desk, argument: string) => Promise<void> | void;
/** `argument` is what may follow the name. */
type Command = { name: string; help: string; run: Run; argument?: string };

const initPrompt = `Look at this project: its build files, its README, its layout, and the rules that AI instruction files in it already hold. Then write a CLAUDE.md in its root, for a coding agent that sees the project for the first time: how to build, test (one test, too) and lint it, how the code is laid out where that takes several files to see, and conventions that differ from the usual. If there is a CLAUDE.md, improve it. Keep it under 60 lines; leave out what is obvious or made up.`;

const commandRows: [name: string, help: string, run: Run, argument?: string][] = [
  ["help", "what can be typed here", showHelp],
  ["clear", "start a new session", clear],
  ["compact", "replace the conversation by a summary", compact, "[what to keep]"],
  ["context", "what fills the model's window", showContext],
  ["cost", "tokens and money this session has used", ({ say, session }) => say(costLines(session))],
  ["model", "show or change the model", changeModel, "[name]"],
  ["permissions", "show rules and mode, remove a rule", showPermissions, "[mode]"],
  ["resume", "go on with an earlier session", resume, "[words]"],
  ["sessions", "list the sessions of this folder", listSessions],
  ["fork", "go on in a copy of this session", fork],
  ["init", "have a CLAUDE.md written", (desk) => desk.ask(initPrompt)],
  ["memory", "the instruction files in force", showMemory],
  ["tools", "the tools the model has", showTools],
  ["skills", "the skills, and those that are broken", showSkills],
  [
    "status",
    "session, model, mode, folder",
    (desk) => desk.say(statusLines(desk.session, desk.options)),
  ],
  ["diff", "what has changed in the workspace since the last commit", showDiff],
  ["export", "write the conversation to a Markdown file", exportTo, "[file]"],
  ["exit", "leave", (desk) => desk.leave()],
];
const commands: readonly Command[] = commandRows.map(([name, help, run, argument]) => ({
  name,
  help,
  run,
  argument,
}));

/** Those that wait while the agent works; the others run at once. */
const waiting = ["clear", "compact", "resume", "fork", "init", "diff"];
export const isInstant = ({ command }: { command: Command }): boolean =>
  commands.includes(command) && !waiting.includes(command.name);

/** A line that is meant as a command; a path such as /etc/hosts is not. */
const commandLine = /^\/([a-z][\w-]*)(?:\s+([\s\S]*))?$/i;

export type Parsed = { command: Command; argument: string } | { unknown: string };

/** The command of a line, or null where the line is none. Skills are commands, too. */
export function parseCommand(line: string, session: Session | null): Parsed | null {
  const [, typed, argument = ""] = commandLine.exec(line) ?? [];
  if (typed === undefined) return null;
  const name = typed.toLowerCase() === "quit" ? "exit" : typed.toLowerCase();
  const all = [...commands, ...skillCommands(session)];
  const starting = all.filter((command) => command.name.startsWith(name));
  const command =
    all.find((one) => one.name === name) ?? (starting.length === 1 ? starting[0] : undefined);
  if (command) return { command, argument: argument.trim() };
  const near =
    all.toSorted((a, b) => distance(a.name, name) - distance(b.name, name))[0]?.name ?? "help";
  return {
    unknown: `There is no command /${escapeLine(typed)}. Did you mean /${near}? /help lists them all.`,
  };
}

const skillCommands = (session: Session | null): Command[] =>
  (session?.skills.list ?? []).map(({ name, description }) => ({
    name,
    help: description,
    run: (desk, argument) => desk.ask(`Use the skill "${name}". ${argument}`.trim()),
  }));

export function suggestCommands(
  text: string,
  cursor: number,
  session: Session | null,
): Suggestions | null {
  const typed = /^\/([\w-]*)$/.exec(text.slice(0, cursor))?.[1];
  if (typed === undefined) return null;
  const found = [...commands, ...skillCommands(session)].filter(({ name }) =>
    name.startsWith(typed),
  );
  return { start: 0, options: found.map(({ name, help }) => ({ value: `/${name}`, note: help })) };
}

/** Edits that lead from one word to the other. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (const [i, char] of a.split("").entries()) {
    const next = [i + 1];
    for (let j = 0; j < b.length; j += 1)
      next.push(
        Math.min((row[j] ?? 0) + Number(char !== b[j]), (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1),
      );
    row = next;
  }
  return row[b.length] ?? 0;
}

// ── Help and lists ──────────────────────────────────────────────────────────────────────────────

const keys: [string, string][] = [
  ["Enter", "send; while the agent works: give it to the agent at its next step"],
  ["Alt-Enter, Ctrl-J, \\ Enter", "new line (Shift-Enter where the terminal tells it apart)"],
  ["Esc, Ctrl-C", "interrupt; Ctrl-C clears the input, twice leaves; so does Ctrl-D"],
  ["Shift-Tab", "next permission mode"],
  ["Up, Down", "history; takes back what is queued"],
  ["Tab", "complete /commands and @files"],
  ["@file", "attach a file or an image"],
  ["!command", "run a command yourself; the model sees it with your next input"],
  ["Ctrl-L, Ctrl-Z", "clear the screen, suspend"],
];

/** Two columns; what does not fit the right one goes on below it. */
function table(rows: [string, string][], columns: number): string[] {
  const width = Math.min(
    Math.max(0, ...rows.map(([left]) => widthOf(left))),
    Math.floor(columns / 2),
  );
  return rows.flatMap(([left, right]) => {
    const pad = " ".repeat(Math.max(0, width - widthOf(left)));
    const [first = "", ...others] = wrap(right, columns - width - 5);
    const below = others.map((line) => `${" ".repeat(width + 4)}${line.trimStart()}`);
    return [`  ${cyan(left)}${pad}  ${first}`, ...below];
  });
}

function showContext({ session, columns, say }: Desk): void {
  say(windowLines(session, columns));
}

function showHelp(desk: Desk): void {
  const rows = commands.map(({ name, argument, help }): [string, string] => [
    `/${name}${argument ? ` ${argument}` : ""}`,
    help,
  ]);
  desk.say([
    bold("Commands"),
    ...table(rows, desk.columns),
    "",
    bold("Keys"),
    ...table(keys, desk.columns),
  ]);
}

function showTools({ session, columns, say }: Desk): void {
  const firstSentence = (text: string) => escapeLine(/^.*?[.:](?=\s|$)/s.exec(text)?.[0] ?? text);
  const rows = session.tools.map(({ name, description }): [string, string] => [
    escapeLine(name),
    firstSentence(description),
  ]);
  say([bold(plural(rows.length, "tool")), ...table(rows, columns)]);
}

function showSkills({ session, columns, say }: Desk): void {
  const { list, broken } = session.skills;
  const rows = list.map(({ name, description }): [string, string] => [
    `/${name}`,
    escapeLine(description),
  ]);
  const head =
    list.length > 0
      ? plural(list.length, "skill")
      : "No skills. Put them into .claude/skills/NAME/SKILL.md.";
  say([
    bold(head),
    ...table(rows, columns),
    ...broken.map((line) => `  ${glyphs.no} ${escapeLine(line)}`),
  ]);
}

async function showMemory({ session, options, columns, say }: Desk): Promise<void> {
  const { readContext } = await import("../agent/context.ts");
  const { instructions, notices } = await readContext(session.info.cwd, options.clawHome);
  const files = Array.from(
    instructions.matchAll(/<instructions from="([^"]*)">\n([\s\S]*?)\n<\/instructions>/g),
  );
  const rows = files.map(([, path = "", text = ""]): [string, string] => [
    escapeLine(path),
    dim(`${plural(text.split("\n").length, "line")}, about ${shortNumber(text.length / 4)} tokens`),
  ]);
  const head =
    rows.length > 0
      ? "Instruction files in force"
      : "No instruction files. /init has a CLAUDE.md written.";
  say([
    bold(head),
    ...table(rows, columns),
    ...notices.map((line) => `  ${glyphs.no} ${escapeLine(line)}`),
  ]);
}

// ── Model and permissions ───────────────────────────────────────────────────────────────────────

async function changeModel({ session, options, say }: Desk, name: string): Promise<void> {
  if (!name) {
    const { id, contextTokens } = session.model;
    say([
      `${bold(escapeLine(id))}  ${dim(`window of ${shortNumber(contextTokens)} tokens`)}`,
      dim("/model provider/name changes it."),
    ]);
    return;
  }
  const { resolveModel } = await import("../models/registry.ts");
  session.model = await resolveModel(name, process.env);
  await options.store.setModel(session.info.id, session.model.id);
  say([`The model is now ${bold(escapeLine(session.model.id))}.`]);
}

async function showPermissions(
  { session, options, columns, say, choose }: Desk,
  mode: string,
): Promise<void> {
  if (mode) {
    const { parseMode } = await import("../agent/permissions.ts");
    session.mode = parseMode(mode);
    say([`The mode is now ${paintMode(session.mode)}.`]);
    return;
  }
  const workspace = session.policy().roots[0] ?? session.info.cwd;
  const remembered = await options.store.readRules(workspace);
  const kinds = ["deny", "ask", "allow"] as const;
  const rows = kinds.flatMap((kind) =>
    session.rules[kind].map((rule): [string, string] => [
      `${kind.padEnd(5)} ${escapeLine(rule)}`,
      dim(
        remembered[kind].includes(rule)
          ? "remembered for this workspace"
          : "from flags or configuration",
      ),
    ]),
  );
  say([
    `Mode: ${paintMode(session.mode)} ${dim("(Shift-Tab, or /permissions MODE)")}`,
    ...(rows.length > 0 ? table(rows, columns) : [dim("  No rules.")]),
  ]);
  const options_ = kinds.flatMap((kind) =>
    remembered[kind].map((rule) => ({ label: rule, note: kind, value: rule })),
  );
  if (options_.length === 0) return;
  const rule = await choose("Remove a remembered rule? Esc leaves them.", options_);
  if (rule === null) return;
  await options.store.removeRule(workspace, rule);
  for (const kind of kinds)
    session.rules = { ...session.rules, [kind]: session.rules[kind].filter((one) => one !== rule) };
  say([`Removed: ${escapeLine(rule)}`]);
}

// ── Sessions ────────────────────────────────────────────────────────────────────────────────────

/** An option for each session, those of this folder first. */
export function sessionOptions(sessions: SessionInfo[], cwd: string): Option<string>[] {
  const here = sessions.toSorted((a, b) => Number(b.cwd === cwd) - Number(a.cwd === cwd));
  return here.map(({ id, title, updatedAt, model, cwd: folder }) => ({
    value: id,
    label: `${whenWas(updatedAt)}  ${title || "(no title)"}`,
    note: [id.slice(0, 8), model, ...(folder === cwd ? [] : [folder])].join("  "),
  }));
}

const whenWas = (at: number): string => new Date(at).toLocaleString("sv-SE").slice(0, 16);

async function clear({ say, reopen }: Desk): Promise<void> {
  await reopen({});
  say([dim("A new session; /resume goes back to the other.")]);
}

async function resume(
  { session, options, say, choose, reopen }: Desk,
  words: string,
): Promise<void> {
  const all = words
    ? (await options.store.search(words)).map((found) => ({ ...found.session, title: found.line }))
    : await options.store.listSessions();
  const others = all.filter(({ id }) => id !== session.info.id);
  if (others.length === 0)
    return say([
      words ? `No other session holds "${escapeLine(words)}".` : "There is no other session.",
    ]);
  const id = await choose("Go on with which session?", sessionOptions(others, session.info.cwd));
  if (id !== null) await reopen({ resume: id });
}

async function listSessions({ session, options, say }: Desk): Promise<void> {
  const { cwd, id } = session.info;
  const sessions = await options.store.listSessions({ cwd, limit: 30 });
  if (sessions.length === 0) return say([dim("No session in this folder yet.")]);
  say([
    bold(`Sessions of ${escapeLine(cwd)}`),
    ...sessions.map(
      (one) =>
        `${one.id === id ? glyphs.prompt : " "} ${dim(one.id)} ${whenWas(one.updatedAt)}  ${escapeLine(one.title)}`,
    ),
    dim("/resume goes on with one."),
  ]);
}

async function fork({ session, reopen, say }: Desk): Promise<void> {
  if (session.events.length === 0) return say(["There is nothing to copy yet."]);
  await reopen({ resume: session.info.id, fork: true });
}

async function compact({ session, say, work }: Desk, wish: string): Promise<void> {
  if (session.events.length === 0) return say(["There is nothing to summarise yet."]);
  const before = measure(session).total;
  const { summarize } = await import("../agent/context.ts");
  const summary = await work("Summarising", (signal) =>
    summarize(session.model, session, wish, signal),
  );
  if (summary === null) return;
  if (!summary)
    throw new UsageError(`${session.model.id} gave no summary; the conversation stays as it is.`);
  await session.log({ type: "compaction", summary });
  say([
    `Compacted: about ${shortNumber(before)} tokens before, ${shortNumber(measure(session).total)} now.`,
  ]);
}

// ── Files ───────────────────────────────────────────────────────────────────────────────────────

const git = "git --no-pager -c core.fsmonitor=false";
const diffCommand = `${git} rev-parse --is-inside-work-tree >/dev/null && { ${git} status --short; if ${git} rev-parse -q --verify HEAD >/dev/null; then ${git} diff --no-ext-diff --no-textconv --no-color HEAD; fi; }`;

async function showDiff({ session, say, work }: Desk): Promise<void> {
  const call = personalCall("Bash", { command: diffCommand });
  const output = await work("Asking git", (signal) => session.hands.run(call, signal));
  if (output === null) return;
  if (/not a git repository/i.test(output.content))
    return say([
      `${escapeLine(session.info.cwd)} is no git repository; there is nothing to compare with.`,
    ]);
  const lines = output.content
    .trimEnd()
    .split("\n")
    .map((line) => paintDiffLine(escapeLine(line)));
  say(
    output.content.trim() === "(no output)"
      ? [dim("Nothing has changed since the last commit.")]
      : lines,
  );
}

async function exportTo({ session, say }: Desk, file: string): Promise<void> {
  const path = resolve(session.info.cwd, file || `claw-${session.info.id.slice(0, 8)}.md`);
  try {
    await writeFile(path, conversation(session), { flag: "wx" });
    say([`Written: ${escapeLine(path)}`]);
  } catch (error) {
    const exists = messageOf(error).startsWith("EEXIST");
    throw new UsageError(
      exists
        ? `${path} exists already; name another file: /export FILE.`
        : `The conversation could not be written: ${messageOf(error)}.`,
    );
  }
}
