import { afterEach, beforeEach, describe, expect, it } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { config } from "../src/config.ts";
import { findTree, MARK } from "../src/tools/processes.ts";
import { bash, bashOutput, endSession, killShell, scrubEnv } from "../src/tools/shell.ts";
import type { ToolOutput, Workbench } from "../src/types.ts";

const never = new AbortController().signal;
const onLinux = process.platform === "linux";

let workbench: Workbench;
let folder: string;
/** Appears in the arguments of every process that is meant to stay: `sleep $LONG`. */
let LONG: string;

beforeEach(() => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), "shell-")));
  LONG = String(1e7 + Math.floor(Math.random() * 9e7));
  const env = { ...scrubEnv(process.env), [MARK]: `/${crypto.randomUUID()}`, LONG };
  workbench = { roots: [folder], stamps: new Map(), shells: new Map(), env };
});

afterEach(async () => {
  await endSession(workbench);
  expect(strays()).toEqual([]);
  rmSync(folder, { recursive: true, force: true });
});

/** Looked up by other means than the program's own. */
function strays(): string[] {
  const ps = Bun.spawnSync(["ps", "-Ao", "pid=,stat=,args="]).stdout.toString();
  return ps.split("\n").filter((line) => line.includes(`sleep ${LONG}`) && !/^\s*\d+ Z/.test(line));
}

type More = { timeout?: number; run_in_background?: boolean };

const run = (command: string, more: More = {}, signal = never): Promise<ToolOutput> =>
  bash.run({ command, ...more }, workbench, signal);
const look = (bash_id: string) => bashOutput.run({ bash_id }, workbench, never);
const kill = (shell_id: string) => killShell.run({ shell_id }, workbench, never);

async function until(isTrue: () => boolean | Promise<boolean>): Promise<void> {
  for (let tries = 0; !(await isTrue()); tries++) {
    if (tries > 200) throw new Error("it never came");
    await Bun.sleep(10);
  }
}

describe("what a model reads", () => {
  it.each([
    ["both streams, in order", "echo a; echo b >&2; echo c; echo d >&2", "a\nb\nc\nd"],
    ["a stream opened by its name", "echo a > /dev/stderr; echo b > /dev/stdout", "a\nb"],
    ["silence", "true", "(no output)"],
    ["stdin at its end", "cat; read x || echo end", "end"],
    ["a process group of its own", "[ $(ps -o pgid= -p $$) = $$ ] && echo own", "own"],
    ["no terminal", "(: < /dev/tty) 2> /dev/null || echo none", "none"],
    ["several lines and a here-document", "# what\ncat <<X\na $((1 + 1))\nX\necho b", "a 2\nb"],
    ["the states of a progress bar", "printf '1%%\\r50%%\\r100%%\\ndone\\n' | tail -n 2", null],
    ["CRLF", "printf 'a\\r\\nb\\r\\n'", "a\r\nb"],
    ["blank lines inside and in front", "printf '\\n a\\n\\nb\\n\\n\\n'", "\n a\n\nb"],
    ["a character in two pieces", "printf '\\342\\202'; sleep 0.03; printf '\\254'", "€"],
    ["bytes that are no text", "printf 'a\\377\\376b\\0c'", "a\ufffd\ufffdb\0c"],
    ["a byte order mark", "printf '\\357\\273\\277a'", "\ufeffa"],
  ])("%s", async (_, command, expected) => {
    const { content, isError } = await run(command);
    expect(isError).toBeFalsy();
    if (expected !== null) expect(content).toBe(expected);
    else expect(content).toMatch(/^100%\ndone\n\[7 characters .* left out\]$/);
  });

  it.each([
    ["an exit code", "echo a; exit 3", "Exit code 3\na"],
    ["an exit code and nothing else", "false", "Exit code 1\n(no output)"],
    ["a signal", "kill -KILL $$", "Killed by SIGKILL\n(no output)"],
    ["a signal that the shell passes on", "exit 137", "Exit code 137 (SIGKILL)\n(no output)"],
    ["no such command", "no-such-command", /^Exit code 127\nbash: line 1: no-such-command: /],
    ["bad syntax", "if", /^Exit code 2\nbash: .*syntax error/],
  ])("failure: %s", async (_, command, expected) => {
    const { content, isError } = await run(command);
    expect(isError).toBe(true);
    if (typeof expected === "string") expect(content).toBe(expected);
    else expect(content).toMatch(expected);
  });

  it("starts every command in the workspace, in a shell of its own", async () => {
    await run("cd /; X=1; export X");
    expect((await run('pwd; echo "[$X]"')).content).toBe(`${folder}\n[]`);
  });

  it("cuts the middle, says how much, and stays within the limit", async () => {
    const { content } = await run("seq 1 300000");
    const [mark, cut] =
      /\n\[(\d+) bytes are cut here; [^\n]*redirected to a file[^\n]*\]\n/.exec(content) ?? [];
    expect(content.length).toBeLessThanOrEqual(config.limits.resultChars);
    expect(content).toStartWith("1\n2\n3\n");
    expect(content).toEndWith("\n299999\n300000");
    const printed = 1_988_895 - 1;
    expect(content.length - (mark?.length ?? 0) + Number(cut)).toBe(printed);
  });

  it("drains 300 MB fast and in little memory", async () => {
    await run("yes | head -c 50000000");
    const before = process.memoryUsage.rss();
    const { content } = await run("yes | head -c 300000000");
    expect(content).toMatch(/\[2999\d{5} bytes are cut here/);
    expect(process.memoryUsage.rss() - before).toBeLessThan(60_000_000);
  }, 5_000);

  it.if(onLinux)("leaves no file open", async () => {
    const count = () => readdirSync("/proc/self/fd").length;
    await run("echo");
    const before = count();
    for (let i = 0; i < 30; i++) await run("echo");
    await run("true", { timeout: 0.001 });
    await until(() => count() <= before);
  });
});

const trees = [
  ["a child", "sleep $LONG; true"],
  ["one that ignores SIGTERM", "trap '' TERM; sleep $LONG & sleep $LONG; sleep $LONG"],
  ["one under nohup", "nohup sleep $LONG & sleep $LONG"],
  ["one in a session of its own", "setsid sleep $LONG & disown; sleep $LONG"],
  ["an orphan in a session of its own", "(setsid sleep $LONG > /dev/null 2>&1 &); sleep $LONG"],
  ["one without the mark", "env -i setsid sleep $LONG & sleep $LONG"],
  ["an orphan without the mark", "(env -i sleep $LONG &); sleep $LONG"],
  [
    "one without the mark that ignores SIGTERM",
    "env -i setsid bash -c \"trap '' TERM; sleep $LONG; sleep $LONG\" & sleep $LONG",
  ],
  [
    "one that forks whenever it is ended",
    "trap 'setsid sleep $LONG &' TERM; sleep $LONG & wait; wait; sleep $LONG",
  ],
] as const;

describe("an end with everything that was started", () => {
  it.each(trees)("at the timeout: %s", async (_, command) => {
    const startedAt = performance.now();
    const { content, isError } = await run(`echo before; ${command}`, { timeout: 120 });
    expect(strays()).toEqual([]);
    expect(isError).toBe(true);
    expect(content).toMatch(/^Timed out after 120 ms .*larger timeout.*run_in_background/);
    expect(content).toContain("\nbefore");
    expect(performance.now() - startedAt).toBeLessThan(1_200);
  });

  it.each(trees)("when aborted: %s", async (_, command) => {
    const controller = new AbortController();
    const call = run(command, {}, controller.signal);
    await until(() => strays().length > 0);
    const reason = new Error("stop");
    const startedAt = performance.now();
    controller.abort(reason);
    expect(await call.catch((error: unknown) => error)).toBe(reason);
    expect(performance.now() - startedAt).toBeLessThan(1_000);
    expect(strays()).toEqual([]);
  });

  it("does not start what was aborted before", async () => {
    const aborted = AbortSignal.abort(new Error("early"));
    const error = await run("touch made", {}, aborted).catch((thrown: unknown) => thrown);
    expect(error).toBe(aborted.reason);
    expect(existsSync(join(folder, "made"))).toBe(false);
  });

  it("lets a command say goodbye", async () => {
    const command = "trap 'echo bye; exit' TERM; sleep $LONG & wait";
    expect((await run(command, { timeout: 100 })).content).toEndWith("\nbye");
  });

  it("is in time though the output never pauses", async () => {
    const startedAt = performance.now();
    const { content } = await run("yes", { timeout: 200 });
    expect(performance.now() - startedAt).toBeLessThan(1_000);
    expect(content).toContain("y\ny\ny");
  });

  it("a timeout over the limit is cut down, and said", async () => {
    const { content } = await run("echo a", { timeout: 9_000_000 });
    expect(content).toBe("a\n[a timeout of 9000000 ms is over the limit; it was 600000 ms]");
  });
});

const STILL_RUNS = "[a background process still runs, until it is killed or the session ends: pid";

describe("findTree", () => {
  it("finds nobody in the session of this process, whatever the mark", () => {
    const mark = crypto.randomUUID();
    const bystander = Bun.spawn(["sleep", "5"], { env: { ...process.env, [MARK]: mark } });
    expect(findTree(mark)).toEqual([]);
    expect(() => findTree("")).toThrow("empty mark");
    bystander.kill();
  });
});

describe("a child left in the background", () => {
  it.each([
    ["that holds the pipe", "sleep $LONG & echo $!"],
    ["that does not", "sleep $LONG > /dev/null 2>&1 & echo $!"],
    ["that holds the pipe in a session of its own", "setsid sleep $LONG & echo $!"],
    ["that has a dead child", "bash -c 'sleep 0.01 & exec sleep $LONG' & echo $!; sleep 0.06"],
  ])("%s: the call returns, names it, and it runs until the session ends", async (_, command) => {
    const startedAt = performance.now();
    const { content, isError } = await run(command);
    expect(performance.now() - startedAt).toBeLessThan(500);
    expect(isError).toBeFalsy();
    const pid = content.split("\n", 1)[0];
    expect(content).toBe(`${pid}\n${STILL_RUNS} ${pid}]`);
    expect(strays()).toHaveLength(1);
    await endSession(workbench);
    expect(strays()).toEqual([]);
  });

  it("is named though it lost the mark", async () => {
    const { content } = await run("env -i sleep 0.2 > /dev/null & echo $!");
    const pid = content.split("\n", 1)[0];
    expect(content).toBe(`${pid}\n${STILL_RUNS} ${pid}]`);
  });

  it("may print without a pause", async () => {
    const startedAt = performance.now();
    await run("yes & sleep 0.05");
    expect(performance.now() - startedAt).toBeLessThan(500);
  });

  it("may go on printing", async () => {
    const command = "(sleep 0.1; echo late && echo later && touch printed) & echo now";
    expect((await run(command)).content).toStartWith("now\n[a background");
    await until(() => existsSync(join(folder, "printed")));
  });
});

describe("run_in_background", () => {
  it("gives an id at once, then only what is new, and how it stands", async () => {
    await run("mkfifo go");
    const command = "echo one; read x < go; echo two; exit 3";
    const started = await run(command, { run_in_background: true, timeout: 1 });
    expect(started.content).toStartWith("Started in background with id bash_1.");
    expect(workbench.shells.get("bash_1")?.command).toBe(command);
    await Bun.sleep(60);
    expect((await look("bash_1")).content).toMatch(/^Status: running for 0 s\none$/);
    expect((await look("bash_1")).content).toMatch(/^Status: running for 0 s\n\(no new output\)$/);
    await run("echo > go");
    await Bun.sleep(60);
    expect((await look("bash_1")).content).toBe("Status: exit code 3\ntwo");
    expect((await look("bash_1")).content).toBe("Status: exit code 3\n(no new output)");
  });

  it("keeps a character whole that comes between two looks", async () => {
    await run("mkfifo go");
    await run("printf '\\342\\202'; read x < go; printf '\\254'", { run_in_background: true });
    await Bun.sleep(60);
    expect((await look("bash_1")).content).toEndWith("\n(no new output)");
    await run("echo > go");
    await Bun.sleep(60);
    expect((await look("bash_1")).content).toEndWith("\n€");
  });

  it("is not stopped when the turn that started it is", async () => {
    const controller = new AbortController();
    await run("sleep $LONG", { run_in_background: true }, controller.signal);
    controller.abort();
    await Bun.sleep(50);
    expect(strays()).toHaveLength(1);
  });

  it.each(trees)("KillShell ends all of it: %s", async (_, command) => {
    await run(`echo last; ${command}`, { run_in_background: true });
    await until(() => strays().length > 0);
    const { content, isError } = await kill("bash_1");
    expect(strays()).toEqual([]);
    expect(isError).toBeFalsy();
    expect(content).toMatch(/^Ended bash_1\. Status: (killed by SIG|exit code )\w+.*\nlast/);
  });

  it("ends with the session, all at once", async () => {
    for (const [, command] of trees) await run(command, { run_in_background: true });
    await until(() => strays().length > trees.length);
    const startedAt = performance.now();
    await endSession(workbench);
    expect(strays()).toEqual([]);
    expect(performance.now() - startedAt).toBeLessThan(2_000);
  });

  it("a wrong id is told the right ones", async () => {
    expect(await look("bash_1")).toEqual({
      content: "There is no shell bash_1: nothing was started in the background.",
      isError: true,
    });
    await run("true", { run_in_background: true });
    await run("true", { run_in_background: true });
    const answer = { content: "There is no shell x. There are: bash_1, bash_2.", isError: true };
    expect(await look("x")).toEqual(answer);
    expect(await kill("x")).toEqual(answer);
  });
});

describe("a command that cannot start says why, and what to do", () => {
  it("no workspace", async () => {
    rmSync(folder, { recursive: true });
    const { content, isError } = await run("echo");
    expect(isError).toBe(true);
    expect(content).toMatch(/^The workspace folder .* is gone.*Write a file/);
  });

  it.each([
    ["too long", `# ${"x".repeat(3_000_000)}`, /too long .*3000002 bytes.*Write/],
    ["a NUL", "echo a\0b", /could not start/],
  ])("%s", async (_, command, expected) => {
    const { content, isError } = await run(command);
    expect(isError).toBe(true);
    expect(content).toMatch(expected);
  });

  it("no shell", async () => {
    workbench.env["PATH"] = folder;
    const { content, isError } = await run("echo");
    expect(isError).toBe(true);
    expect(content).toContain(`neither bash nor sh in PATH (${folder})`);
  });
});

describe("the environment of commands", () => {
  it.each([
    ..."ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN ANTHROPIC_BASE_URL OPENAI_API_KEY OPENAI_BASE_URL".split(
      " ",
    ),
    ..."OPENROUTER_API_KEY NVIDIA_NIM_API_KEY ZAI_API_KEY HF_TOKEN LM_API_TOKEN VLLM_API_KEY".split(
      " ",
    ),
    ..."SLACK_BOT_TOKEN SLACK_APP_TOKEN EMAIL_IMAP_URL EMAIL_SMTP_URL CLAW_OWNER CLAW_HOME".split(
      " ",
    ),
    ..."GITHUB_TOKEN AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID PGPASSWORD MY_PASSWORD_2 Some_Api_Key".split(
      " ",
    ),
    ..."GOOGLE_APPLICATION_CREDENTIALS CLIENT_SECRETS BUN_BE_BUN BUN_OPTIONS BUN_INSPECT_NOTIFY".split(
      " ",
    ),
    ..."OPENAI_API_KEY_2 X_APIKEY SSH_PASSPHRASE".split(" "),
  ])("withholds %s", (name) => {
    expect(scrubEnv({ [name]: "canary" })).not.toHaveProperty(name);
  });

  it.each([
    ..."PATH HOME LANG LC_ALL USER SHELL TMPDIR SSH_AUTH_SOCK DISPLAY NODE_OPTIONS NODE_EXTRA_CA_CERTS".split(
      " ",
    ),
    ..."HTTPS_PROXY BUN_INSTALL VIRTUAL_ENV KEYBOARD TOKENIZERS_PARALLELISM MONKEY XDG_RUNTIME_DIR PWD".split(
      " ",
    ),
  ])("leaves %s", (name) => {
    expect(scrubEnv({ [name]: "here" })).toHaveProperty(name, "here");
  });

  it("has nobody at the keyboard, and no more than it was given", async () => {
    expect((await run("echo $TERM $PAGER $GIT_PAGER $GIT_TERMINAL_PROMPT $NO_COLOR")).content).toBe(
      "dumb cat cat 0 1",
    );
    process.env["CANARY_FOR_SHELL_TEST"] = "canary";
    expect((await run("env")).content).not.toContain("canary");
    delete process.env["CANARY_FOR_SHELL_TEST"];
  });
});
