/**
 * The system calls that a sandbox may not make, as the program for `bwrap --seccomp FD`: classic BPF
 * (linux/filter.h, linux/seccomp.h) over struct seccomp_data { int nr; u32 arch; u64 ip; u64 args[6] }.
 *
 * Invariant: what other sandboxes and the kernel itself could be attacked by is refused: tracing,
 * keys, namespaces, mounts, io_uring, odd sockets, and every call that is newer than this list. It
 * says no in the kernel's own words, so that programs fall back; no limit here replaces a wall
 * elsewhere. Docker's default profile (moby, profiles/seccomp/default.json) is the model.
 */

export type Arch = "x64" | "arm64";
const [EPERM, ENOSYS, EPROTONOSUPPORT, EAFNOSUPPORT] = [1, 38, 93, 97] as const;

/** Numbers on x86_64 (asm/unistd_64.h) and aarch64 (asm-generic/unistd.h); "-": there is none. */
const CALLS = `
  ioctl 16 29, clone 56 220, socket 41 198, socketpair 53 199, personality 135 92, ptrace 101 117,
  process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, kcmp 312 272,
  pidfd_getfd 438 438, perf_event_open 298 241, bpf 321 280, userfaultfd 323 282, keyctl 250 219,
  add_key 248 217, request_key 249 218, fanotify_init 300 262, unshare 272 97, setns 308 268,
  chroot 161 51, pivot_root 155 41, mount 165 40, umount2 166 39, move_mount 429 429,
  open_tree 428 428, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433,
  mount_setattr 442 442, open_by_handle_at 304 265, name_to_handle_at 303 264, kexec_load 246 104,
  kexec_file_load 320 294, init_module 175 105, finit_module 313 273, delete_module 176 106,
  swapon 167 224, swapoff 168 225, reboot 169 142, acct 163 89, quotactl 179 60,
  quotactl_fd 443 443, sethostname 170 161, setdomainname 171 162, settimeofday 164 170,
  clock_settime 227 112, adjtimex 159 171, clock_adjtime 305 266, syslog 103 116, vhangup 153 58,
  ioperm 173 -, iopl 172 -, modify_ldt 154 -, uselib 134 -, ustat 136 -, sysfs 139 -,
  lookup_dcookie 212 18, nfsservctl 180 42, get_mempolicy 239 236, set_mempolicy 238 237,
  set_mempolicy_home_node 450 450, mbind 237 235, migrate_pages 256 238, move_pages 279 239,
  clone3 435 435, io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427`;

/** mseal, Linux 6.10. Calls after it are unknown, and so are those of x32 (bit 30, or 512 to 547). */
const LAST_CALL = 462;
/** The calls that this list has something to say about, and their numbers. */
export function filteredCalls(arch: Arch): Map<string, number> {
  const numbers = new Map<string, number>();
  for (const row of CALLS.split(",")) {
    const [name = "", x64, arm64] = row.trim().split(" ");
    const number = arch === "x64" ? x64 : arm64;
    if (number !== "-") numbers.set(name, Number(number));
  }
  return numbers;
}

/** The program: struct sock_filter { u16 code; u8 jt, jf; u32 k }[], little endian as both machines. */
export function seccompFilter(arch: Arch): Uint8Array {
  return assemble([
    load(ARCH),
    // The calls of another machine have other numbers: i386's are made by `int 0x80`.
    [0x15, 1, 0, AUDIT_ARCH[arch]],
    answer(0x80000000), // KILL_PROCESS
    load(NUMBER),
    ...ifAbove(LAST_CALL, [fail(ENOSYS)]),
    // The kernel remembers which numbers always pass (5.11); first are the common ones of the rest.
    ...[...filteredCalls(arch)].flatMap(([name, number]) => ifEqual(number, verdictOn(name))),
    allow,
  ]);
}

function verdictOn(call: string): Instruction[] {
  if (call === "ioctl") return judgeIoctl();
  if (call === "clone") return [load(argument(0)), ...ifAny(CLONE_NEW, [fail(EPERM)]), allow];
  if (call === "socket" || call === "socketpair") return judgeSocket();
  if (call === "personality") return [load(argument(0)), ...pass(...PERSONALITIES), fail(EPERM)];
  // Without clone3, whose flags lie in memory that no filter can read, libc takes clone.
  return [fail(/^(clone3|io_uring_.*)$/.test(call) ? ENOSYS : EPERM)];
}

// ── Where arguments decide ──────────────────────────────────────────────────────────────────────

/** CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (linux/sched.h). */
const CLONE_NEW = 0x7e020000;
/** PER_LINUX, PER_LINUX32, with UNAME26 or not, and the question which it is (linux/personality.h). */
const PERSONALITIES = [0, 8, 0x20000, 0x20008, 0xffffffff];

/** TIOCSTI and TIOCLINUX type for the person at the terminal; TIOCSETD loads drivers. */
const judgeIoctl = () => [
  load(argument(1)),
  ...[0x5412, 0x541c, 0x5423].flatMap((request) => ifEqual(request, [fail(EPERM)])),
  allow,
];

/**
 * AF_UNIX; AF_INET and AF_INET6 with streams and datagrams of TCP and UDP; and NETLINK_ROUTE, without
 * which os.networkInterfaces() throws in node and bun. Others make the kernel load a protocol.
 */
const judgeSocket = () => [
  load(argument(0)),
  ...pass(1),
  ...ifEqual(16, [load(argument(2)), ...pass(0), fail(EPROTONOSUPPORT)]),
  ...ifEqual(2, judgeInternet()),
  ...ifEqual(10, judgeInternet()),
  fail(EAFNOSUPPORT),
];
const judgeInternet = (): Instruction[] => [
  load(argument(1)),
  [0x54, 0, 0, 0xf], // ALU|AND|K by SOCK_TYPE_MASK, above which are flags
  ...ifAbove(2, [fail(EPERM)]),
  load(argument(2)),
  ...pass(0, 6, 17),
  fail(EPROTONOSUPPORT),
];

// ── Assembler ───────────────────────────────────────────────────────────────────────────────────

type Instruction = [code: number, ifTrue: number, ifFalse: number, k: number];

const [NUMBER, ARCH] = [0, 4];
const AUDIT_ARCH = { x64: 0xc000003e, arm64: 0xc00000b7 };
/** Its lower half alone: the kernel ignores the upper one of an int, and so must who compares it. */
const argument = (index: number) => 16 + 8 * index;
const load = (offset: number): Instruction => [0x20, 0, 0, offset]; // LD|W|ABS
const answer = (action: number): Instruction => [0x06, 0, 0, action]; // RET|K
const allow = answer(0x7fff0000);
const fail = (errno: number) => answer(0x50000 + errno);

/** JMP|JEQ|K, JMP|JGT|K and JMP|JSET|K, each before what it skips where its test fails. */
const [ifEqual, ifAbove, ifAny] = [jump(0x15), jump(0x25), jump(0x45)] as const;
function jump(code: number) {
  return (k: number, then: Instruction[]): Instruction[] => [[code, 0, then.length, k], ...then];
}
const pass = (...values: number[]) => values.flatMap((k) => ifEqual(k, [allow]));

function assemble(program: Instruction[]): Uint8Array {
  const words = program.flatMap(([code, ifTrue, ifFalse, k]) => {
    if (Math.max(ifTrue, ifFalse) > 255) throw new Error("A jump is longer than a byte says.");
    return [code | (ifTrue << 16) | (ifFalse << 24), k];
  });
  return new Uint8Array(new Uint32Array(words).buffer);
}
