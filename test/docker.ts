/**
 * A real docker engine for tests: the machine's own where one answers, else Debian's `dockerd` on a
 * private socket, in a fixed folder under the system's temp folder, so that the test image is made
 * once and not in each run. Everybody who uses the engine has a file in `users`; `bun test/docker.ts`
 * (the keeper, started by the first) ends it when no file of a living process is left.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export type Docker = {
  /** For DOCKER_HOST. */
  host: string;
  /** Of container/make-image. */
  image: string;
  /** Whether it knows the runtime "runsc". */
  hasRunsc: boolean;
  stop(): Promise<void>;
};

const container = join(import.meta.dir, "../container");
const makeImage = join(container, "make-image");
const image = `claw-test:${Bun.hash(
  readFileSync(makeImage, "utf8") + readFileSync(join(container, "Containerfile"), "utf8"),
).toString(16)}`;

const base = join(tmpdir(), `claw-test-docker-${process.getuid?.() ?? 0}`);
const [users, lock, log] = ["users", "lock", "dockerd.log"].map((name) => join(base, name)) as [
  string,
  string,
  string,
];
const ownHost = `unix://${join(base, "docker.sock")}`;
const PATH = `${process.env["PATH"]}:/usr/sbin:/sbin`;

const needs = ["docker", "dockerd", "debootstrap"].filter((name) => !Bun.which(name, { PATH }));
/** Why there is no engine for tests here; null: there is one. */
export const dockerMissing =
  process.getuid?.() !== 0
    ? "only root starts a docker engine and makes its image"
    : needs.length > 0
      ? `this machine has no ${needs.join(", no ")}`
      : null;

/** Starts it, or joins those who use it; makes the image where it is not there yet. */
export async function startDocker(): Promise<Docker> {
  if (dockerMissing) throw new Error(`No docker for tests: ${dockerMissing}.`);
  const theirs = process.env["DOCKER_HOST"] ?? "unix:///var/run/docker.sock";
  const host = (await docker(theirs, "version")).code === 0 ? theirs : ownHost;
  mkdirSync(users, { recursive: true, mode: 0o700 });
  const user = join(users, `${process.pid}.${crypto.randomUUID()}`);
  await withLock(async () => {
    writeFileSync(user, "");
    if (host === ownHost && (await docker(host, "version")).code !== 0) await startKeeper();
    if ((await docker(host, "image", "inspect", image)).code === 0) return;
    const env = { PATH, DOCKER_HOST: host, HOME: base };
    const made = await run([makeImage, image], env);
    if (made.code !== 0) throw new Error(`The test image was not made: ${made.text.slice(-2000)}`);
  });
  const { text } = await docker(host, "info", "--format", "{{json .Runtimes}}");
  const stop = async (): Promise<void> => {
    rmSync(user, { force: true });
    if (host !== ownHost || living().length > 0) return;
    while (existsSync(join(base, "keeper.pid"))) await Bun.sleep(20);
  };
  return { host, image, hasRunsc: text.includes('"runsc"'), stop };
}

/** Gives podman docker's image, in a store of its own; what podman notes of a run goes to `folder`. */
export async function lendToPodman({ image, host }: Docker, folder: string): Promise<void> {
  const store = join(tmpdir(), "claw-test-podman");
  const file = join(folder, "storage.conf");
  const lines = `driver = "overlay"\ngraphroot = "${store}"\nrunroot = "${folder}"`;
  writeFileSync(file, `[storage]\n${lines}\n`);
  process.env["CONTAINERS_STORAGE_CONF"] = file;
  const { exitCode } = await Bun.$`podman image exists ${image}`.quiet().nothrow();
  if (exitCode === 0) return;
  const env = { ...process.env, DOCKER_HOST: host };
  await Bun.$`docker save ${image} | podman load`.env(env).quiet();
}

async function run(argv: string[], env: Record<string, string>) {
  const child = Bun.spawn(argv, { env, stdio: ["ignore", "pipe", "pipe"] });
  const texts = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, text: texts.join("") };
}

const docker = (host: string, ...argv: string[]) =>
  run(["docker", ...argv], { PATH, DOCKER_HOST: host, DOCKER_CONFIG: base });

/** The files of processes that live; others' are removed. */
const living = (): string[] =>
  readdirSync(users).filter((name) => {
    if (isAlive(Number.parseInt(name, 10))) return true;
    rmSync(join(users, name), { force: true });
    return false;
  });

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false; // It has ended.
  }
}

/** One process at a time starts, makes or ends; the lock of a dead one is broken. */
async function withLock(work: () => Promise<void>): Promise<void> {
  for (;;)
    try {
      mkdirSync(lock);
      break;
    } catch {
      // Somebody has it: a living process, one that died with it, or one that just took it.
      const holder = existsSync(join(lock, "pid")) ? readFileSync(join(lock, "pid"), "utf8") : "";
      if (holder && !isAlive(Number(holder))) rmSync(lock, { recursive: true, force: true });
      await Bun.sleep(100);
    }
  try {
    writeFileSync(join(lock, "pid"), String(process.pid));
    await work();
  } finally {
    rmSync(lock, { recursive: true, force: true });
  }
}

async function startKeeper(): Promise<void> {
  const keeper = Bun.spawn([process.execPath, import.meta.path], {
    env: { PATH, HOME: base },
    stdio: ["ignore", Bun.file(log), Bun.file(log)],
    detached: true,
  });
  keeper.unref();
  for (const endsAt = Date.now() + 60_000; Date.now() < endsAt; await Bun.sleep(50)) {
    if ((await docker(ownHost, "version")).code === 0) return;
    if (keeper.exitCode !== null) break;
  }
  throw new Error(`dockerd did not start: ${readFileSync(log, "utf8").slice(-2000)}`);
}

// ── The keeper ──────────────────────────────────────────────────────────────────────────────────

/** No network is made: containers here have none, and the machine's firewall is left alone. */
function writeConfig(): string {
  const wrapper = join(base, "runsc");
  const runsc = Bun.which("runsc", { PATH });
  const script = `#!/bin/sh\nexec ${runsc} --network=none --host-uds=open "$@"\n`;
  if (runsc) writeFileSync(wrapper, script, { mode: 0o755 });
  const path = join(base, "daemon.json");
  const config = {
    hosts: [ownHost],
    "data-root": join(base, "data"),
    "exec-root": join(base, "exec"),
    pidfile: join(base, "docker.pid"),
    bridge: "none",
    iptables: false,
    ip6tables: false,
    "ip-forward": false,
    ...(runsc && { runtimes: { runsc: { path: wrapper } } }),
  };
  writeFileSync(path, JSON.stringify(config));
  return path;
}

async function keep(): Promise<void> {
  const pidfile = join(base, "keeper.pid");
  writeFileSync(pidfile, String(process.pid));
  process.on("SIGINT", () => {}); // Ctrl-C ends the tests, whose end ends this.
  rmSync(join(base, "docker.pid"), { force: true }); // of one that was killed
  const engine = Bun.spawn(["dockerd", "--config-file", writeConfig()], {
    env: { PATH, HOME: base },
    stdio: ["ignore", "inherit", "inherit"],
  });
  while (engine.exitCode === null) {
    await Promise.race([Bun.sleep(200), engine.exited]);
    if (living().length > 0) continue;
    await withLock(async () => {
      if (living().length > 0) return;
      const { text } = await docker(ownHost, "ps", "--all", "--quiet");
      const left = text.split("\n").filter(Boolean);
      if (left.length > 0) await docker(ownHost, "rm", "--force", "--volumes", ...left);
      await docker(ownHost, "image", "prune", "--force"); // builds that failed on purpose
      engine.kill();
      await engine.exited;
      rmSync(pidfile, { force: true });
    });
  }
  rmSync(pidfile, { force: true });
}

if (import.meta.main) await keep();
