/**
 * Bash, BashOutput and KillShell: commands in the workspace, and what a model is told of them.
 *
 * Invariant: a call returns when its command does, in time, or when it is aborted, whatever the
 * command left running; and nothing that was started outlives the session (tools/processes.ts).
 * A command never gets claw's keys: `scrubEnv` says which variables those are, and is what a fork
 * edits whose commands need one of them.
 */
import { existsSync } from "node:fs";
import { constants } from "node:os";
import { z } from "zod";
import { config } from "../config.ts";
import { messageOf } from "../errors.ts";
import type { BackgroundShell, Print, Tool, ToolOutput, Workbench } from "../types.ts";
import { Capture } from "./capture.ts";
import { endTree, findTree, hasStarted, hasSurvivors, MARK, startCommand } from "./processes.ts";
import type { Command, Exit } from "./processes.ts";

const { bashTimeoutMs, bashTimeoutMaxMs } = config.limits;

/** How long a pipe that a background child keeps open may stay silent until we leave. */
const DRAIN_QUIET_MS = 15;
const DRAIN_MAX_MS = 100;

const bashInput = z.object({
  command: z.string(),
  timeout: z
    .number()
    .positive()
    .optional()
    .describe(`milliseconds; default ${bashTimeoutMs}, at most ${bashTimeoutMaxMs}`),
  description: z.string().optional().describe("what it does, in a few words"),
  run_in_background: z.boolean().optional(),
});

export const bash: Tool<z.infer<typeof bashInput>> = {
  name: "Bash",
  description:
    "Runs a bash command. Every call starts anew in the workspace folder: cd and variables do not " +
    "last. stdin is empty, so nothing can be asked. For servers and long jobs set " +
    "run_in_background, then use BashOutput and KillShell.",
  schema: bashInput,
  readOnly: false,
  async run({ command: text, timeout, run_in_background }, workbench, signal, onPrint) {
    signal.throwIfAborted();
    const capture = new Capture();
    const print: Print = (bytes) => {
      capture.write(bytes);
      onPrint?.(bytes);
    };
    const cwd = workbench.roots[0] ?? "";
    let command: Command;
    try {
      command = startCommand(text, { cwd, env: workbench.env }, print);
    } catch (error) {
      return failed(whyNotStarted(error, text, cwd));
    }
    if (run_in_background) return keepInBackground(command, capture, text, workbench);
    return await finish(command, capture, timeout ?? bashTimeoutMs, signal);
  },
};

export const bashOutput: Tool<{ bash_id: string }> = {
  name: "BashOutput",
  description: "What a background command printed since the last look, and whether it still runs.",
  schema: z.object({ bash_id: z.string() }),
  readOnly: true,
  async run({ bash_id }, { shells }) {
    return shells.get(bash_id)?.read() ?? failed(unknownShell(bash_id, shells));
  },
};

export const killShell: Tool<{ shell_id: string }> = {
  name: "KillShell",
  description: "Ends a background command and everything it started.",
  schema: z.object({ shell_id: z.string() }),
  readOnly: false,
  async run({ shell_id }, { shells }) {
    const shell = shells.get(shell_id);
    if (!shell) return failed(unknownShell(shell_id, shells));
    await shell.kill();
    return { content: `Ended ${shell_id}. ${shell.read().content}` };
  },
};

/** Ends all that the session's commands left, by the mark that `workbench.env` gave them. */
export async function endSession(workbench: Workbench): Promise<void> {
  if (!hasStarted()) return;
  const mark = workbench.env[MARK];
  if (mark) await endTree(mark);
  await Promise.all([...workbench.shells.values()].map((shell) => shell.kill()));
}

// ── In the foreground ───────────────────────────────────────────────────────────────────────────

async function finish(
  command: Command,
  capture: Capture,
  askedMs: number,
  signal: AbortSignal,
): Promise<ToolOutput> {
  const timeoutMs = Math.min(askedMs, bashTimeoutMaxMs);
  const ending = await waitFor(command, timeoutMs, signal);
  const stuck = ending === "exit" ? [] : await endTree(command.mark, command.pid);
  const isClosed = await settle(command, capture);
  const printed = capture.close() || "(no output)";
  if (ending === "abort") throw signal.reason;
  if (ending === "timeout") return failed(`${timedOut(timeoutMs, stuck)}\n${printed}`);
  const left = isClosed && !hasSurvivors(command.pid) ? [] : findTree(command.mark, command.pid);
  const notes = [
    askedMs > timeoutMs ? capped(askedMs) : "",
    left.length > 0 ? stillRuns(left) : "",
  ];
  return report(await command.exited, [printed, ...notes].filter(Boolean).join("\n"));
}

async function waitFor(
  command: Command,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<"exit" | "timeout" | "abort"> {
  const { promise, resolve } = Promise.withResolvers<"exit" | "timeout" | "abort">();
  const onAbort = () => resolve("abort");
  signal.addEventListener("abort", onAbort, { once: true });
  const timer = setTimeout(() => resolve("timeout"), timeoutMs);
  try {
    return await Promise.race([command.exited.then(() => "exit" as const), promise]);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  }
}

/**
 * Waits until what a command that has ended printed is here: for the end of its pipe, or, where a
 * background child holds that open, until nothing comes for a moment. Says whether it was the end.
 */
async function settle(command: Command, capture: Capture): Promise<boolean> {
  const until = performance.now() + DRAIN_MAX_MS;
  for (let seen = -1; seen !== capture.bytes && performance.now() < until;) {
    seen = capture.bytes;
    if (await settlesWithin(command.closed, DRAIN_QUIET_MS)) return true;
  }
  return false;
}

async function settlesWithin(promise: Promise<unknown>, ms: number): Promise<boolean> {
  const late = Promise.withResolvers<boolean>();
  const timer = setTimeout(() => late.resolve(false), ms);
  try {
    return await Promise.race([promise.then(() => true), late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

// ── In the background ───────────────────────────────────────────────────────────────────────────

function keepInBackground(
  command: Command,
  capture: Capture,
  text: string,
  { shells }: Workbench,
): ToolOutput {
  const id = `bash_${shells.size + 1}`;
  shells.set(id, openShell(id, command, capture, text));
  return { content: `Started in background with id ${id}. BashOutput shows what it prints.` };
}

function openShell(
  id: string,
  running: Command,
  capture: Capture,
  command: string,
): BackgroundShell {
  const startedAt = performance.now();
  let exit: Exit | null = null;
  const ended = running.exited.then(async (how) => {
    await settle(running, capture);
    exit = how;
  });
  const status = () => {
    const seconds = Math.round((performance.now() - startedAt) / 1000);
    return exit === null ? `running for ${seconds} s` : describeExit(exit);
  };
  return {
    id,
    command,
    read: () => ({
      content: `Status: ${status()}\n${capture.take(exit !== null) || "(no new output)"}`,
    }),
    async kill() {
      // The pid of a shell that has ended may be somebody else's by now.
      await endTree(running.mark, exit === null ? running.pid : 0);
      await settlesWithin(ended, DRAIN_MAX_MS);
    },
  };
}

// ── What a model is told ────────────────────────────────────────────────────────────────────────

function failed(content: string): ToolOutput {
  return { content, isError: true };
}

function report(exit: Exit, text: string): ToolOutput {
  if (exit.code === 0) return { content: text };
  const how = describeExit(exit);
  return failed(`${how[0]?.toUpperCase()}${how.slice(1)}\n${text}`);
}

/** "exit code 3", "exit code 137 (SIGKILL)", "killed by SIGKILL". */
function describeExit({ code, signal }: Exit): string {
  if (signal !== null) return `killed by ${signal}`;
  const names = Object.entries(constants.signals);
  const [name] = names.find(([, number]) => number + 128 === code) ?? [];
  return `exit code ${code}${name ? ` (${name})` : ""}`;
}

function timedOut(timeoutMs: number, stuck: number[]): string {
  const but = stuck.length > 0 ? `, except for ${pids(stuck)}, which cannot be ended` : "";
  return (
    `Timed out after ${timeoutMs} ms and was ended, with everything it started${but}. ` +
    `Give a larger timeout (in milliseconds, at most ${bashTimeoutMaxMs}), or set ` +
    "run_in_background. Until then it printed:"
  );
}

function capped(askedMs: number): string {
  return `[a timeout of ${askedMs} ms is over the limit; it was ${bashTimeoutMaxMs} ms]`;
}

function stillRuns(left: number[]): string {
  return `[a background process still runs, until it is killed or the session ends: ${pids(left)}]`;
}

function pids(all: number[]): string {
  return `pid ${all.slice(0, 5).join(", ")}${all.length > 5 ? " and others" : ""}`;
}

function unknownShell(id: string, shells: Workbench["shells"]): string {
  if (shells.size === 0) return `There is no shell ${id}: nothing was started in the background.`;
  return `There is no shell ${id}. There are: ${[...shells.keys()].join(", ")}.`;
}

function whyNotStarted(error: unknown, command: string, cwd: string): string {
  const code = error instanceof Error && "code" in error ? error.code : "";
  if (!existsSync(cwd)) {
    return `The workspace folder ${cwd} is gone, so no command can start. Write a file into it (Write makes missing folders), or tell the person.`;
  }
  if (code === "E2BIG") {
    return `The command is too long for the system (${Buffer.byteLength(command)} bytes). Write its data to a file with Write, then run a short command that uses the file.`;
  }
  if (code === "EMFILE" || code === "ENFILE" || code === "EAGAIN" || code === "ENOMEM") {
    return `The system has no room for another process (${code}). End what runs in the background with KillShell, then try again.`;
  }
  return `The command could not start in ${cwd}: ${messageOf(error)}`;
}

// ── The environment ─────────────────────────────────────────────────────────────────────────────

/** Secrets by their names, and everything that is meant for claw or for the runtime it is made of. */
const WITHHELD =
  /(^|_)(API_?)?(KEY|TOKEN|SECRET|CREDENTIAL|PASSPHRASE)S?(_|\d|$)|PASSW(OR)?D|^(ANTHROPIC|OPENAI|SLACK|EMAIL|CLAW)_|^BUN_(BE_BUN|OPTIONS|INSPECT)/i;

/** What keeps programs from asking, paging and colouring. */
const UNATTENDED = {
  TERM: "dumb",
  NO_COLOR: "1",
  PAGER: "cat",
  GIT_PAGER: "cat",
  GIT_EDITOR: "true",
  GIT_TERMINAL_PROMPT: "0",
};

/** `env` as commands may see it: without secrets, and set up for nobody at the keyboard. */
export function scrubEnv(env: Record<string, string | undefined>): Record<string, string> {
  const kept: Record<string, string> = {};
  for (const [name, value] of Object.entries(env)) {
    if (value !== undefined && !WITHHELD.test(name)) kept[name] = value;
  }
  return { ...kept, ...UNATTENDED };
}
