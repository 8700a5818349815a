/**
 * Hands of one conversation under bubblewrap: the host's side. The first call starts
 * `bwrap … claw hands`; that worker is kept warm, and ended when it is idle, stuck or broken.
 *
 * Invariant: a tool sees one writable folder, the machine's programs and libraries read-only, and
 * nothing else of it: no network, process, variable, secret or capability. What is seen is a positive
 * list, and without a bwrap that does all of this nothing runs. The worker may be hijacked: only what
 * a reply's schema allows is taken from it, and it never outlives its host.
 */
import { closeSync, lstatSync, readFileSync, readlinkSync, writeSync } from "node:fs";
import { readdir, realpath } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, UsageError } from "../errors.ts";
import type { Hands, ToolOutput } from "../types.ts";
import { openLocalHands } from "./hands.ts";
import { readStart, type Answer, type Question } from "./wire.ts";
import { Worker, type Child } from "./worker.ts";

export type SandboxHandsOptions = {
  /** The workspace: absolute and real. Nothing else can be written. */
  folder: string;
  /** Further folders to read, absolute and real; they may lie in `folder`. */
  readOnly?: readonly string[];
  /** Files that cannot be opened inside: those that are there when a worker starts are asked for. */
  hides?: (path: string) => boolean;
  /** A worker is ended when this passes without a call. Default: ten minutes. */
  idleMs?: number;
  /** The claw executable. Default: this one. */
  binary?: string;
  log?: (event: string, facts?: Record<string, string | number | boolean | null>) => void;
};

/** Hands in a sandbox. `close` ends all that runs in it. */
export function openSandboxHands(options: SandboxHandsOptions): Hands {
  const roots = [options.folder, ...(options.readOnly ?? [])];
  const local = openLocalHands({ roots }); // knows names and schemas; runs no tool
  const { ask, end } = keepWorker(options, roots);
  let isClosed = false;
  return {
    ...local,
    async run(call, signal) {
      signal.throwIfAborted();
      if (isClosed) return failed("The session is ending; no tool runs any more.");
      if (!local.isRunnable(call)) return local.run(call, signal);
      const answer = await ask({ type: "run", call }, signal);
      if (answer.type === "output") return answer.output;
      signal.throwIfAborted();
      return failed(whyNothing(answer));
    },
    async preview(call) {
      if (isClosed || !local.isRunnable(call)) return null;
      const answer = await ask({ type: "preview", call });
      return answer.type === "preview" ? answer.patch : null;
    },
    async close() {
      isClosed = true;
      await end("the session ends");
    },
  };
}

/** One worker at most at any time: started when it is asked, ended when it is idle. */
function keepWorker(options: SandboxHandsOptions, roots: string[]) {
  const { folder, idleMs = 600_000, log = () => {} } = options;
  let current: Promise<Worker> | null = null;
  let past: Promise<void> = Promise.resolve();
  let note = "";
  let asking = 0;
  let idle: Timer | undefined;

  const start = async (): Promise<Worker> => {
    await past;
    const worker = new Worker(await startBubblewrap(options), (why) => {
      [current, past] = [null, worker.ended];
      if (worker.isReady) note = RESTARTED;
      log("sandbox ended", { folder, why });
    });
    log("sandbox started", { folder });
    worker.send({ type: "open", roots });
    return worker;
  };
  const giveUp = (error: unknown): never => {
    current = null;
    throw error;
  };
  const end = async (why: string): Promise<void> => {
    clearTimeout(idle);
    const worker = await current?.catch(() => null);
    await worker?.end(why);
    await past;
  };
  const ask = async (question: Question, signal?: AbortSignal): Promise<Answer> => {
    clearTimeout(idle);
    asking++;
    try {
      const worker = await (current ??= start().catch(giveUp));
      signal?.throwIfAborted();
      const answer = await worker.ask(question, signal);
      if (answer.type !== "output") return answer;
      const output = { ...answer.output, content: answer.output.content + note };
      note = "";
      return { ...answer, output };
    } catch (error) {
      signal?.throwIfAborted();
      return { type: "ended", isReady: false, why: messageOf(error) };
    } finally {
      if (--asking === 0) idle = setTimeout(() => void end("idle"), idleMs).unref();
    }
  };
  return { ask, end };
}

// ── What a model is told ────────────────────────────────────────────────────────────────────────

const RESTARTED =
  "\n\n[The sandbox was started anew since your last call. Background commands have ended, and a " +
  "file has to be Read again before it is changed.]";

function whyNothing(answer: Answer): string {
  const why = answer.type === "ended" ? answer.why : `it replied "${answer.type}"`;
  if (answer.type === "ended" && !answer.isReady)
    return `The sandbox could not start, so nothing ran. Tell the person: ${why}`;
  return (
    "The sandbox ended while this ran: its outcome is unknown, so look before you repeat it. " +
    `Background commands ended too; the next call starts a new sandbox. The cause: ${why}`
  );
}

const failed = (content: string): ToolOutput => ({ content, isError: true });

// ── bwrap ───────────────────────────────────────────────────────────────────────────────────────

/** All that a process inside knows of its environment; the folder is HOME besides. */
const ENV = {
  PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
  LANG: "C.UTF-8",
  TERM: "dumb",
  TMPDIR: "/tmp",
};
const INSIDE_BINARY = "/claw";

/** Started by root, bwrap keeps every capability but for --cap-drop and a user of its own. */
const WALLS =
  "--unshare-all --unshare-user --disable-userns --uid 1000 --gid 1000 --cap-drop ALL " +
  "--die-with-parent --new-session --hostname claw";

/** What programs need of /etc, as far as it is no secret anywhere (/etc/ssl/private would be). */
const ETC =
  "ld.so.cache ld.so.conf ld.so.conf.d alternatives ssl/certs ssl/openssl.cnf pki/tls/certs " +
  "pki/ca-trust/extracted ca-certificates/extracted localtime timezone nsswitch.conf mime.types " +
  "magic protocols services os-release fonts perl python3";

/** What is new in a sandbox. Memory file systems are bounded, for they are the machine's memory. */
const EMPTY =
  "--proc /proc --dev /dev --dir /run --symlink /tmp /var/tmp " +
  "--size 500000000 --tmpfs /dev/shm --size 500000000 --tmpfs /tmp";

/** Root's own /proc/sys stays writable to it, whatever capabilities it lacks. */
const CLOSED = "--remount-ro /proc --remount-ro /dev --remount-ro / --";

/** No core files, 1 GB a file, 4 GB a process, 512 processes (root's are not counted). sh's units. */
const LIMITS = "ulimit -c 0; ulimit -f 2000000; ulimit -d 4000000; ulimit -u 512 || ulimit -p 512";
const SHELL = ["/bin/sh", "-c", `{ ${LIMITS}; } 2>/dev/null; exec "$@"`, "sh"];

/** `mounts` are bwrap's options besides the system's own; `command` runs within the limits. */
function argvOf(bwrap: string, mounts: string[], command: string[]): string[] {
  const system = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"].flatMap(
    (path) => {
      const stats = lstatSync(path, { throwIfNoEntry: false });
      if (stats?.isSymbolicLink()) return ["--symlink", readlinkSync(path), path];
      return stats ? ["--ro-bind", path, path] : [];
    },
  );
  return [
    bwrap,
    ...WALLS.split(" "),
    ...system,
    ...ETC.split(" ").flatMap((name) => ["--ro-bind-try", `/etc/${name}`, `/etc/${name}`]),
    ...EMPTY.split(" "),
    ...mounts,
    ...CLOSED.split(" "),
    ...SHELL,
    ...command,
  ];
}

/** What programs ask of accounts and hosts; nothing of the machine's own is in it. */
const accountsOf = (home: string): [path: string, text: string][] => [
  ["/etc/passwd", `claw:x:1000:1000:claw:${home}:/bin/sh\n`],
  ["/etc/group", "claw:x:1000:\n"],
  ["/etc/hosts", "127.0.0.1 localhost claw\n::1 localhost\n"],
];

async function startBubblewrap(options: SandboxHandsOptions): Promise<Child> {
  const { folder, readOnly = [], hides, binary = process.execPath } = options;
  if (!options.binary && !Bun.main.startsWith("/$bunfs/"))
    throw new UsageError(
      `A sandbox needs the built executable, not ${binary}: run \`bun build.ts\`.`,
    );
  const bwrap = await findBubblewrap();
  // A link that was put in a folder's place would bind what it leads to.
  for (const path of [folder, ...readOnly])
    if ((await realpath(path)) !== path) throw new UsageError(`${path} is no real path.`);
  const folders = [["--bind", folder], ...readOnly.map((path) => ["--ro-bind", path])];
  const nested = folders.toSorted(([, one = ""], [, other = ""]) => one.length - other.length);
  const covers = hides
    ? await Promise.all(nested.map(([, path = ""]) => coversOf(path, hides)))
    : [];
  const accounts = accountsOf(folder);
  const mounts = [
    ...accounts.flatMap(([path], index) => ["--ro-bind-data", String(index + 3), path]),
    ...nested.flatMap(([how = "", path = ""]) => [how, path, path]),
    ...covers.flat(),
  ];
  mounts.push("--ro-bind", binary, INSIDE_BINARY, "--chdir", folder);
  const child = Bun.spawn(argvOf(bwrap, mounts, [INSIDE_BINARY, "hands"]), {
    env: { ...ENV, HOME: folder },
    detached: true, // Ctrl-C is for the host, which then ends its sandboxes in order.
    stdio: ["pipe", "pipe", "pipe", ...accounts.map(() => "pipe" as const)],
  });
  accounts.forEach(([, text], index) => {
    const pipe = child.stdio[index + 3];
    if (typeof pipe !== "number") return;
    try {
      writeSync(pipe, text);
    } catch {
      // bwrap has ended already: who waits for its worker is told why.
    }
    closeSync(pipe);
  });
  const { stdin, stdout, stderr, exited } = child;
  return { stdin, stdout, stderr, exited, kill: () => killInside(child) };
}

/** The kernel ends a process namespace with its first process, and bwrap waits for all of that. */
function killInside(child: Bun.Subprocess): void {
  try {
    const children = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8");
    process.kill(Number.parseInt(children, 10), "SIGKILL");
  } catch {
    child.kill("SIGKILL"); // It has nobody inside yet.
  }
}

/** Options that cover what `hides` names, and folders where one of these might be for all we see. */
async function coversOf(folder: string, hides: (path: string) => boolean): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch(() => null);
  if (!entries) return ["--tmpfs", folder];
  const covers: string[] = [];
  for (const entry of entries) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) covers.push(...(await coversOf(path, hides)));
    else if (entry.isFile() && hides(path)) covers.push("--ro-bind", "/dev/null", path);
  }
  return covers;
}

let found = "";

/** The path of a bwrap that can do all of the above here, tried once. A UsageError says the cure. */
export async function findBubblewrap(): Promise<string> {
  if (found) return found;
  const bwrap = process.platform === "linux" ? Bun.which("bwrap") : null;
  if (!bwrap) throw new UsageError(`There is no bwrap on this machine: ${INSTALL}, ${OR_NONE}`);
  const child = Bun.spawn(argvOf(bwrap, [], ["true"]), {
    env: ENV,
    stderr: "pipe",
    stdin: "ignore",
  });
  const complaint = await readStart(child.stderr);
  if ((await child.exited) === 0) return (found = bwrap);
  const cure = /unknown option/i.test(complaint) ? INSTALL : ALLOW;
  throw new UsageError(`${bwrap} does not work here (${complaint}): ${cure}, ${OR_NONE}`);
}

const INSTALL = "install the package bubblewrap (Linux; 0.8 or later)";
const ALLOW =
  "allow unprivileged user namespaces (`sysctl kernel.apparmor_restrict_unprivileged_userns=0` on " +
  "Ubuntu, `kernel.unprivileged_userns_clone=1` on Debian, `user.max_user_namespaces=10000`)";
const OR_NONE = "or name `--isolation none`, which runs tools without a sandbox.";
