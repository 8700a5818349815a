/**
 * Walls by bubblewrap (Linux): `bwrap … claw hands`, without a daemon or an image.
 *
 * Invariant: what runs inside sees the mounts it was given, the machine's programs and libraries
 * read-only, and nothing else of it: no network, process, variable, secret or capability. What is
 * seen is a positive list, and without a bwrap that does all of this nothing runs.
 */
import { closeSync, lstatSync, readlinkSync, writeSync } from "node:fs";
import { UsageError } from "../errors.ts";
import { identityOf, isAlive } from "../store/database.ts";
import { seccompFilter } from "./seccomp.ts";
import { type BareWalls, type Builder, INSIDE_BINARY, INSIDE_ENV, type Sandbox } from "./walls.ts";

/** Throws a UsageError that says the cure where there is no bwrap that can do it. */
export async function findBubblewrap(): Promise<Builder> {
  const bwrap = await locate();
  return {
    name: "bwrap",
    user: null,
    pollMs: 1000,
    prepare: async () => {},
    start: (walls) => start(bwrap, walls),
    find: async (mark) => (isAlive(mark.split(" ")[0] ?? "") ? found(mark) : null),
    list: async () => [], // nobody keeps one
  };
}

/** Started by root, bwrap keeps every capability but for --cap-drop and a user of its own. */
const WALLS =
  "--unshare-all --unshare-user --disable-userns --uid 1000 --gid 1000 --cap-drop ALL " +
  "--new-session --hostname claw";

/** What programs need of /etc, as far as it is no secret anywhere (/etc/ssl/private would be). */
const ETC =
  "ld.so.cache ld.so.conf ld.so.conf.d alternatives ssl/certs ssl/openssl.cnf pki/tls/certs " +
  "pki/ca-trust/extracted ca-certificates/extracted localtime timezone nsswitch.conf mime.types " +
  "magic protocols services os-release fonts perl python3";

/** Memory file systems are bounded, for they are the machine's memory. */
const emptyOf = (tmpBytes: number) =>
  "--proc /proc --dev /dev --dir /run --symlink /tmp /var/tmp " +
  `--size ${tmpBytes} --tmpfs /dev/shm --size ${tmpBytes} --tmpfs /tmp`;

/** Root's own /proc/sys stays writable to it, whatever capabilities it lacks. */
const CLOSED = "--remount-ro /proc --remount-ro /dev --remount-ro / --";

/** In sh's units: no core files, 1 GB a file, 4 GB a process; root's processes are not counted. */
const limitsOf = (pids: number) =>
  `ulimit -c 0; ulimit -f 2000000; ulimit -d 4000000; ulimit -u ${pids} || ulimit -p ${pids}`;

/** Nothing bounds their memory as a whole: when the machine has no more, they end, and not the host. */
const FIRST_TO_GO = 'echo 1000 > /proc/self/oom_score_adj; exec "$@"';

type Inside = {
  /** bwrap's options besides the system's own. */
  mounts: readonly string[];
  command: readonly string[];
  limits: Pick<BareWalls["limits"], "pids" | "tmpBytes">;
};

function argvOf(bwrap: string, { mounts, command, limits }: Inside): string[] {
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
    ...emptyOf(limits.tmpBytes).split(" "),
    ...mounts,
    ...CLOSED.split(" "),
    "/bin/sh",
    "-c",
    `{ ${limitsOf(limits.pids)}; } 2>/dev/null; exec "$@"`,
    "sh",
    ...command,
  ];
}

/** What programs ask of accounts and hosts; nothing of the machine's own is in it. */
const accountsOf = (home: string): [path: string, text: string][] => [
  ["/etc/passwd", `claw:x:1000:1000:claw:${home}:/bin/sh\n`],
  ["/etc/group", "claw:x:1000:\n"],
  ["/etc/hosts", "127.0.0.1 localhost claw\n::1 localhost\n"],
];

async function start(bwrap: string, walls: BareWalls): Promise<Sandbox> {
  const { folder, env, limits } = walls;
  const accounts = accountsOf(folder);
  const [infoAt, filterAt] = [3 + accounts.length, 4 + accounts.length];
  const mounts = [
    ...accounts.flatMap(([path], index) => ["--ro-bind-data", String(index + 3), path]),
    ...walls.mounts.flatMap(({ from, to, write }) => [write ? "--bind" : "--ro-bind", from, to]),
    ...walls.covers.flatMap((path) => ["--ro-bind", walls.emptyFile, path]),
    "--ro-bind",
    walls.binary,
    INSIDE_BINARY,
    ...`--info-fd ${infoAt} --seccomp ${filterAt} --chdir`.split(" "),
    folder,
    ...(walls.outlivesHost ? [] : ["--die-with-parent"]),
  ];
  const argv = argvOf(bwrap, { mounts, command: walls.command, limits });
  const child = Bun.spawn(["/bin/sh", "-c", FIRST_TO_GO, "sh", ...argv], {
    env: { ...INSIDE_ENV, ...env, HOME: folder },
    detached: true, // Ctrl-C is for the host, which then ends its sandboxes in order.
    stdio: ["ignore", "ignore", "pipe", ...accounts.map(() => "pipe" as const), "pipe", "pipe"],
  });
  accounts.forEach(([, text], index) => give(child.stdio[index + 3], Buffer.from(text)));
  give(child.stdio[filterAt], seccompFilter(process.arch === "arm64" ? "arm64" : "x64"));
  const complaint = readStart(child.stderr);
  const first = await readInfo(child.stdio[infoAt]);
  if (first === null)
    throw new Error((await complaint) || `bwrap ended with ${await child.exited}`);
  const mark = `${identityOf(child.pid)} ${identityOf(first)}`;
  // Whatever else was started inside may hold the pipe open.
  const said = Promise.race([complaint, child.exited.then(() => Bun.sleep(100))]);
  const ended = child.exited.then(async (code) => (await said) || `exit code ${code}`);
  return { ...found(mark), ended };
}

/**
 * A sandbox by its mark: bwrap, which ends with the worker, and the first process inside, with which
 * the kernel ends all others.
 */
function found(mark: string): Sandbox {
  const [bwrap = "", first = ""] = mark.split(" ");
  return {
    mark,
    cause: async () => (isAlive(bwrap) ? null : "it ended"),
    async kill() {
      // bwrap itself waits for ever for a first process that ended before its walls stood.
      for (const one of [first, bwrap])
        if (isAlive(one)) process.kill(Number.parseInt(one, 10), "SIGKILL");
      while (isAlive(first) || isAlive(bwrap)) await Bun.sleep(5);
    },
  };
}

/** The number of the first process inside; null: bwrap came to nothing. */
async function readInfo(pipe: unknown): Promise<number | null> {
  if (typeof pipe !== "number") return null;
  const text = await Bun.file(pipe).text();
  closeSync(pipe);
  const [, number] = /"child-pid": *(\d+)/.exec(text) ?? [];
  return number === undefined ? null : Number(number);
}

/** Writes to a descriptor that bwrap reads at its start. */
function give(pipe: unknown, data: Uint8Array): void {
  if (typeof pipe !== "number") return;
  try {
    writeSync(pipe, data);
  } catch {
    // bwrap has ended already: who waits for its worker is told why.
  }
  closeSync(pipe);
}

let known = "";

/** The path of a bwrap that can do all of the above here, tried once. */
async function locate(): Promise<string> {
  if (known) return known;
  const bwrap = process.platform === "linux" ? Bun.which("bwrap") : null;
  if (!bwrap) throw new UsageError(`There is no bwrap on this machine: ${INSTALL}, ${OR_NONE}`);
  const limits = { pids: 256, tmpBytes: 1_000_000 };
  const child = Bun.spawn(argvOf(bwrap, { mounts: [], command: ["true"], limits }), {
    env: INSIDE_ENV,
    stderr: "pipe",
    stdin: "ignore",
  });
  const complaint = await readStart(child.stderr);
  if ((await child.exited) === 0) return (known = bwrap);
  const cure = /unknown option/i.test(complaint) ? INSTALL : ALLOW;
  throw new UsageError(`${bwrap} does not work here (${complaint}): ${cure}, ${OR_NONE}`);
}

/** The first line with a word on a stream, once that has ended; bounded, and without controls. */
async function readStart(stream: ReadableStream<Uint8Array>): Promise<string> {
  let start = "";
  for await (const chunk of stream)
    if (start.length < 1000) start += Buffer.from(chunk.subarray(0, 1000)).toString();
  const line = start.split("\n").find((one) => /\p{L}/u.test(one)) ?? "";
  return line.replaceAll(/[^\P{C}]/gu, " ").slice(0, 300);
}

const INSTALL = "install the package bubblewrap (Linux; 0.8 or later)";
const ALLOW =
  "allow unprivileged user namespaces (`sysctl kernel.apparmor_restrict_unprivileged_userns=0` on " +
  "Ubuntu, `kernel.unprivileged_userns_clone=1` on Debian, `user.max_user_namespaces=10000`)";
const OR_NONE = "or name `--isolation none`, which runs tools without a sandbox.";
