/**
 * Commands as process trees. Each starts in a session of its own, without a terminal and with an
 * empty stdin, prints into one pipe, and is ended together with everything it started.
 *
 * Invariant: what a command starts is found by descent, by its session, and by a mark that it
 * inherits in its environment; so it is gone when `endTree` resolves, though it ignored SIGTERM, was
 * orphaned or called setsid. What sheds the mark (`env -i x &`, a daemon that overwrites its own
 * environment) gets away once its shell has ended. Nothing outside a tree is ever signalled.
 */
import { dlopen } from "bun:ffi";
import { closeSync, existsSync, readdirSync, readFileSync } from "node:fs";

/** The variable that names, for every process, the session and the call that it belongs to. */
export const MARK = "CLAW_CALL";

const TERM_GRACE_MS = 200;
const GIVE_UP_MS = 900;
const POLL_MS = 10;
const LAST_READ_MS = 50;

let anyStarted = false;
/** Whether this process has started a command at all; if not, there is no tree to look for. */
export const hasStarted = (): boolean => anyStarted;

/** A command that was started. `mark` is in the environment of all that it starts. */
export type Command = {
  readonly pid: number;
  readonly mark: string;
  /** How the shell itself ended; its children may run on. */
  readonly exited: Promise<Exit>;
  /** Resolves when nobody is left who could print. */
  readonly closed: Promise<unknown>;
};

/** `signal` is null where the shell ended by itself. */
export type Exit = { code: number | null; signal: string | null };

type Place = { cwd: string; env: Record<string, string> };
type Print = (bytes: Uint8Array) => void;
type Reader = { read(): Promise<{ value?: Uint8Array }>; cancel(): Promise<unknown> };
type Started = { child: Bun.Subprocess; readers: Reader[]; release: () => void };

/** Commands whose output is still read, by the value of their MARK. */
const open = new Map<string, { closed: Promise<unknown>; readers: Reader[] }>();

/**
 * Starts `bash -c command` (sh, where there is no bash). `print` gets all that the command and its
 * children print, stdout and stderr in the order of arrival. Throws what the system says when the
 * command cannot start, and leaves nothing open then.
 */
export function startCommand(command: string, { cwd, env }: Place, print: Print): Command {
  anyStarted = true;
  const mark = crypto.randomUUID();
  const marks = `${env[MARK] ?? ""}/${mark}`;
  const place = { cwd, env: { PATH: "/usr/local/bin:/usr/bin:/bin", ...env, [MARK]: marks } };
  const pipe = openPipe();
  const start = pipe ? startOnPipe(command, place, pipe) : startOnSockets(command, place);
  const { child, readers, release } = start;
  const closed = Promise.all(readers.map((reader) => drain(reader, print))).finally(() => {
    open.delete(marks);
    release();
  });
  open.set(marks, { closed, readers });
  return { pid: child.pid, mark, exited: child.exited.then(() => exitOf(child)), closed };
}

function exitOf(child: Bun.Subprocess): Exit {
  const { exitCode, signalCode } = child;
  return { code: exitCode, signal: signalCode === null ? null : String(signalCode) };
}

function startOnPipe(command: string, place: Place, { read, write }: Pipe): Started {
  let child: Bun.Subprocess | null = null;
  try {
    const stdio: ["ignore", number, number] = ["ignore", write, write];
    child = Bun.spawn([findShell(place.env), "-c", command], { ...place, stdio, detached: true });
  } finally {
    closeSync(write);
    if (child === null) closeSync(read);
  }
  const reader = Bun.file(read).stream().getReader();
  return { child, readers: [reader], release: () => closeSync(read) };
}

/** The shell joins its stderr to its stdout; what it says before that comes the other way. */
function startOnSockets(command: string, place: Place): Started {
  const child = Bun.spawn([findShell(place.env), "-c", `exec 2>&1; ${command}`], {
    ...place,
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
  const readers = [child.stdout.getReader(), child.stderr.getReader()];
  return { child, readers, release: () => {} };
}

async function drain(reader: Reader, print: Print): Promise<void> {
  try {
    for (;;) {
      const { value } = await reader.read();
      if (value === undefined) return;
      print(value);
    }
  } catch {
    // Nothing more can be read from this pipe; how the command ended is told all the same.
  }
}

function findShell(env: Record<string, string>): string {
  const path = { PATH: env["PATH"] ?? "" };
  const shell = ["bash", "sh"].find((name) => Bun.which(name, path) !== null);
  if (!shell) throw new Error(`there is neither bash nor sh in PATH (${path.PATH})`);
  return shell;
}

type Pipe = { read: number; write: number };
type Pipe2 = (ends: Int32Array, flags: number) => number;

/** The same number on all of Linux that Bun runs on. */
const O_CLOEXEC = 0o2000000;

let pipe2: Pipe2 | null | undefined;

/**
 * A real pipe; null where there is only Bun's own way, which is a socket. Linux cannot open a
 * socket by its name, so `echo oops > /dev/stderr` would fail; other systems can.
 */
function openPipe(): Pipe | null {
  pipe2 = pipe2 === undefined ? findPipe2() : pipe2;
  const ends = new Int32Array(2);
  const [read, write] = pipe2?.(ends, O_CLOEXEC) === 0 ? ends : [];
  return read === undefined || write === undefined ? null : { read, write };
}

function findPipe2(): Pipe2 | null {
  if (process.platform !== "linux") return null;
  try {
    const shape = { pipe2: { args: ["ptr", "int"], returns: "int" } } as const;
    return dlopen("libc.so.6", shape).symbols.pipe2;
  } catch {
    return null; // A libc of another name: commands run on sockets, as on other systems.
  }
}

/**
 * Ends the tree of `mark` and `root` (see `findTree`): SIGTERM first, SIGKILL shortly after. Resolves within about a second, with the pids that are
 * still there (stuck in the kernel, or another user's), mostly none. Who got away is read no more.
 */
export async function endTree(mark: string, root = 0): Promise<number[]> {
  if (process.platform === "win32") return endOnWindows(root);
  const startedAt = performance.now();
  let left = findTree(mark, root);
  signalAll(left, "SIGTERM");
  while (left.length > 0 && performance.now() - startedAt < GIVE_UP_MS) {
    await Bun.sleep(POLL_MS);
    left = findTree(mark, root, left);
    if (performance.now() - startedAt > TERM_GRACE_MS) signalAll(left, "SIGKILL");
  }
  await leavePipes(mark);
  return left;
}

/** Once all are dead their pipes end by themselves; one that does not would hold claw for ever. */
async function leavePipes(mark: string): Promise<void> {
  const ours = [...open].filter(([marks]) => marks.includes(mark)).map(([, command]) => command);
  if (ours.length === 0) return;
  await Promise.race([Promise.all(ours.map(({ closed }) => closed)), Bun.sleep(LAST_READ_MS)]);
  await Promise.all(ours.flatMap(({ readers }) => readers.map((reader) => reader.cancel())));
}
async function endOnWindows(root: number): Promise<number[]> {
  const argv = ["taskkill", "/PID", String(root), "/T", "/F"];
  if (root > 0) await Bun.spawn(argv, { stdio: ["ignore", "ignore", "ignore"] }).exited;
  return [];
}

function signalAll(pids: number[], signal: NodeJS.Signals): void {
  for (const pid of pids) {
    try {
      process.kill(pid, signal);
    } catch {
      // It ended by itself, or is another user's; the next look at the tree tells which.
    }
  }
}

/** Is anybody left in the session that `root`, which has ended, led? One system call. */
export function hasSurvivors(root: number): boolean {
  try {
    return process.kill(-root, 0);
  } catch {
    return false; // ESRCH: nobody.
  }
}

/**
 * The pids of a tree: who bears `mark`, who is in a session with one of them or in that of `root` (0:
 * none), whoever is `known` from an earlier look and may be orphaned since, and all their children.
 */
export function findTree(mark: string, root = 0, known: number[] = []): number[] {
  if (mark === "") throw new Error("an empty mark would be everybody's");
  const listed = listProcesses(mark);
  const here = listed.find(({ pid }) => pid === process.pid)?.session;
  const all = listed.filter(({ session }) => session !== here && session > 0);
  // Whoever bears the mark is in a session that the tree itself has made: nobody joins another's.
  const sessions = new Set(all.filter(({ marked }) => marked).map(({ session }) => session));
  if (root > 0) sessions.add(root);
  const ours = all.filter(({ pid, session }) => sessions.has(session) || known.includes(pid));
  const found = new Set(ours.map(({ pid }) => pid));
  for (let size = -1; size !== found.size;) {
    size = found.size;
    for (const { pid, parent } of all) if (found.has(parent)) found.add(pid);
  }
  return [...found];
}

type Process = { pid: number; parent: number; session: number; marked: boolean };

function listProcesses(mark: string): Process[] {
  if (!existsSync("/proc/self/stat")) return listByPs(mark);
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return pids.map((pid) => readProcess(pid, mark)).filter((one) => one !== null);
}

function readProcess(pid: string, mark: string): Process | null {
  const stat = readIfThere(`/proc/${pid}/stat`);
  // The second field is a name that may hold anything, in parentheses: "12 (a) b) S 1 12 12 …".
  const [state, parent, , session] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  if (stat === "" || state === "Z" || state === "X") return null;
  const marked = readIfThere(`/proc/${pid}/environ`).includes(mark);
  return { pid: Number(pid), parent: Number(parent), session: Number(session), marked };
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return ""; // The process ended meanwhile, or is another user's and so none of ours.
  }
}

/** macOS. The process group stands in for the session, which its ps does not tell. */
function listByPs(mark: string): Process[] {
  const ps = Bun.spawnSync(["ps", "-AEww", "-o", "pid=,ppid=,pgid=,stat=,command="]);
  const lines = ps.stdout.toString().split("\n");
  return lines.flatMap((line) => {
    const [pid, parent, session, state] = line.trim().split(/\s+/, 4);
    if (!pid || state?.startsWith("Z")) return [];
    return {
      pid: Number(pid),
      parent: Number(parent),
      session: Number(session),
      marked: line.includes(mark),
    };
  });
}
