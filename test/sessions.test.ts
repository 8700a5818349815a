/** Sessions end to end: ids, order, forks, kill -9 at any instant, and several processes at once. */
import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { jsonLines, newPlace, type Place, runClaw, startClaw, until } from "./claw.ts";
import { type Scripted, startScripted, type Wire } from "./scripted.ts";

const wires: Wire[] = ["anthropic", "openai"];
const bash = (command: string) => ({ name: "Bash", input: { command } });

async function ask(place: Place, server: Scripted, args: string[], wire: Wire = "openai") {
  const flags = ["-p", "--output-format", "json"];
  const run = await runClaw(place, [...flags, ...args], { env: server.env(wire) });
  const id: string = run.stdout ? JSON.parse(run.stdout).session_id : "";
  return { ...run, id };
}

describe("ids and order", () => {
  test("--continue takes the newest of this folder, --resume any, and both keep the id", async () => {
    using place = newPlace();
    using server = startScripted(() => ({ text: "ok" }));
    const first = await ask(place, server, ["first question"]);
    const second = await ask(place, server, ["second question"]);
    const other = join(place.cwd, "other");
    mkdirSync(other);
    await runClaw(place, ["-p", "elsewhere"], { env: server.env("openai"), cwd: other });

    const continued = await ask(place, server, ["-c", "go on"]);
    expect(continued.id).toBe(second.id);
    expect(server.requests.at(-1)?.body).toContain("second question");
    const resumed = await ask(place, server, ["--resume", first.id.slice(0, 8), "go on"]);
    expect(resumed.id).toBe(first.id);
    expect(server.requests.at(-1)?.body).toContain("first question");
  });

  test("--fork-session goes on in a copy and leaves the session as it was", async () => {
    using place = newPlace();
    using server = startScripted(() => ({ text: "ok" }));
    const { id } = await ask(place, server, ["question"]);
    const before = (await runClaw(place, ["sessions", "export", id])).stdout;
    const fork = await ask(place, server, ["--resume", id, "--fork-session", "another way"]);
    expect(fork.id).not.toBe(id);
    expect(server.requests.at(-1)?.body).toContain("question");
    expect((await runClaw(place, ["sessions", "export", id])).stdout).toBe(before);
  });

  test("--session-id names a new session, once", async () => {
    using place = newPlace();
    using server = startScripted(() => ({ text: "ok" }));
    const id = crypto.randomUUID();
    expect((await ask(place, server, ["--session-id", id, "a"])).id).toBe(id);
    const again = await ask(place, server, ["--session-id", id, "b"]);
    expect(again).toMatchObject({ code: 2, stdout: "" });
    expect(again.stderr).toContain(id);
    expect(server.requests).toHaveLength(1);
  });

  test("sessions list, show, search, export and delete", async () => {
    using place = newPlace();
    using server = startScripted([
      { text: "Reading.", calls: [{ name: "Glob", input: { pattern: "*" } }] },
      { text: "A zebra." },
      { text: "ok" },
    ]);
    const { id } = await ask(place, server, ["what lives in the zoo?"]);
    const other = await ask(place, server, ["something else"]);
    const claw = async (...args: string[]) => (await runClaw(place, ["sessions", ...args])).stdout;
    const list = (await claw("list")).trim().split("\n");
    expect(list.map((line) => line.slice(0, 36))).toEqual([other.id, id]);
    expect(list[1]).toContain("what lives in the zoo?");
    expect(await claw("show", id)).toContain("A zebra.");
    expect(await claw("search", "zebra")).toContain(id);
    expect(await claw("search", "zebra")).not.toContain(other.id);
    expect(await claw("search", 'what "li')).toContain(id);
    const events = jsonLines(await claw("export", id));
    expect(events[0]).toMatchObject({ type: "session", id });
    expect(events.slice(1).map(({ seq }) => seq)).toEqual(events.slice(1).map((_, i) => i + 1));
    expect(await claw("delete", id)).toContain(id);
    expect(await claw("list")).not.toContain(id);
    expect(await claw("search", "zebra")).toBe("");
  });
});

/** Whether messages of either wire are such that its provider takes them. */
// oxlint-disable-next-line no-explicit-any -- a request body of either wire
function checkRequest(json: any, wire: Wire): void {
  const open = new Set<string>();
  let last = "";
  for (const message of json.messages) {
    if (wire === "openai") {
      if (message.role === "tool") expect(open.delete(message.tool_call_id)).toBe(true);
      else expect(open.size).toBe(0);
      for (const call of message.tool_calls ?? []) open.add(call.id);
      continue;
    }
    expect(message.role).not.toBe(last);
    last = message.role;
    const blocks = Array.isArray(message.content) ? message.content : [];
    // oxlint-disable-next-line no-explicit-any -- blocks of several shapes
    const results = blocks.filter((block: any) => block.type === "tool_result");
    if (message.role === "user") {
      for (const block of results) expect(open.delete(block.tool_use_id)).toBe(true);
      expect(open.size).toBe(0);
    }
    // oxlint-disable-next-line no-explicit-any -- as above
    for (const block of blocks.filter((each: any) => each.type === "tool_use")) open.add(block.id);
  }
  expect(open.size).toBe(0);
  expect(json.messages.at(-1).role).toBe("user");
}

describe.each(wires)("kill -9, resumed on the wire of %s", (wire) => {
  /** Starts a run, kills it once `ready`, and goes on with its session. */
  async function killAndResume(place: Place, server: Scripted, ready: () => boolean) {
    const model = wire === "openai" ? "openai/gpt-5" : "anthropic/claude-sonnet-4-5";
    const env = server.env(wire);
    const flags = ["--model", model, "--permission-mode", "unsafe"];
    const child = startClaw(place, ["-p", "go", ...flags], { env });
    await until(ready);
    child.kill("SIGKILL");
    await child.exited;
    const run = await runClaw(place, ["-p", "-c", "go on", ...flags], { env });
    return { run, request: server.requests.at(-1) };
  }

  test("between a tool call and its result", async () => {
    using place = newPlace();
    using server = startScripted([
      { calls: [bash("echo $$ > pid; touch started; exec sleep 600"), bash("touch second")] },
      { text: "fine" },
    ]);
    const started = join(place.cwd, "started");
    const isThere = () => Bun.spawnSync(["test", "-e", started]).exitCode === 0;
    const { run, request } = await killAndResume(place, server, isThere);
    const pid = Number(await Bun.file(join(place.cwd, "pid")).text());
    process.kill(-pid, "SIGKILL"); // what kill -9 leaves behind is ours to end
    expect(run).toMatchObject({ code: 0, stdout: "fine\n" });
    expect(run.stderr).toContain("healed");
    expect(run.stderr).toContain("Bash (started), Bash (not run)");
    expect(request?.body).toContain("outcome is unknown");
    expect(request?.body).toContain("it had no effect");
    checkRequest(request?.json, wire);
  });

  test("in mid-stream", async () => {
    using place = newPlace();
    using server = startScripted([{ text: ["half ", "an "], hangAfter: 4 }, { text: "fine" }]);
    const { run, request } = await killAndResume(place, server, () => server.requests.length === 1);
    expect(run).toMatchObject({ code: 0, stdout: "fine\n" });
    expect(run.stderr).toContain("healed");
    checkRequest(request?.json, wire);
  });

  test("at every few milliseconds of a run: each time it opens, and the request is valid", async () => {
    using place = newPlace();
    writeFileSync(join(place.cwd, "a.txt"), "text\n");
    for (let ms = 4; ms <= 60; ms += 7) {
      const read = { name: "Read", input: { file_path: "a.txt" } };
      using server = startScripted((request) => {
        const text = request.body.includes("go on") ? "fine" : undefined;
        return text ? { text } : { text: "reading", calls: [read, bash("echo hi")] };
      });
      const env = server.env(wire);
      const model = ["--model", wire === "openai" ? "openai/gpt-5" : "anthropic/claude-sonnet-4-5"];
      const id = crypto.randomUUID();
      const flags = [...model, "--permission-mode", "unsafe"];
      const child = startClaw(place, ["-p", "go", "--session-id", id, ...flags], { env });
      await Bun.sleep(ms);
      child.kill("SIGKILL");
      await child.exited;
      const list = (await runClaw(place, ["sessions", "list"])).stdout;
      if (!list.includes(id)) continue; // killed before anything was said
      const run = await runClaw(place, ["-p", "--resume", id, "go on", ...flags], { env });
      expect(run).toMatchObject({ code: 0, stdout: "fine\n" });
      checkRequest(server.requests.at(-1)?.json, wire);
    }
  });
});

describe("several processes", () => {
  test("two on one session: the second is told, with the first one's pid", async () => {
    using place = newPlace();
    using server = startScripted([{ text: "ok" }, { text: ["a ", "b "], hangAfter: 3 }]);
    const { id } = await ask(place, server, ["question"]);
    const first = startClaw(place, ["-p", "-c", "more"], { env: server.env("openai") });
    await until(() => server.requests.length === 2);
    const second = await ask(place, server, ["--resume", id, "me too"]);
    expect(second).toMatchObject({ code: 2, stdout: "" });
    expect(second.stderr).toContain(`pid ${first.pid}`);
    first.kill("SIGTERM");
    expect(await first.exited).toBe(130);
  });

  test("eight on one home, side by side: none is lost", async () => {
    using place = newPlace();
    using server = startScripted(() => ({ text: "ok" }));
    const runs = await Promise.all(
      Array.from({ length: 8 }, (_, index) => ask(place, server, [`question ${index}`])),
    );
    expect(runs.map(({ code }) => code)).toEqual(Array(8).fill(0));
    const list = (await runClaw(place, ["sessions", "list"])).stdout;
    for (const { id } of runs) expect(list).toContain(id);
  });
});

describe("the database", () => {
  test("one that is newer, one that is damaged, one that others can write: a sentence, exit code 2", async () => {
    using place = newPlace();
    using server = startScripted(() => ({ text: "ok" }));
    await ask(place, server, ["question"]);
    const path = join(place.clawHome, "claw.db");
    const db = new Database(path);
    db.run("PRAGMA user_version = 99");
    db.close();
    const newer = await ask(place, server, ["question"]);
    expect(newer.code).toBe(2);
    expect(newer.stderr).toContain("newer claw (version 99");

    writeFileSync(
      path,
      "this is no database, but it is long enough to be taken for one".repeat(50),
    );
    const damaged = await ask(place, server, ["question"]);
    expect(damaged.code).toBe(2);
    expect(damaged.stderr).toContain("damaged");
    expect(await Bun.file(path).text()).toStartWith("this is no database");

    chmodSync(place.clawHome, 0o777);
    const open = await ask(place, server, ["question"]);
    expect(open.code).toBe(2);
    expect(open.stderr).toContain("others can write");
  });

  test("it belongs to its owner alone", async () => {
    using place = newPlace();
    using server = startScripted(() => ({ text: "ok" }));
    await ask(place, server, ["question"]);
    expect(statSync(place.clawHome).mode & 0o777).toBe(0o700);
  });

  test("no key is ever in it", async () => {
    using place = newPlace();
    using server = startScripted([{ calls: [bash("env")] }, { text: "ok" }]);
    await ask(place, server, ["show me", "--permission-mode", "unsafe"]);
    const { stdout } = await runClaw(place, ["sessions", "list"]);
    const events = (await runClaw(place, ["sessions", "export", stdout.slice(0, 36)])).stdout;
    expect(events).toContain("PATH=");
    expect(events).not.toContain("scripted-key");
  });

  test("a full disk: a sentence, and what was said before is still there", async () => {
    using place = newPlace();
    const small = join(place.home, "small");
    mkdirSync(small);
    const mounted = Bun.spawnSync(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small]);
    expect(mounted.exitCode).toBe(0); // needs root, as on CI
    try {
      const env = { CLAW_HOME: join(small, "claw") };
      using server = startScripted(() => ({ text: "word ".repeat(20_000) }));
      const openai = { ...server.env("openai"), ...env };
      let run = await runClaw(place, ["-p", "fill"], { env: openai });
      for (let turn = 0; run.code === 0 && turn < 20; turn++)
        run = await runClaw(place, ["-p", "-c", "fill"], { env: openai });
      expect(run.code).toBe(1);
      expect(run.stderr).toContain("disk is full");
      expect(run.stderr).not.toMatch(/\n\s+at /);
      const list = await runClaw(place, ["sessions", "list"], { env });
      expect(list).toMatchObject({ code: 0, stderr: "" });
      expect(list.stdout).toContain("fill");
    } finally {
      Bun.spawnSync(["umount", "-l", small]);
    }
  });
});
