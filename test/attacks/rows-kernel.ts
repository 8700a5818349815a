/** Rows about what is under a sandbox: the host's code and kernel, and privileges. */
import { expect } from "bun:test";
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { attempts, python, through } from "./probes.ts";
import { bash, type Row } from "./stage.ts";

const engine = Bun.which("dockerd", { PATH: `${process.env["PATH"]}:/usr/sbin` });
const isOldEngine =
  Number(
    /version (\d+)/.exec(
      engine ? Bun.spawnSync([engine, "--version"]).stdout.toString() : "",
    )?.[1] ?? 99,
  ) < 25;

// ── The host's code, state and kernel ───────────────────────────────────────────────────────────

const hashOf = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");
let binaryBefore = "";

export const kernelRows: Row[] = [
  {
    id: "ATK-46",
    name: "code that runs later, in the next container or on the host",
    calls({ place, served }) {
      binaryBefore = hashOf(`/proc/${served.pid}/exe`);
      const targets =
        `/opt/claw/bin/claw /opt/claw/bin/sh /usr/bin/git /usr/local/bin/git /etc/profile
        /etc/ld.so.preload /etc/passwd /box/x /box/in/open.json /box/net/proxy.sock /box/net/ca.pem
        /box/in/00000000-0000-4000-8000-000000000000.json ${place.home}/shared/read.txt
        ${place.home}/shared/x /proc/sys/kernel/core_pattern /proc/sys/vm/panic_on_oom
        /sys/kernel/uevent_helper /sys/fs/cgroup/release_agent /sys/fs/cgroup/cgroup.procs`.split(
          /\s+/,
        );
      return [
        attempts([
          ...targets.map((path): [string, string] => [
            `write ${path}`,
            `open(${JSON.stringify(path)}, "w")`,
          ]),
          ...targets.map((path): [string, string] => [
            `remove ${path}`,
            `os.remove(${JSON.stringify(path)})`,
          ]),
          ["rename claw", `os.rename("/opt/claw/bin/claw", "/tmp/c")`],
          ["link in bin", `os.symlink("/tmp/x", "/opt/claw/bin/git")`],
          ["/notes may be written", `open("/notes/written", "w")`],
        ]),
        python(
          `import os\nos.makedirs("${place.clawHome}/skills/evil", exist_ok=True)\nopen("${place.clawHome}/config.ts", "w")`,
        ),
      ];
    },
    holds(seen, { served, place }) {
      expect(through(seen[0] ?? "")).toEqual(["/notes may be written"]);
      expect(hashOf(`/proc/${served.pid}/exe`)).toBe(binaryBefore);
      for (const name of ["config.ts", "skills"])
        expect(existsSync(join(place.clawHome, name))).toBe(false);
    },
  },
  {
    id: "kernel",
    name: "calls that lead out of containers",
    calls: () => [
      attempts([
        ["setuid 0", "os.setuid(0)"],
        ["setgid 0", "os.setgid(0)"],
        ["mount", `call(165, b"none", b"/tmp", b"tmpfs", 0, None)`],
        ["bind mount", `call(165, b"/", b"/tmp", None, 4096, None)`],
        ["remount root", `call(165, None, b"/", None, 32 | 4096, None)`],
        ["umount", `call(166, b"/box/in", 2)`],
        ["pivot_root", `call(155, b"/tmp", b"/tmp")`],
        ["chroot", `os.chroot("/tmp")`],
        ["setns", `call(308, os.open("/proc/1/ns/mnt", 0), 0)`],
        ["mknod disk", `os.mknod("disk", 0o060666, os.makedev(254, 0))`],
        ["mknod mem", `os.mknod("mem", 0o020666, os.makedev(1, 1))`],
        ["/dev/mem", `os.open("/dev/mem", 0)`],
        ["/dev/kmsg", `os.open("/dev/kmsg", 0)`],
        ["/dev/fuse", `os.open("/dev/fuse", 2)`],
        ["/dev/kvm", `os.open("/dev/kvm", 2)`],
        ["/dev/vda", `os.open("/dev/vda", 0)`],
        ["/proc/kcore", `os.open("/proc/kcore", 0)`],
        ["core_pattern", `os.open("/proc/sys/kernel/core_pattern", 1)`],
        ["sysrq", `os.open("/proc/sysrq-trigger", 1)`],
        ["modules", `call(313, 0, b"", 0)`],
        ["kexec", "call(246, 0, 0, 0, 0)"],
        ["reboot", "call(169, 0xfee1dead, 672274793, 0, 0)"],
        ["sethostname", `socket.sethostname("x")`],
        ["settime", `call(227, 0, ctypes.create_string_buffer(16))`],
        ["file handles", `call(304, -100, ctypes.create_string_buffer(256), 0)`],
        ["negative nice", "os.setpriority(0, 0, -20)"],
        ["oom score", `os.write(os.open("/proc/self/oom_score_adj", 1), b"-1000")`],
        ["raw socket", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"],
        ["packet socket", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)"],
        ["docker.sock", `socket.socket(socket.AF_UNIX).connect("/var/run/docker.sock")`],
      ]),
    ],
    holds: (seen, { kind }) =>
      // gVisor's kernel is the sandbox's own: its clock, name and priorities are nobody else's.
      expect(
        through(seen[0] ?? "").filter(
          (name) =>
            kind !== "runsc" ||
            !["negative nice", "oom score", "file handles", "/dev/fuse"].includes(name),
        ),
      ).toEqual([]),
  },
  {
    id: "kernel",
    name: "calls that reach the kernel's less trodden parts",
    not: { runsc: "they reach gVisor's own kernel, in the sandbox, and none of the host's" },
    calls: () => [
      attempts([
        ["user namespace", "call(272, 0x10000000)"],
        ["mount namespace", "call(272, 0x00020000)"],
        ["clone newuser", "call(56, 0x10000011, 0, 0, 0, 0)"],
        ["keyctl", "call(250, 0, -3, 1)"],
        ["add_key", `call(248, b"user", b"x", b"y", 1, -3)`],
        ["clone newpid", "call(56, 0x20000011, 0, 0, 0, 0)"],
        ["bpf", "call(321, 0, ctypes.create_string_buffer(128), 128)"],
        ["perf", "call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)"],
        ["userfaultfd", "call(323, 0)"],
        ["fanotify", "call(300, 0, 0)"],
        ["syslog", "call(103, 3, ctypes.create_string_buffer(99), 99)"],
        ["no randomization", "call(135, 0x40000)"],
        ["alg", `socket.socket(38, socket.SOCK_SEQPACKET).bind(("hash", "sha256"))`],
      ]),
    ],
    holds(seen, { kind }) {
      // Docker's profile leaves AF_ALG open; it holds no state and loads nothing that is not there.
      const known = kind === "docker" ? ["alg"] : [];
      expect(through(seen[0] ?? "").filter((name) => !known.includes(name))).toEqual([]);
    },
  },
  {
    id: "kernel",
    name: "io_uring, and the machine under a virtual machine by vsock, which no namespace holds",
    not: { runsc: "gVisor has neither" },
    open: isOldEngine ? { docker: "profiles of engines before 25 let both through" } : {},
    calls: () => [
      attempts([
        ["io_uring", "call(425, 8, ctypes.create_string_buffer(120))"],
        ["vsock", "socket.socket(40, socket.SOCK_STREAM)"],
      ]),
    ],
    holds: (seen) => expect(through(seen[0] ?? "")).toEqual([]),
  },
  {
    id: "privileges",
    name: "no capability, no way to gain one, no program that brings one",
    calls: () => [
      bash(
        "grep -E '^(Cap|NoNewPrivs)' /proc/self/status; echo oom $(cat /proc/self/oom_score_adj); find /usr/bin /usr/sbin /usr/lib/openssh /opt /tmp . -xdev -perm /6000 -type f 2>/dev/null | head; sudo -n id",
      ),
    ],
    holds(seen, { kind }) {
      const status = seen[0] ?? "";
      expect(status.match(/^Cap\w+:\s+0+$/gm)?.length).toBeGreaterThan(3);
      expect(status).not.toMatch(/^Cap\w+:\s+0*[1-9a-f]/m);
      // gVisor of 2022 does not show the flag, and runs no set-id program as another all the same.
      if (kind !== "runsc") expect(status).toContain("NoNewPrivs:\t1");
      if (kind !== "bwrap") expect(status).not.toMatch(/^\/(usr|bin)/m);
      // Its memory is not bounded as a whole: it is the first to go.
      if (kind === "bwrap") expect(status).toMatch(/^oom 1000$/m);
      expect(status).not.toContain("uid=0");
    },
  },
];
