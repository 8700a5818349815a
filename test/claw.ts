/**
 * Runs the built binary as a person would: a process of its own, in a folder and a home of its own.
 * `test/run.ts` builds it first; a test that finds none says how to.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const binary = join(import.meta.dir, "../dist/claw");
if (!existsSync(binary)) throw new Error(`There is no ${binary}: run \`bun build.ts\` first.`);

export type Place = Disposable & {
  /** The working folder; empty. */
  cwd: string;
  home: string;
  clawHome: string;
  env: Record<string, string>;
};

/** A new folder and home; both are removed when it goes out of scope. */
export function newPlace(): Place {
  const base = realpathSync(mkdtempSync(join(tmpdir(), "claw-test-")));
  const [cwd, home] = [join(base, "work"), join(base, "home")];
  for (const folder of [cwd, home]) Bun.spawnSync(["mkdir", folder]);
  const clawHome = join(home, ".claw");
  const { PATH = "/usr/bin:/bin" } = process.env;
  return {
    cwd,
    home,
    clawHome,
    env: { PATH, HOME: home, CLAW_HOME: clawHome, LANG: "C.UTF-8" },
    [Symbol.dispose]() {
      endAll(base);
      rmSync(base, { recursive: true, force: true });
    },
  };
}

/** What a kill in the wrong moment left running with that folder in its command line. */
function endAll(base: string): void {
  if (process.platform !== "linux") return;
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name)))
    try {
      const line = readFileSync(`/proc/${pid}/cmdline`, "latin1");
      if (line.includes(base) && Number(pid) !== process.pid) process.kill(Number(pid), "SIGKILL");
    } catch {
      // It has ended by itself.
    }
}

export type Run = { code: number; stdout: string; stderr: string };

export type RunOptions = {
  env?: Record<string, string>;
  stdin?: string;
  cwd?: string;
};

/** Starts the binary, by `wrap` where that is given; stdin is empty unless `stdin` is "pipe". */
export function startClaw(
  place: Place,
  args: string[],
  options: {
    env?: Record<string, string>;
    cwd?: string;
    stdin?: "pipe" | "ignore";
    wrap?: string[];
    binary?: string;
  } = {},
) {
  const command = [...(options.wrap ?? []), options.binary ?? binary];
  return Bun.spawn([...command, ...args], {
    cwd: options.cwd ?? place.cwd,
    env: { ...place.env, ...options.env },
    stdin: options.stdin ?? "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

/** Runs the binary to its end. */
export async function runClaw(
  place: Place,
  args: string[],
  options: RunOptions = {},
): Promise<Run> {
  const { stdin, ...rest } = options;
  const child = startClaw(place, args, { ...rest, stdin: stdin === undefined ? "ignore" : "pipe" });
  if (stdin !== undefined && child.stdin) {
    void child.stdin.write(stdin);
    await child.stdin.end();
  }
  const [stdout, stderr, code] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { code, stdout, stderr };
}

/** JSON lines as values. */
// oxlint-disable-next-line no-explicit-any -- tests look into every shape of line
export const jsonLines = (text: string): any[] =>
  text
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));

/** Waits until `done` holds, looking often; fails after `timeoutMs`. */
export async function until(done: () => boolean, timeoutMs = 10_000): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!done()) {
    if (Date.now() > deadline) throw new Error("It did not happen in time.");
    await Bun.sleep(5);
  }
}
