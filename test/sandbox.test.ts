/** Hands under bubblewrap: the built binary as the worker, attacked from inside. */
import { afterEach, beforeEach, describe, expect, it } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openLocalHands } from "../src/hands/hands.ts";
import { openSandboxHands, type SandboxHandsOptions } from "../src/hands/sandbox.ts";
import { parseReply, parseRequest, readLines } from "../src/hands/wire.ts";
import type { Hands, ToolOutput } from "../src/types.ts";
import { binary, newPlace, until, type Place } from "./claw.ts";

const never = new AbortController().signal;
const CANARY = "canary-5f1c2d";
/** How a command looks for the canary without holding it. */
const PATTERN = "canary-5f1c[2]d";
const VARIABLES = "CLAW_CALL HOME LANG NO_COLOR PAGER PATH PWD SHLVL TERM TMPDIR _";
const module = join(import.meta.dir, "../src/hands/sandbox.ts");

let place: Place;
let folder: string;
let hands: Hands;
let calls = 0;

beforeEach(() => {
  place = newPlace();
  folder = join(place.clawHome, "groups", "main");
  mkdirSync(folder, { recursive: true });
  for (const path of [join(place.clawHome, "claw.db"), join(place.home, "id_rsa")])
    writeFileSync(path, CANARY);
  hands = open();
});

afterEach(async () => {
  await hands.close();
  expect(processes()).toEqual([]);
  place[Symbol.dispose]();
});

const open = (options: Partial<SandboxHandsOptions> = {}): Hands =>
  openSandboxHands({ folder, binary, ...options });

function run(name: string, input: Record<string, unknown>, signal = never): Promise<ToolOutput> {
  return hands.run({ type: "tool_call", id: `call_${++calls}`, name, input }, signal);
}
const bash = (command: string, signal = never) => run("Bash", { command }, signal);
const text = async (command: string) => (await bash(command)).content;

/** The command lines of the machine's processes that have to do with this test's folder. */
function processes(mark = folder): string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => lookInto(`/proc/${pid}/cmdline`) + lookInto(`/proc/${pid}/environ`))
    .filter((line) => line.includes(mark));
}

function lookInto(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return ""; // It has ended.
  }
}

const missing = process.platform === "linux" && Bun.which("bwrap") ? null : "no bwrap here";
if (missing !== null) console.error(`Tests of the sandbox are skipped: ${missing}.`);

describe.skipIf(missing !== null)("hands in a sandbox", () => {
  it("start nothing before a call that can run", async () => {
    expect(hands.tools).toEqual(openLocalHands({ roots: [folder] }).tools);
    expect(hands.isReadOnly("Read")).toBe(true);
    expect((await run("Bush", {})).content).toStartWith('There is no tool "Bush".');
    expect((await run("Bash", {})).content).toStartWith("The arguments do not fit Bash");
    expect(processes()).toEqual([]);
    await bash("true");
    expect(processes().length).toBeGreaterThan(0);
    await hands.close();
    expect(processes()).toEqual([]);
    expect((await bash("true")).content).toContain("no tool runs any more");
    expect(processes()).toEqual([]);
  });

  it("read, write, edit and run in the folder, under its own path", async () => {
    const path = join(folder, "a/b.txt");
    const input = { file_path: path, content: "one\ntwo\n" };
    const call = { type: "tool_call" as const, id: "p", name: "Write", input };
    expect(await hands.preview(call)).toContain("+two");
    expect(existsSync(path)).toBe(false);
    expect((await run("Write", input)).patch).toContain("+two");
    const change = { file_path: "a/b.txt", old_string: "two", new_string: "three" };
    expect((await run("Edit", change)).isError).toBeFalsy();
    expect((await run("Read", { file_path: path })).content).toContain("2\tthree");
    expect(await text("pwd; cat a/b.txt; echo $HOME")).toBe(`${folder}\none\nthree\n${folder}`);
    expect(readFileSync(path, "utf8")).toBe("one\nthree\n");
  });

  it("bring large results and images through, and run calls side by side", async () => {
    const image = Buffer.alloc(4_900_000);
    image.set([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
    writeFileSync(join(folder, "a.png"), image);
    const [shown, long, odd] = await Promise.all([
      run("Read", { file_path: "a.png" }),
      text("seq 1000000"),
      text("printf 'a\\0\\377\\342\\200\\250b'"),
    ]);
    expect(shown.images?.[0]?.data === image.toString("base64")).toBe(true);
    expect([long.startsWith("1\n2\n"), long.length < 30_001]).toEqual([true, true]);
    expect(odd).toBe("a\0\ufffd\u2028b");
    const startedAt = performance.now();
    await Promise.all([bash("sleep 0.4"), bash("sleep 0.4"), bash("sleep 0.4")]);
    expect(performance.now() - startedAt).toBeLessThan(1000);
  });

  describe("walls", () => {
    it.each([
      ["no network device but lo", "tail -n +3 /proc/net/dev | cut -d: -f1 | xargs", "lo"],
      ["no capability", "grep -Ec '^Cap.*\\s0+$' /proc/self/status", "5"],
      ["no new privileges", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"],
      ["no user namespace of one's own", "unshare -U true 2>/dev/null || echo none", "none"],
      ["no descriptor of the host", "ls /proc/self/fd | xargs", "0 1 2 3"],
      ["no process of the host", "[ $(ls /proc | grep -c '^[0-9]') -lt 12 ] && echo few", "few"],
      ["no terminal", "(: < /dev/tty) 2>/dev/null || echo none", "none"],
      ["no accounts", "cut -d: -f1 /etc/passwd /etc/group | sort -u", "claw"],
      ["no shadow", "ls /etc/shadow /etc/gshadow /etc/ssl/private 2>/dev/null | wc -l", "0"],
      ["no home, no state", "ls -d /root /home /var/lib /sys /opt 2>/dev/null | wc -l", "0"],
      ["a name of its own", "hostname; ls /run | wc -l", "claw\n0"],
      ["no variable but these", "env | cut -d= -f1 | grep -v ^GIT | sort | xargs", VARIABLES],
      ["limits", "for limit in c f d u; do ulimit -$limit; done | xargs", "0 1000000 4000000 512"],
      ["its own folder alone", "ls -A ../..; ls -A ..", "groups\nmain"],
    ])("%s", async (_, command, expected) => {
      expect(await text(command)).toBe(expected);
    });

    it("no way to a listener on the machine", async () => {
      let visits = 0;
      const fetch = () => new Response(`${++visits}`);
      const socket = join(place.clawHome, "claw.sock");
      const server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch });
      const daemon = Bun.serve({ unix: socket, fetch });
      const tries = [
        `(: < /dev/tcp/127.0.0.1/${server.port})`,
        `curl -sm 2 ${server.url.href}`,
        `curl -sm 2 --unix-socket ${socket} http://x/`,
        "getent hosts example.com",
      ];
      for (const command of tries) expect((await bash(command)).isError).toBe(true);
      expect(await (await globalThis.fetch(server.url)).text()).toBe("1");
      await Promise.all([server.stop(true), daemon.stop(true)]);
    });

    it("nothing outside can be written", async () => {
      const paths = ["/x", "/etc/x", "/usr/x", "/usr/bin/x", "/run/x", "/dev/x", "/var/x", "/claw"];
      const kernel = ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/self/comm"];
      for (const path of [...paths, ...kernel]) {
        expect([path, await text(`(: > ${path}) 2>/dev/null || echo no`)]).toEqual([path, "no"]);
        const { isError } = await run("Write", { file_path: path, content: "x" });
        expect([path, isError]).toEqual([path, true]);
      }
      // Where the folder lies in /tmp, its parents are the sandbox's own.
      await text(`touch ../x ../../x ${place.home}/x; echo x > ${place.clawHome}/claw.db`);
      expect(readFileSync(join(place.clawHome, "claw.db"), "utf8")).toBe(CANARY);
      expect(readdirSync(join(folder, ".."))).toEqual(["main"]);
      expect(readdirSync(place.home).toSorted()).toEqual([".claw", "id_rsa"]);
      expect(readdirSync(place.clawHome).toSorted()).toEqual(["claw.db", "groups"]);
    });

    it("a secret of the host is nowhere", async () => {
      const other = Bun.spawn(["sleep", "60"], { env: { CANARY } });
      process.env["CLAW_TEST_CANARY"] = CANARY;
      const hunt =
        `(env; cat /proc/*/environ /proc/*/cmdline; cat ${place.clawHome}/* ${place.home}/*; ` +
        `ls -R ${place.clawHome}; find / -xdev -name 'id_rsa' -not -path '/proc/*') 2>/dev/null; ` +
        `grep -rs '${PATTERN}' /etc /run /tmp /var /dev/shm`;
      const seen = await text(hunt);
      expect(seen).toContain(folder); // the hunt itself works
      expect(seen).not.toMatch(/canary-5f1c2d|id_rsa$|claw\.db/m);
      delete process.env["CLAW_TEST_CANARY"];
      other.kill();
      await other.exited;
    });

    it("links out of the folder lead to nothing of the host", async () => {
      symlinkSync("/etc/passwd", join(folder, "passwd"));
      symlinkSync(join(place.clawHome, "claw.db"), join(folder, "db"));
      symlinkSync("/proc/1/root/etc/shadow", join(folder, "shadow"));
      expect((await run("Read", { file_path: "passwd" })).content).not.toContain("root");
      for (const file_path of ["db", "shadow"]) {
        const { content, isError } = await run("Read", { file_path });
        expect([isError, content.includes(CANARY)]).toEqual([true, false]);
      }
    });

    it("read-only folders and hidden files", async () => {
      const shared = join(place.home, "shared");
      const fixed = join(folder, "fixed");
      for (const path of [shared, fixed]) mkdirSync(path);
      for (const path of [join(shared, "a"), join(shared, ".env"), join(folder, ".env")])
        writeFileSync(path, path.endsWith(".env") ? CANARY : "open");
      hands = open({ readOnly: [shared, fixed], hides: (path) => path.endsWith("/.env") });
      expect(await text(`cat ${shared}/a`)).toBe("open");
      for (const path of [join(shared, ".env"), join(folder, ".env")]) {
        const seen = await text(`cat ${path} 2>&1; mv ${path} ${folder}/y; cat ${folder}/y`);
        expect(seen).not.toContain(CANARY);
        expect((await run("Read", { file_path: path })).isError).toBe(true);
      }
      expect((await bash(`: > ${shared}/b`)).isError).toBe(true);
      expect((await bash(`: > ${fixed}/b`)).isError).toBe(true);
      expect((await bash(`mv ${fixed} ${folder}/moved`)).isError).toBe(true);
    });

    it("a link in the folder's place is not followed", async () => {
      rmSync(folder, { recursive: true });
      symlinkSync(place.home, folder);
      expect((await bash("ls")).content).toContain("is no real path");
    });
  });

  describe("an end", () => {
    it.each([
      ["a sleep", "sleep 1000"],
      ["one that ignores SIGTERM", "trap '' TERM; while :; do sleep 1; done"],
      ["one that has left its session", "setsid sh -c 'trap \"\" TERM; sleep 1000' & wait"],
      ["a worker that is stopped itself", "kill -STOP $PPID; sleep 1000"],
    ])("by an abort: %s", async (_, command) => {
      const mark = `mark-${crypto.randomUUID()}`;
      const controller = new AbortController();
      const running = bash(`export MARK=${mark}; touch begun; ${command}`, controller.signal);
      const failure = running.catch((error: unknown) => error);
      await until(() => existsSync(join(folder, "begun")));
      const [reason, startedAt] = [new Error("stop"), performance.now()];
      controller.abort(reason);
      expect(await failure).toBe(reason);
      expect(performance.now() - startedAt).toBeLessThan(1100);
      expect(processes(mark)).toEqual([]);
      expect((await bash("echo again")).content).toStartWith("again");
    });

    it("by a kill: the calls fail, the next one starts a new worker and says so", async () => {
      const path = join(folder, "a.txt");
      writeFileSync(path, "a");
      await run("Read", { file_path: path });
      const other = bash("sleep 1000");
      const killed = await bash("kill -KILL $PPID; sleep 1000");
      for (const { content, isError } of [killed, await other]) {
        expect(isError).toBe(true);
        expect(content).toContain("The sandbox ended while this ran: its outcome is unknown");
      }
      const { content } = await run("Edit", { file_path: path, old_string: "a", new_string: "b" });
      expect(content).toContain("has to be Read again");
      expect((await bash("echo b")).content).toBe("b");
    });

    it("when idle: background commands end with it", async () => {
      const log: string[] = [];
      hands = open({ idleMs: 50, log: (event) => void log.push(event) });
      await run("Bash", { command: "sleep 1000", run_in_background: true });
      await bash("sleep 0.2"); // longer than idleMs, but not idle
      await until(() => processes().length === 0);
      const { content } = await run("BashOutput", { bash_id: "bash_1" });
      expect(content).toContain("Background commands have ended");
      expect(log).toEqual(["sandbox started", "sandbox ended", "sandbox started"]);
    });

    it("of the host, even by SIGKILL, ends all", async () => {
      const script = `
        import { openSandboxHands } from "${module}";
        const hands = openSandboxHands({ folder: "${folder}", binary: "${binary}" });
        const input = { command: "setsid sleep 1000 & touch begun; sleep 1000" };
        await hands.run({ type: "tool_call", id: "1", name: "Bash", input }, new AbortController().signal);`;
      const host = Bun.spawn([process.execPath, "-e", script], { stderr: "inherit" });
      await until(() => existsSync(join(folder, "begun")));
      host.kill("SIGKILL");
      await host.exited;
      await until(() => processes().length === 0, 2000);
    });
  });

  describe("a worker that is not to be trusted", () => {
    const ready = `echo '{"type":"ready"}'`;
    const reply = (id: number, rest: string) => `echo '{"type":"output","id":${id},${rest}}'`;
    const other = `echo '{"type":"preview","id":1,"patch":null}'`;
    it.each([
      ["says what is no JSON", [ready, "echo hello", "sleep 9"], /no JSON/],
      ["says what is no reply", [ready, reply(1, '"text":""'), "sleep 9"], /no reply: output/],
      ["says too much", [ready, "head -c 30000000 /dev/zero", "sleep 9"], /longer than 20000000/],
      ["gives another answer", [ready, other, "sleep 9"], /"preview"/],
      ["leaves", [ready, "read a", "exit 4"], /outcome is unknown.*exit code 4/],
      ["never starts", ["printf 'no \\033[31mway\\nx' >&2"], /nothing ran.*: no  \[31mway$/],
    ])("%s", async (_, body, expected) => {
      const { content, isError } = await withWorker(body);
      expect(content).toMatch(expected);
      expect(isError).toBe(true);
    });

    it("answers what nobody asked: ignored", async () => {
      const [wrong, right] = [
        reply(7, '"output":{"content":"7"}'),
        reply(1, '"output":{"content":"1"}'),
      ];
      const body = [ready, wrong, "read open", "read run", right, "read end"];
      expect(await withWorker(body)).toEqual({ content: "1" });
    });

    function withWorker(body: string[]): Promise<ToolOutput> {
      const script = join(place.home, "worker");
      writeFileSync(script, `#!/bin/sh\n${body.join("\n")}\n`, { mode: 0o755 });
      hands = open({ binary: script });
      return bash("true");
    }
  });

  const denied = "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1";
  const old = "echo 'bwrap: Unknown option --disable-userns' >&2; exit 1";
  it.each([
    ["none there", null, /no bwrap on this machine.*package bubblewrap.*--isolation none/],
    ["one that may not", denied, /Permission denied.*user namespaces.*--isolation none/],
    ["one that is too old", old, /Unknown option.*0\.8 or later/],
  ])("say the cure for a bwrap: %s", async (_, body, expected) => {
    const PATH = join(place.home, "bin");
    mkdirSync(PATH);
    if (body) writeFileSync(join(PATH, "bwrap"), `#!/bin/sh\n${body}\n`, { mode: 0o755 });
    const script = `
      import { findBubblewrap } from "${module}";
      await findBubblewrap().catch((error) => console.log(error.name, error.message));`;
    const child = Bun.spawn([process.execPath, "-e", script], { env: { PATH }, stderr: "inherit" });
    const said = await child.stdout.text();
    expect(said).toStartWith("UsageError");
    expect(said).toMatch(expected);
  });
});

describe("the wire", () => {
  it("takes lines in any pieces, and not half a one", async () => {
    async function* pieces() {
      for (const piece of ["a\nb", "b\n", "\nc", "lost"]) yield Buffer.from(piece);
    }
    const { body } = new Response(pieces());
    expect(await Array.fromAsync(body ? readLines(body) : [])).toEqual(["a", "bb", ""]);
  });

  const wrong = ["", "null", "[]", "{}", '{"type":"run","id":1}', '{"type":"abort","id":0.5}'];
  it.each(wrong)("refuses %p", (line) => {
    expect(() => parseRequest(line)).toThrow(/no (JSON|request)/);
    expect(() => parseReply(line)).toThrow(/no (JSON|reply)/);
  });

  it("keeps a reply to the size of a result", () => {
    const reply = (length: number) =>
      JSON.stringify({ type: "output", id: 1, output: { content: "x".repeat(length) } });
    expect(parseReply(reply(30_000)).type).toBe("output");
    expect(() => parseReply(reply(30_001))).toThrow("no reply: output.content");
  });
});
