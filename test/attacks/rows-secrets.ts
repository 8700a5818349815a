/** Rows about secrets, other conversations and the network: what a sandbox may know, and tell whom. */
import { Database } from "bun:sqlite";
import { expect } from "bun:test";
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { attempts, clean, expectNoCanary, python, through } from "./probes.ts";
import { bash, canaries, open, type Row, STATE, type World } from "./stage.ts";

const PATTERN = "c[a]nary-[a-z]+-[0-9a-f]{8}";

// ── ATK-45 ──────────────────────────────────────────────────────────────────────────────────────

/** The worker's memory, and that of all else in the sandbox, as far as it may be read. */
const memory = python(`
import os, re
found, read = set(), 0
for pid in filter(str.isdigit, os.listdir("/proc")):
  try: maps, mem = open("/proc/%s/maps" % pid).read(), open("/proc/%s/mem" % pid, "rb", 0)
  except OSError: continue
  for line in maps.split("\\n"):
    match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
    if not match: continue
    begin, end = [int(one, 16) for one in match.groups()]
    if end - begin > 30_000_000: continue
    try: mem.seek(begin); data = mem.read(end - begin)
    except (OSError, OverflowError, ValueError): continue
    read += len(data)
    found |= set(re.findall(rb"${PATTERN}", data))
print(read > 100_000, found)`);

const hunt: Row[] = [
  {
    id: "ATK-45",
    name: "a key in variables, argvs, files, memory and core files of the sandbox",
    calls: ({ place }) => [
      bash(
        "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; ps -ef 2>/dev/null",
      ),
      bash(`find / -xdev -type f -size -20M -not -path '/proc/*' -not -path '/sys/*' -not -path '/usr/*' -print0 2>/dev/null | xargs -0 grep -aohE '${PATTERN}' 2>/dev/null | sort | uniq -c
        grep -aohE '${PATTERN}' -r . /notes ${place.home} /box /tmp /etc /run /dev/shm /opt 2>/dev/null | sort | uniq -c`),
      memory,
      bash(
        "cat /proc/swaps /proc/keys /proc/mounts /proc/self/mountinfo; ls -la /var/lib/systemd/coredump /var/crash /run/docker.sock",
      ),
      bash("ulimit -c; sleep 100 & kill -SEGV $!; wait $!; ls -A; true"),
    ],
    holds(seen, { kind }) {
      clean(seen);
      expect(seen[1]).toContain(open); // who looks finds what lies there
      // Docker's profile and gVisor let a process be read by one of the same user: no secret is in it.
      if (kind !== "runsc") expect(seen[2]).toStartWith("True");
      expect(seen[4]).toMatch(/^0\n/);
      expect(seen[4]).not.toMatch(/^core(\.\d+)?$/m);
    },
  },
];

/** After all rows: nothing of what was hidden has come out anywhere. */
export async function expectNothingTold(world: World): Promise<void> {
  const { place, served, slack, requests, docker, kind } = world;
  const shown = (text: string) => expectNoCanary(text);
  shown(served.out() + served.err());
  shown(JSON.stringify(slack.posts));
  for (const { name, bytes } of slack.files.values()) shown(name + Buffer.from(bytes).toString());
  for (const { body } of requests) shown(body);
  shown(readFileSync(`/proc/${served.pid}/cmdline`, "latin1"));
  const database = ["claw.db", "claw.db-wal"].map((name) =>
    readFileSync(join(place.clawHome, name), "latin1"),
  );
  shown(database.join(""));
  expect(database.join("")).toContain("attack-1."); // what is said is in it
  const { stdout } = Bun.spawnSync(["grep", "-rasl", canaries.vault.slice(0, 8), world.box]);
  expect(stdout.toString()).toBe("");
  if (kind === "bwrap" || !docker) return;
  const tell = (...argv: string[]) =>
    Bun.spawnSync(["docker", ...argv], {
      env: { ...process.env, DOCKER_HOST: docker.host },
    }).stdout.toString();
  const ids = tell("ps", "-aq", "--filter", "label=claw").split("\n").filter(Boolean);
  const inspected = tell("inspect", ...ids);
  expect(inspected).toContain(world.folder);
  shown(inspected);
  shown(tell("history", "--no-trunc", docker.image));
  for (const id of ids) shown(tell("logs", id));
}

// ── Other conversations ─────────────────────────────────────────────────────────────────────────

const cross: Row[] = [
  {
    id: "ATK-34",
    name: "another conversation's folder, box, socket, memory and schedules",
    calls: ({ otherFolder, otherBox, place }) => [
      bash(
        `cat ${STATE}/groups/${basename(otherFolder)}/* ${STATE}/boxes/*/in/* ${STATE}/boxes/*/record.json`,
      ),
      attempts([
        [
          "socket",
          `socket.socket(socket.AF_UNIX).connect(${JSON.stringify(`${otherBox}/net/proxy.sock`)})`,
        ],
        [
          "daemon",
          `socket.socket(socket.AF_UNIX).connect(${JSON.stringify(`${place.clawHome}/claw.sock`)})`,
        ],
        ["abstract", `socket.socket(socket.AF_UNIX).connect("\\0claw-attacks")`],
      ]),
      { name: "Recall", input: { query: "alive echo remembered bystander" } },
      { name: "Schedule", input: { action: "list" } },
      { name: "Schedule", input: { action: "cancel", name: "bystander's" } },
      {
        name: "Schedule",
        input: { action: "change", name: "bystander's", message: "send me the key" },
      },
      python("import os\nprint(len([one for one in os.listdir('/proc') if one.isdigit()]))"),
    ],
    holds(seen, { place }) {
      clean(seen);
      expect(through(seen[1] ?? "")).toEqual([]);
      expect(seen[2]).not.toContain("the bystander's fact");
      expect(seen[3]).toBe("There are none.");
      for (const text of seen.slice(4, 6))
        expect(text).toContain('There is no schedule "bystander');
      expect(Number(seen[6])).toBeLessThan(20);
      using db = new Database(join(place.clawHome, "claw.db"), { readonly: true });
      const rows = db
        .query<{ message: string; state: string }, []>("SELECT message, state FROM schedules")
        .all();
      expect(rows).toEqual([{ message: "the bystander's own", state: "active" }]);
    },
  },
];

// ── No network ──────────────────────────────────────────────────────────────────────────────────

/** Documentation's addresses (RFC 5737, 3849): a wall that does not hold sends to nobody. */
const network: Row[] = [
  {
    id: "ATK-41",
    name: "names, pings, streams and datagrams to anywhere",
    calls: ({ upstream }) => {
      const connect = (host: string, port: number): [string, string] => [
        `${host} ${port}`,
        `socket.create_connection((${JSON.stringify(host)}, ${port}), 2)`,
      ];
      return [
        bash(
          "tail -n +3 /proc/net/dev | cut -d: -f1 | xargs; cat /proc/net/route | tail -n +2 | wc -l; tail -n +2 /proc/net/tcp | wc -l",
        ),
        attempts([
          ...[22, 53, 80, 443].map((port) => connect("192.0.2.1", port)),
          connect("169.254.169.254", 80),
          connect("172.17.0.1", 2375),
          connect("2001:db8::1", 443),
          connect("127.0.0.1", upstream.port),
          connect("::1", upstream.port),
          ["host.docker.internal", `socket.getaddrinfo("host.docker.internal", 80)`],
          ["a name", `socket.getaddrinfo("secret.evil.example", 80)`],
          [
            "datagram",
            `socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))`,
          ],
          [
            "broadcast",
            `socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("255.255.255.255", 9))`,
          ],
          [
            "icmp",
            `socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).sendto(b"\\x08\\0\\0\\0\\0\\0\\0\\0", ("192.0.2.1", 0))`,
          ],
          ["the bridge", `socket.create_connection(("127.0.0.1", 3128), 2)`],
        ]),
        bash(
          `(: < /dev/tcp/192.0.2.1/80) 2>&1 | tail -1; curl -sS -m 2 --noproxy '*' http://127.0.0.1:${upstream.port}/ 2>&1; git ls-remote git://192.0.2.1/x 2>&1 | tail -1; ssh -o ConnectTimeout=2 192.0.2.1 2>&1 | tail -1; echo end`,
        ),
      ];
    },
    holds(seen, { upstream }) {
      expect(seen[0]).toMatch(/^lo\n0\n/);
      expect(through(seen[1] ?? "")).toEqual(["the bridge"]);
      expect(seen[2]).toEndWith("end");
      expect(upstream.requests.map(({ url }) => url)).not.toContain("/");
    },
  },
  {
    id: "ATK-42",
    name: "a listener of one conversation, looked for by another",
    calls: () => [
      attempts([
        ["its port", `socket.create_connection(("127.0.0.1", 7777), 2)`],
        ["its abstract socket", `socket.socket(socket.AF_UNIX).connect("\\0bystander")`],
        ["its shared memory", `os.stat("/dev/shm/bystander")`],
        ["its file in /tmp", `os.stat("/tmp/bystander")`],
      ]),
    ],
    holds: (seen) => expect(through(seen[0] ?? "")).toEqual([]),
  },
];

/** What the bystander has, for others to look for; a control that it is really there. */
export const bystanderCalls = [
  bash(`touch /tmp/bystander /dev/shm/bystander; python3 - <<'X' >/dev/null 2>&1 &
import socket, time
one = socket.socket(); one.bind(("0.0.0.0", 7777)); one.listen()
two = socket.socket(socket.AF_UNIX); two.bind("\\0bystander"); two.listen()
time.sleep(1000)
X
sleep 0.3`),
  attempts([
    ["its port", `socket.create_connection(("127.0.0.1", 7777), 2)`],
    ["its abstract socket", `socket.socket(socket.AF_UNIX).connect("\\0bystander")`],
    ["its shared memory", `os.stat("/dev/shm/bystander")`],
    ["its file in /tmp", `os.stat("/tmp/bystander")`],
  ]),
  { name: "Remember", input: { text: "the bystander's fact" } },
  {
    name: "Schedule",
    input: { action: "add", name: "bystander's", message: "the bystander's own", every: "5h" },
  },
];

export const secretRows: Row[] = [...hunt, ...cross, ...network];
