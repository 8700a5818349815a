/** The filter of system calls: its numbers, its verdicts on both machines, and the kernel's. */
import { afterAll, describe, expect, it, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeSync } from "node:fs";
import { closeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Arch, filteredCalls, seccompFilter } from "../src/hands/seccomp.ts";
import { binary } from "./claw.ts";

const [ALLOW, KILL] = [0x7fff0000, 0x80000000];
const [EPERM, ENOSYS, EPROTONOSUPPORT, EAFNOSUPPORT] = [1, 38, 93, 97];
const machines = { x64: 0xc000003e, arm64: 0xc00000b7 };
const arches: Arch[] = ["x64", "arm64"];

// ── Numbers ─────────────────────────────────────────────────────────────────────────────────────

const headers: Record<Arch, string[]> = {
  x64: ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"],
  arm64: ["/usr/include/asm-generic/unistd.h"],
};

for (const arch of arches) {
  const header = headers[arch].find((path) => existsSync(path));
  if (!header) console.error(`Numbers of ${arch} are not checked: install linux-libc-dev.`);

  test.skipIf(!header)(`numbers of ${arch} are the kernel's`, () => {
    const lines = readFileSync(header ?? "", "utf8").matchAll(
      /^#define __NR(?:3264)?_(\w+)\s+(\d+)/gm,
    );
    const kernel = new Map([...lines].map(([, name = "", number]) => [name, Number(number)]));
    const calls = [...filteredCalls(arch)];
    expect(calls.length).toBeGreaterThan(60);
    expect(calls.filter(([name, number]) => kernel.get(name) !== number)).toEqual([]);
    const left = [...filteredCalls(arch === "x64" ? "arm64" : "x64").keys()];
    const known = new Set(calls.map(([name]) => name));
    expect(left.filter((name) => kernel.has(name) && !known.has(name))).toEqual([]);
  });
}

// ── Verdicts, by the rules of linux/filter.h ────────────────────────────────────────────────────

type Call = { number: number; machine?: number; args?: (number | bigint)[] };

/** What the kernel's interpreter makes of a program. */
function run(program: Uint8Array, { number, machine = 0, args = [] }: Call): number {
  const data = new DataView(new ArrayBuffer(64));
  data.setInt32(0, number, true);
  data.setUint32(4, machine, true);
  args.forEach((value, index) => data.setBigUint64(16 + 8 * index, BigInt(value), true));
  const code = new DataView(program.buffer);
  let a = 0;
  for (let at = 0; at < program.length; at += 8) {
    const [op, k] = [code.getUint16(at, true), code.getUint32(at + 4, true)];
    const jump = (holds: boolean) => (at += 8 * code.getUint8(at + (holds ? 2 : 3)));
    if (op === 0x20) a = data.getUint32(k, true);
    else if (op === 0x54) a = (a & k) >>> 0;
    else if (op === 0x15) jump(a === k);
    else if (op === 0x25) jump(a > k);
    else if (op === 0x45) jump((a & k) !== 0);
    else if (op === 0x06) return k;
    else throw new Error(`code ${op}`);
  }
  throw new Error("no verdict");
}

const verdicts: [call: string, args: (number | bigint)[], errno: number][] = [
  ["socket", [1, 1, 0], 0],
  ["socket", [1, 5, 0], 0],
  ["socket", [2, 1, 0], 0],
  ["socket", [2, 1 | 0x80800, 6], 0],
  ["socket", [10, 2 | 0x80000, 17], 0],
  ["socket", [10, 2, 0], 0],
  ["socket", [2, 3, 1], EPERM],
  ["socket", [2, 3 | 0x80000, 255], EPERM],
  ["socket", [2, 10, 3], EPERM],
  ["socket", [10, 5, 132], EPERM],
  ["socket", [2, 1, 132], EPROTONOSUPPORT],
  ["socket", [2, 1, 262], EPROTONOSUPPORT],
  ["socket", [2, 2, 1], EPROTONOSUPPORT],
  ["socket", [16, 3, 0], 0],
  ["socket", [16, 3, 9], EPROTONOSUPPORT],
  ["socket", [16, 3, 12], EPROTONOSUPPORT],
  ...[0, 3, 4, 9, 15, 17, 21, 29, 30, 31, 38, 40, 41, 43, 44, 0xffffffff].map(
    (family): [string, number[], number] => ["socket", [family, 2, 0], EAFNOSUPPORT],
  ),
  // The kernel looks at an int: what stands above it makes no difference.
  ["socket", [0x1_0000_0001n, 1, 0], 0],
  ["socket", [0x1_0000_0028n, 1, 0], EAFNOSUPPORT],
  ["socketpair", [1, 1, 0], 0],
  ["socketpair", [30, 1, 0], EAFNOSUPPORT],
  ["ioctl", [0, 0x5401], 0],
  ["ioctl", [0, 0x5413], 0],
  ["ioctl", [0, 0x5412], EPERM],
  ["ioctl", [0, 0x541c], EPERM],
  ["ioctl", [0, 0x5423], EPERM],
  ["ioctl", [0, 0x1_0000_5412n], EPERM],
  ["ioctl", [0x5412, 0x5401], 0],
  ["clone", [17], 0],
  ["clone", [0x3d0f00], 0],
  ["clone", [0x4111], 0],
  ...[17, 25, 26, 27, 28, 29, 30].map((bit): [string, bigint[], number] => [
    "clone",
    [17n | (1n << BigInt(bit))],
    EPERM,
  ]),
  ["personality", [0], 0],
  ["personality", [0xffffffff], 0],
  ["personality", [0x40000], EPERM],
  ["personality", [0x0400000], EPERM],
  ["clone3", [0, 0], ENOSYS],
  ["io_uring_setup", [], ENOSYS],
  ["unshare", [0], EPERM],
];

describe.each(arches)("the filter of %s", (arch) => {
  const program = seccompFilter(arch);
  const machine = machines[arch];
  const numbers = filteredCalls(arch);
  const judge = (number: number, args: (number | bigint)[] = []) =>
    run(program, { number, machine, args });

  it("judges arguments", () => {
    const wrong = verdicts.filter(
      ([name, args, errno]) =>
        judge(numbers.get(name) ?? -1, args) !== (errno ? 0x50000 + errno : ALLOW),
    );
    expect(wrong).toEqual([]);
  });

  it("refuses what Docker's default profile gives to privileged containers only", () => {
    const names =
      "bpf clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr " +
      "move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns " +
      "syslog umount2 unshare reboot chroot delete_module init_module finit_module acct kcmp " +
      "pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace settimeofday " +
      "clock_settime vhangup get_mempolicy mbind set_mempolicy set_mempolicy_home_node " +
      "open_by_handle_at add_key request_key keyctl userfaultfd io_uring_setup pivot_root swapon " +
      "kexec_load kexec_file_load io_uring_enter io_uring_register";
    expect(names.split(" ").filter((name) => judge(numbers.get(name) ?? 0) === ALLOW)).toEqual([]);
  });

  it("refuses what it lists and nothing else that it knows", () => {
    const judged = ["ioctl", "clone", "socket", "socketpair", "personality"];
    const refused = [...numbers].filter(([name]) => !judged.includes(name));
    const allowed = refused.filter(([, number]) => judge(number) === ALLOW);
    expect(allowed).toEqual([]);
    const all = Array.from({ length: 463 }, (_, number) => number);
    const no = new Set(numbers.values());
    expect(all.filter((number) => !no.has(number) && judge(number) !== ALLOW)).toEqual([]);
  });

  it("has no call that is newer, of x32, or of another machine", () => {
    for (const number of [463, 469, 512, 521, 547, 0x40000000, 0x40000065, -1])
      expect(judge(number)).toBe(0x50000 + ENOSYS);
    const other = machines[arch === "x64" ? "arm64" : "x64"];
    for (const machine of [0, 0x40000003, 0x40000028, other])
      for (const number of [0, 1, 463]) expect(run(program, { number, machine })).toBe(KILL);
  });

  it("is a program that the kernel takes", () => {
    expect(program.length % 8).toBe(0);
    expect(program.length / 8).toBeLessThanOrEqual(4096); // BPF_MAXINSNS
  });
});

// ── The kernel ──────────────────────────────────────────────────────────────────────────────────

const arch = process.arch === "arm64" ? "arm64" : "x64";
const missing =
  process.platform !== "linux" || !Bun.which("bwrap")
    ? "no bwrap here"
    : existsSync("/usr/bin/python3")
      ? null
      : "no /usr/bin/python3 here";
if (missing !== null) console.error(`Tests of the filter in the kernel are skipped: ${missing}.`);

const folder = mkdtempSync(join(tmpdir(), "claw-seccomp-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const WALLS =
  "--unshare-all --unshare-user --disable-userns --uid 1000 --gid 1000 --cap-drop ALL " +
  "--die-with-parent --new-session --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp";
const OWN = ["--bind", folder, folder, "--chdir", folder, "--ro-bind", binary, "/tmp/claw"];

/** Runs a command under bwrap, with the filter or without it. */
async function inside(command: string[], filter: Uint8Array | null = seccompFilter(arch)) {
  const child = Bun.spawn(
    ["bwrap", ...WALLS.split(" "), ...OWN, ...(filter ? ["--seccomp", "3"] : []), "--", ...command],
    {
      env: { PATH: "/usr/local/bin:/usr/bin:/bin", HOME: folder, LANG: "C.UTF-8", TMPDIR: folder },
      stdio: ["ignore", "pipe", "pipe", "pipe"],
    },
  );
  const pipe = child.stdio[3];
  if (typeof pipe !== "number") throw new Error("no pipe");
  if (filter) writeSync(pipe, filter);
  closeSync(pipe);
  const [stdout, stderr, code] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { stdout, stderr, code };
}

const python = (script: string, filter?: Uint8Array | null) =>
  inside(["/usr/bin/python3", "-c", script], filter);

/** Makes calls by number, all in a process of its own, and prints each one's errno as JSON. */
const caller = (calls: [name: string, number: number, args: number[]][]) => `
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
out = {}
for name, number, args in json.loads('${JSON.stringify(calls)}'):
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args])
    out[name] = ctypes.get_errno() if answer == -1 else 0
print(json.dumps(out))
`;

describe.skipIf(missing !== null)("under bwrap", () => {
  const numbers = filteredCalls(arch);
  const number = (name: string) => numbers.get(name) ?? -1;
  const judged = ["ioctl", "clone", "socket", "socketpair", "personality"];
  /** Arguments that no call accepts, so that those which get through do nothing. */
  const bad = [-1, -1, -1, -1, -1, -1];

  it("every listed call is refused, and most would be let in without the filter", async () => {
    const names = [...numbers.keys()].filter((name) => !judged.includes(name));
    const script = caller(names.map((name) => [name, number(name), bad]));
    const { stdout, stderr } = await python(script);
    expect(stderr).toBe("");
    const refused: Record<string, number> = JSON.parse(stdout);
    const wanted = names.map((name) => [name, /^(clone3|io_uring)/.test(name) ? ENOSYS : EPERM]);
    expect(refused).toEqual(Object.fromEntries(wanted));

    const open: Record<string, number> = JSON.parse((await python(script, null)).stdout);
    const reachable = names.filter((name) => open[name] !== refused[name] && open[name] !== ENOSYS);
    const some =
      "ptrace process_vm_readv kcmp pidfd_getfd keyctl add_key unshare setns mount clone3";
    for (const name of some.split(" ")) expect(reachable).toContain(name);
    expect(reachable.length).toBeGreaterThan(25);
  }, 20_000);

  it("arguments decide in the kernel as they do above", async () => {
    const calls: [string, number, number[]][] = [
      ["tcp", number("socket"), [2, 1, 6]],
      ["udp6", number("socket"), [10, 2, 0]],
      ["unix", number("socket"), [1, 1, 0]],
      ["route", number("socket"), [16, 3, 0]],
      ["uevent", number("socket"), [16, 3, 15]],
      ["packet", number("socket"), [17, 3, 0]],
      ["raw", number("socket"), [2, 3, 1]],
      ["alg", number("socket"), [38, 5, 0]],
      ["vsock", number("socket"), [40, 1, 0]],
      ["sti", number("ioctl"), [0, 0x5412, 0]],
      ["setd", number("ioctl"), [0, 0x5423, 0]],
      ["newuser", number("clone"), [0x10000000, 0, 0, 0, 0]],
      ["norandomize", number("personality"), [0x40000]],
      ["linux", number("personality"), [0]],
      ["x32", 0x40000000 + 39, []],
      ["unheard of", 463, bad],
    ];
    const kernel = JSON.parse((await python(caller(calls))).stdout);
    const passed = { tcp: 0, udp6: 0, unix: 0, route: 0, linux: 0 };
    const sockets = { packet: EAFNOSUPPORT, alg: EAFNOSUPPORT, vsock: EAFNOSUPPORT, raw: EPERM };
    const others = { sti: EPERM, setd: EPERM, newuser: EPERM, norandomize: EPERM, x32: ENOSYS };
    const odd = { uevent: EPROTONOSUPPORT, "unheard of": ENOSYS };
    expect(kernel).toEqual({ ...passed, ...sockets, ...others, ...odd });
    const open = JSON.parse((await python(caller(calls), null)).stdout);
    expect(open).toMatchObject({ uevent: 0, norandomize: 0 });
    for (const name of ["sti", "setd", "newuser"]) expect(open[name]).not.toBe(EPERM);
  });

  it("another machine's call ends the process", async () => {
    // mov eax, 20 (getpid of i386); int 0x80; ret
    const script = `
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())`;
    if (arch !== "x64") return;
    expect((await python(script)).code).toBe(128 + 31); // SIGSYS
  });

  it("is in force for every process, for good", async () => {
    const { stdout } = await inside([
      "/bin/sh",
      "-c",
      "cat /proc/1/status; sh -c 'cat /proc/self/status'",
    ]);
    expect(stdout.match(/^Seccomp:\s+\d/gm)).toEqual(["Seccomp:\t2", "Seccomp:\t2"]);
    expect(stdout.match(/^NoNewPrivs:\s+\d/gm)).toEqual(["NoNewPrivs:\t1", "NoNewPrivs:\t1"]);
    const without = await inside(["cat", "/proc/self/status"], null);
    expect(without.stdout).toContain("Seccomp:\t0");
  });

  it("without a program that it can read, bwrap starts nothing", async () => {
    const { code, stdout } = await inside(["echo", "ran"], new Uint8Array(7));
    expect({ code: code !== 0, stdout }).toEqual({ code: true, stdout: "" });
  });
});

// ── What people do in there ─────────────────────────────────────────────────────────────────────

const serve = `
  const server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response("pong") });
  const text = await (await fetch(server.url)).text();
  const unix = Bun.serve({ unix: "./bun.sock", fetch: () => new Response("unix") });
  const other = await (await fetch("http://x/", { unix: "./bun.sock" })).text();
  const child = Bun.spawnSync(["sh", "-c", "echo child | cat"]);
  const worker = new Worker("data:text/javascript,postMessage('worker')");
  const word = await new Promise((done) => (worker.onmessage = (event) => done(event.data)));
  console.log(text, other, child.stdout.toString().trim(), word,
    Object.keys(require("os").networkInterfaces()).join());
  process.exit(0);`;
const node = `
  const http = require("http"), { Worker } = require("worker_threads");
  const server = http.createServer((_, reply) => reply.end("pong")).listen(0, "localhost", async () => {
    const text = await (await fetch("http://localhost:" + server.address().port)).text();
    const child = require("child_process").execSync("echo child").toString().trim();
    new Worker("require('worker_threads').parentPort.postMessage('worker')", { eval: true })
      .on("message", (word) => {
        console.log(text, child, word, Object.keys(require("os").networkInterfaces()).join());
        process.exit(0);
      });
  });`;
const threads = `
import socket, subprocess, threading, multiprocessing, os, asyncio, tempfile
def serve(listener):
    peer, _ = listener.accept(); peer.sendall(b"pong"); peer.close()
words = []
for family, name in [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, "python.sock")]:
    with socket.socket(family) as listener:
        listener.bind(name); listener.listen()
        thread = threading.Thread(target=serve, args=(listener,)); thread.start()
        with socket.socket(family) as peer:
            peer.connect(listener.getsockname()); words.append(peer.recv(9).decode())
        thread.join()
words.append(subprocess.run(["echo", "child"], capture_output=True, text=True).stdout.strip())
with multiprocessing.Pool(2) as pool: words.append(str(sum(pool.map(abs, [-1, -2]))))
words.append(asyncio.run(asyncio.sleep(0, "async")))
words.append(str(socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)[0][4][1]))
print(*words)`;
const c = `
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static void *in_thread(void *word) { printf("%s\\n", (char *)word); return 0; }
int main(void) {
  pthread_t thread;
  pthread_create(&thread, 0, in_thread, "thread");
  pthread_join(thread, 0);
  fflush(stdout);
  if (fork() == 0) { printf("fork\\n"); return 0; }
  return wait(0) > 0 ? 0 : 1;
}`;
const git = `git init -q r && cd r && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m one &&
  cd .. && git clone -q r s && git -C s log --format=%s`;
const npm = `mkdir p && cd p && echo '{"name":"p","version":"1.0.0","scripts":{"hi":"echo hello"}}' > package.json &&
  npm run -s hi && npm pack --silent --offline`;
const compile = `printf '%s' "$0" > t.c && gcc -O1 -pthread t.c -o t && ./t`;
const pty = `import pty; print(pty.spawn(["sh", "-c", "stty size >/dev/null && tty"]))`;

const programs: [name: string, needs: string, command: string[], says: RegExp][] = [
  ["claw", "sh", ["/tmp/claw", "--version"], /^\S*\s?\d+\.\d+/],
  [
    "bun",
    "sh",
    ["sh", "-c", 'BUN_BE_BUN=1 exec /tmp/claw -e "$0"', serve],
    /^pong unix child worker lo\n$/,
  ],
  ["node", "node", ["node", "-e", node], /^pong child worker lo\n$/],
  ["npm", "npm", ["sh", "-c", npm], /^hello\np-1.0.0.tgz\n$/],
  ["python3", "python3", ["/usr/bin/python3", "-c", threads], /^pong pong child 3 async 80\n$/],
  ["a terminal", "python3", ["/usr/bin/python3", "-c", pty], /^\/dev\/pts\/\d+\s+0\s+$/],
  ["git", "git", ["sh", "-c", git], /^one\n$/],
  ["gcc", "gcc", ["sh", "-c", compile, c], /^thread\nfork\n$/],
  ["curl", "curl", ["curl", "-sS", "file:///proc/self/comm"], /^curl\n$/],
];

for (const [name, needs, command, says] of programs) {
  const isHere = missing === null && Bun.which(needs, { PATH: "/usr/local/bin:/usr/bin:/bin" });
  if (missing === null && !isHere) console.error(`${name} is not tried: it is not here.`);
  test.skipIf(!isHere)(
    `${name} works under the filter`,
    async () => {
      const { stdout, stderr } = await inside(command);
      expect(stdout + stderr).toMatch(says);
    },
    30_000,
  );
}
