/** The walls that can be taken away one by one, and what is then seen from inside. */

/** `find`: what stands in the arguments, each word a pattern; `put`: what stands there instead. */
export type Guard = {
  name: string;
  find: string[];
  put?: string[];
  probe: string;
  /** What the probe prints where the guard is gone, and only there. */
  open: RegExp;
};

/** The test listens where this leads to. */
export const listener = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response() });
const reach = `(: < /dev/tcp/127.0.0.1/${listener.port}) 2>/dev/null && echo reached`;
const python = (body: string) => `python3 -c '${body}' 2>&1`;
const call = (...numbers: number[]) =>
  python(`import ctypes; print("came to", ctypes.CDLL(None).syscall(${numbers.join(", ")}))`);
const processes = python(`
import glob
print([open(path).read() for path in glob.glob("/proc/[0-9]*/cmdline") if "c" "anary-argv" in open(path).read()])`);
const unshared = (less: string) =>
  "--unshare-user --unshare-pid --unshare-ipc --unshare-uts --unshare-net --unshare-cgroup-try"
    .split(" ")
    .filter((flag) => flag !== less);
const fill = "head -c 60000000 /dev/zero > /tmp/x && echo filled";
const forks = python(`
import os, signal
children = []
try:
  for _ in range(300):
    child = os.fork()
    if child == 0: signal.pause()
    children.append(child)
except OSError: pass
print("forks", len(children))
for child in children: os.kill(child, 9)`);

const bubblewrap: Guard[] = [
  {
    name: "no network",
    find: ["--unshare-all"],
    put: unshared("--unshare-net"),
    probe: reach,
    open: /reached/,
  },
  {
    name: "no processes of others",
    find: ["--unshare-all"],
    put: unshared("--unshare-pid"),
    probe: processes,
    open: /canary-argv/,
  },
  {
    name: "a covered file",
    find: ["--ro-bind", ".*/empty", ".*/\\.env"],
    probe: "cat .env",
    open: /canary-hidden/,
  },
  {
    name: "a read-only root",
    find: ["--remount-ro", "/"],
    probe: ": > /new && echo made",
    open: /made/,
  },
  {
    name: "a read-only mailbox",
    find: ["--ro-bind", ".*/in", "/box/in"],
    put: ["--bind", "$2", "$3"],
    probe: "[ -w /box/in ] && echo writable",
    open: /writable/,
  },
  {
    name: "a read-only claw",
    find: ["--ro-bind", ".*claw", "/opt/claw/bin/claw"],
    put: ["--bind", "$2", "$3"],
    probe: "[ -w /opt/claw/bin/claw ] && echo writable",
    open: /writable/,
  },
  {
    name: "a bound of /tmp",
    find: ["--size", "\\d+", "--tmpfs", "/tmp"],
    put: ["--tmpfs", "/tmp"],
    probe: fill,
    open: /filled/,
  },
  {
    name: "the filter of system calls",
    find: ["--seccomp", "\\d+"],
    probe: call(250, 0, -3, 1),
    open: /came to \d/,
  },
  {
    name: "a bound of a process's memory",
    find: [".*ulimit -d.*"],
    put: ['exec "$@"'],
    probe: python(
      "import mmap; print(len(mmap.mmap(-1, 5_000_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))",
    ),
    open: /^5000000000/,
  },
];
// Where root starts it, and only there, bubblewrap leaves these to whoever is inside.
const ofRoot: Guard[] = [
  {
    name: "read-only programs",
    find: ["--ro-bind", "/usr", "/usr"],
    put: ["--bind", "/usr", "/usr"],
    probe: "[ -w /usr ] && echo writable",
    open: /writable/,
  },
  {
    name: "no capability to be had",
    find: ["--cap-drop", "ALL"],
    probe: "grep CapBnd /proc/self/status",
    open: /:\t0*[1-9a-f]/,
  },
  {
    name: "a read-only /proc",
    find: ["--remount-ro", "/proc"],
    probe: ": >> /proc/sys/kernel/core_pattern && echo opened",
    open: /opened/,
  },
];

const containers: Guard[] = [
  {
    name: "no network",
    find: ["--network", "none"],
    put: ["--network", "host"],
    probe: reach,
    open: /reached/,
  },
  {
    name: "a covered file",
    find: ["--mount", ".*,dst=.*/\\.env,readonly.*"],
    probe: "cat .env",
    open: /canary-hidden/,
  },
  {
    name: "no capability to be had",
    find: ["--cap-drop", "ALL"],
    probe: "grep CapBnd /proc/self/status",
    open: /:\t0*[1-9a-f]/,
  },
  {
    name: "no new privileges",
    find: ["--security-opt", "no-new-privileges"],
    probe: "grep NoNewPrivs /proc/self/status",
    open: /NoNewPrivs:\t0/,
  },
  {
    name: "the filter of system calls",
    find: ["--security-opt", "no-new-privileges"],
    put: ["$1", "$2", "$1", "seccomp=unconfined"],
    probe: "unshare -U true && echo unshared",
    open: /unshared/,
  },
  {
    name: "a read-only root",
    find: ["--read-only"],
    probe: ": > /var/tmp/new && echo made",
    open: /made/,
  },
  {
    name: "a read-only mailbox",
    find: ["--mount", "(.*,dst=/box/in),readonly(.*)"],
    put: ["--mount", "$2"],
    probe: "grep ' /box/in rw' /proc/mounts || grep -o ' /box/in [^ ]* rw' /proc/mounts",
    open: /rw/,
  },
  {
    name: "a bound of /tmp",
    find: ["--tmpfs", "(/tmp:.*),size=\\d+"],
    put: ["--tmpfs", "$2"],
    probe: fill,
    open: /filled/,
  },
  { name: "a bound of processes", find: ["--pids-limit", "\\d+"], probe: forks, open: /forks 300/ },
  {
    name: "a bound of memory",
    find: ["--memory", "\\d+b", "--memory-swap", "\\d+b"],
    probe: python(`x = bytearray(b"x") * 600_000_000; print("has", len(x))`),
    open: /has 600000000/,
  },
  { name: "no core files", find: ["--ulimit", "core=0:0"], probe: "ulimit -Hc", open: /unlimited/ },
  {
    name: "a bound of open files",
    find: ["--ulimit", "nofile=.*"],
    probe: "ulimit -Hn",
    open: /\d{5}/,
  },
  {
    name: "no cgroups of others",
    find: ["--cgroupns", "private"],
    put: ["--cgroupns", "host"],
    probe: "cat /proc/self/cgroup",
    open: /docker/,
  },
  {
    name: "no memory shared with others",
    find: ["--ipc", "private"],
    put: ["--ipc", "host"],
    probe: "ls -l /proc/self/ns/ipc",
    open: new RegExp(ipcOfHost()),
  },
  {
    name: "none of the client's proxies",
    find: ["--env", "HTTP_PROXY"],
    probe: "env | grep HTTP_PROXY",
    open: /canary-home/,
  },
];

function ipcOfHost(): string {
  const { stdout } = Bun.spawnSync(["readlink", "/proc/self/ns/ipc"]);
  return stdout.toString().trim().replaceAll(/[[\]]/g, "\\$&");
}

export const guards = {
  bwrap: [...bubblewrap, ...(process.getuid?.() === 0 ? ofRoot : [])],
  docker: containers,
};
