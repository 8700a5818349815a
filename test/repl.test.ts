/**
 * The REPL as a person has it: the real program in a real terminal (tmux), against a scripted model
 * on a socket. What is asserted is what stands on the screen, in the scrollback, and on the wire.
 */
import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Reply, type Scripted, startScripted } from "./scripted.ts";

const main = join(import.meta.dir, "../src/main.ts");
const socket = `claw-test-${process.pid}`;
const tmux = (...args: string[]) =>
  Bun.spawnSync(["tmux", "-L", socket, "-f", "/dev/null", ...args]).stdout.toString();

/** What keeps a pane open and says how claw ended and left the terminal. */
const shell =
  'claw() { "$BUN" "$MAIN" "$@"; }; claw "$@"; echo "code $?, $(stty -a | grep -o -- "-*icanon")"; exec sleep 1000';

let folder: string;
let workspace: string;
let server: Scripted;
let panes: string[] = [];

beforeEach(() => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), "claw-repl-")));
  workspace = join(folder, "work");
  mkdirSync(workspace);
});

afterEach(() => {
  for (const pane of panes) tmux("kill-session", "-t", pane);
  panes = [];
  server?.stop();
  rmSync(folder, { recursive: true, force: true });
});

afterAll(() => void tmux("kill-server"));

const envOf = (extra: Record<string, string>) => ({
  CLAW_HOME: join(folder, "home"),
  HOME: folder,
  LANG: "C.UTF-8",
  LC_ALL: "",
  TERM: "xterm-256color",
  BUN: process.execPath,
  MAIN: main,
  ...server.env("openai"),
  ...extra,
});

type Start = { args?: string[]; columns?: number; rows?: number; env?: Record<string, string> };

/** claw in a pane; resolves once its prompt is there. */
async function start(script: Parameters<typeof startScripted>[0], options: Start = {}) {
  const { args = ["--model", "openai/scripted"], columns = 80, rows = 24, env = {} } = options;
  server?.stop();
  server = startScripted(script);
  const name = `pane-${panes.length}`;
  panes.push(name);
  const variables = Object.entries(envOf(env)).flatMap(([key, value]) => ["-e", `${key}=${value}`]);
  const size = ["-x", String(columns), "-y", String(rows)];
  tmux(
    "new-session",
    "-d",
    "-s",
    name,
    ...size,
    "-c",
    workspace,
    ...variables,
    "sh",
    "-c",
    shell,
    "sh",
    ...args,
  );
  const pane = {
    screen: () => tmux("capture-pane", "-t", name, "-p").trimEnd(),
    all: () => tmux("capture-pane", "-t", name, "-p", "-S", "-").trimEnd(),
    ask: (format: string) => tmux("display", "-t", name, "-p", format).trim(),
    keys: (...keys: string[]) => tmux("send-keys", "-t", name, ...keys),
    say(text: string) {
      tmux("send-keys", "-t", name, "-l", text);
      tmux("send-keys", "-t", name, "Enter");
    },
    resize: (width: number, height: number) =>
      tmux("resize-window", "-t", name, "-x", String(width), "-y", String(height)),
    paste(text: string) {
      writeFileSync(join(folder, "paste"), text);
      tmux("load-buffer", join(folder, "paste"));
      tmux("paste-buffer", "-p", "-t", name);
    },
    async until(part: string | RegExp, where: "screen" | "all" = "screen") {
      const found = () =>
        typeof part === "string" ? pane[where]().includes(part) : part.test(pane[where]());
      for (let waited = 0; !found(); waited += 20) {
        if (waited > 4000) throw new Error(`never saw ${part} in:\n${pane.all()}`);
        await Bun.sleep(20);
      }
      return pane.screen();
    },
  };
  await pane.until(/^› /m);
  return pane;
}

const text = (reply: string): Reply => ({ text: reply });
const call = (name: string, input: object): Reply => ({ calls: [{ name, input }] });
const sent = (index: number) =>
  JSON.stringify(server.requests[index]?.json.messages ?? "no such request");
const times = (all: string, part: string) => all.split(part).length - 1;

describe("the screen", () => {
  test("append-only: no alternate screen, no mouse; the cursor stands at the input", async () => {
    const pane = await start([]);
    expect(pane.ask("#{alternate_on} #{mouse_any_flag} #{cursor_flag}")).toBe("0 0 1");
    const row = pane
      .screen()
      .split("\n")
      .findIndex((line) => line.startsWith("› "));
    expect(pane.ask("#{cursor_x},#{cursor_y}")).toBe(`2,${row}`);
    pane.keys("-l", "ab你");
    await pane.until("› ab你");
    expect(pane.ask("#{cursor_x},#{cursor_y}")).toBe(`6,${row}`);
  });

  test("an answer is printed once, however the window is resized", async () => {
    const words = Array.from({ length: 60 }, (_, index) => `word${index}`);
    const pane = await start([{ text: words.map((word) => `${word}\n\n`), chunkDelayMs: 10 }]);
    pane.say("go");
    for (const [width, height] of [
      [60, 20],
      [40, 12],
      [100, 30],
      [80, 24],
    ] as const) {
      await Bun.sleep(150);
      pane.resize(width, height);
    }
    await pane.until("word59");
    const all = pane.all();
    expect(words.filter((word) => !new RegExp(`^${word}$`, "m").test(all))).toEqual([]);
    expect(words.filter((word) => all.match(new RegExp(`^${word}$`, "gm"))?.length !== 1)).toEqual(
      [],
    );
    expect(times(all, "› Ask for a change")).toBe(1);
  });

  test.each([
    [20, 8],
    [40, 10],
    [12, 3],
  ])("%i columns and %i rows", async (columns, rows) => {
    const pane = await start(
      [text("A fairly long answer, with `code` and a list:\n\n- one\n- two\n\nEnd.")],
      { columns, rows },
    );
    pane.say("go");
    await pane.until("End.", "all");
    expect(times(pane.all(), "End.")).toBe(1);
  });

  test("NO_COLOR and a locale that is not UTF-8", async () => {
    const pane = await start([text("# Title\n\n- item\n")], { env: { NO_COLOR: "1" } });
    pane.say("go");
    await pane.until("item");
    expect(tmux("capture-pane", "-t", panes[0] ?? "", "-p", "-e")).not.toMatch(/\x1b\[3\dm/); // oxlint-disable-line no-control-regex
  });

  test("one line is repainted by the spinner, and nothing when nothing changes", async () => {
    server = startScripted([{ text: "never", hangAfter: 0 }]);
    let bytes = "";
    const terminal = {
      cols: 80,
      rows: 24,
      data: (_: Bun.Terminal, data: Uint8Array) => void (bytes += Buffer.from(data).toString()),
    };
    const child = Bun.spawn([process.execPath, main, "--model", "openai/scripted"], {
      cwd: workspace,
      env: { ...process.env, ...envOf({}) },
      terminal,
    });
    try {
      while (!bytes.includes("/help")) await Bun.sleep(20);
      await Bun.sleep(200);
      bytes = "";
      await Bun.sleep(400);
      expect(bytes).toBe("");
      child.terminal?.write("go\r");
      while (!bytes.includes("Waiting")) await Bun.sleep(20);
      bytes = "";
      await Bun.sleep(500);
      const frames = bytes.split("\x1b[?2026h").slice(1);
      expect(frames.length).toBeGreaterThan(2);
      for (const frame of frames)
        expect([frame.length < 200, frame.includes("\n"), frame.includes("Waiting")]).toEqual([
          true,
          false,
          true,
        ]);
    } finally {
      child.kill("SIGKILL");
      await child.exited;
    }
  });
});

describe("attacks", () => {
  const evil = "\x1b[2J\x1b]0;owned\x07\x1b]52;c;eA==\x07\x1b[6n\u009b2J\u202e\x1bc";

  test("only colours and our own cursor moves reach the terminal", async () => {
    writeFileSync(join(workspace, "evil.txt"), `${evil}\n`);
    server = startScripted([
      {
        text: `${evil} text \`${evil}\`\n\n\`\`\`${evil}\n${evil}\n\`\`\`\n`,
        thinking: evil,
        calls: [{ name: "Bash", input: { command: "cat evil.txt", description: evil } }],
      },
      call("Read", { file_path: `evil${evil}.txt` }),
      call(`evil${evil}`, { [evil]: evil }),
      call("TodoWrite", { todos: [{ content: evil, status: "pending" }] }),
      call("Bash", { command: `printf '${evil}'` }),
      { status: 400, body: { error: { message: evil } } },
    ]);
    let bytes = "";
    const terminal = {
      cols: 100,
      rows: 30,
      data: (_: Bun.Terminal, data: Uint8Array) => void (bytes += Buffer.from(data).toString()),
    };
    const child = Bun.spawn([process.execPath, main, "--model", "openai/scripted"], {
      cwd: workspace,
      env: { ...process.env, ...envOf({}) },
      terminal,
    });
    const until = async (part: string) => {
      for (let waited = 0; !bytes.includes(part); waited += 20) {
        if (waited > 4000) throw new Error(`never saw ${part}`);
        await Bun.sleep(20);
      }
    };
    try {
      await until("/help");
      child.terminal?.write(`\x1b[200~${evil}\x1b[201~\r`);
      await until("Go ahead?");
      child.terminal?.write("y");
      await until("400");
      child.terminal?.write("\x04");
      await child.exited;
    } finally {
      child.kill("SIGKILL");
    }
    const ours =
      /\x1b(?:\[[0-9;]*m|\[\d*[ABCK]|\[2K|\[J|[78]|\[\?(?:2026|2004|25)[hl]|\[>1u|\[<u|\[>4;[01]m)|\r\n|\r/g; // oxlint-disable-line no-control-regex
    const rest = Array.from(bytes.replaceAll(ours, "")).filter(
      (char) => /[\p{Cc}\p{Cf}]/u.test(char) && char !== "\t",
    );
    expect(rest).toEqual([]);
    expect(bytes).toContain("\\x1b]52;c;eA==");
  });
});

describe("typing", () => {
  test("what is typed while the agent works is shown, and given to it at its next step", async () => {
    const pane = await start([
      {
        text: ["thinking ", "about it"],
        chunkDelayMs: 200,
        calls: [{ name: "Glob", input: { pattern: "*" } }],
      },
      text("done"),
    ]);
    pane.say("go");
    await pane.until("thinking");
    pane.say("and also this");
    await pane.until("queued: and also this");
    await pane.until("done");
    expect(sent(0)).not.toContain("and also this");
    expect(sent(1)).toContain("and also this");
    expect(times(pane.all(), "› and also this")).toBe(1);
  });

  test("what is left in the queue starts the next turn", async () => {
    const pane = await start([{ text: ["one ", "two"], chunkDelayMs: 150 }, text("second answer")]);
    pane.say("go");
    await pane.until("one");
    pane.say("next");
    await pane.until("second answer");
    expect(sent(1)).toContain("next");
  });

  test("a paste of 10,000 lines is one label, and sent whole", async () => {
    const pane = await start([text("read")]);
    const lines = Array.from({ length: 10_000 }, (_, index) => `line ${index} of the paste`).join(
      "\n",
    );
    pane.paste(lines);
    await pane.until("[pasted 10000 lines]");
    pane.keys("Enter");
    await pane.until("read");
    expect(server.requests[0]?.json.messages.at(-1).content).toContain(lines);
  });

  test("history outlives the session", async () => {
    const pane = await start([text("one"), text("two")]);
    pane.say("first prompt");
    await pane.until(/^one$/m);
    pane.keys("C-d");
    await pane.until("code 0");
    const next = await start([]);
    next.keys("Up");
    await next.until("› first prompt");
  });

  test("a file that is mentioned is attached", async () => {
    writeFileSync(join(workspace, "notes.txt"), "the secret word is plum\n");
    const pane = await start([text("ok")]);
    pane.keys("-l", "what is in @no");
    await pane.until("@notes.txt");
    pane.keys("Tab");
    pane.keys("-l", "?");
    pane.keys("Enter");
    await pane.until(/^ok$/m);
    expect(sent(0)).toContain("the secret word is plum");
    expect(sent(0)).toContain("what is in @notes.txt ?");
  });

  test("!command runs at once, and the model sees it with the next input", async () => {
    const pane = await start([text("ok")]);
    pane.say("!echo from-the-$((40 + 2))");
    await pane.until("from-the-42");
    expect(server.requests).toHaveLength(0);
    pane.say("what did I run?");
    await pane.until(/^ok$/m);
    expect(sent(0)).toContain("from-the-42");
  });
});

describe("questions", () => {
  const script = [call("Bash", { command: "touch made" }), text("after")];

  test.each([
    ["y", { made: true, asked: 1 }],
    ["Enter", { made: true, asked: 1 }],
    ["a", { made: true, asked: 1 }],
    ["n", { made: false, asked: 1 }],
    ["Escape", { made: false, asked: 1 }],
    ["C-c", { made: false, asked: 1 }],
  ])("%s", async (key, { made }) => {
    const pane = await start(script);
    pane.say("go");
    const screen = await pane.until("Go ahead?");
    expect(screen).toContain("touch made");
    pane.keys(key);
    if (key === "n") {
      await pane.until("Why not");
      pane.say("use another name");
    }
    await pane.until(/^(after|⎿ Interrupted)/m);
    expect(await Bun.file(join(workspace, "made")).exists()).toBe(made);
    if (key === "n") expect(sent(1)).toContain("use another name");
    if (key === "Escape") expect(server.requests).toHaveLength(1);
  });

  test("a rule that is remembered is not asked again, and can be removed", async () => {
    const pane = await start([...script, call("Bash", { command: "touch made" }), text("again")]);
    pane.say("go");
    await pane.until("Go ahead?");
    pane.keys("a");
    await pane.until(/^after$/m);
    pane.say("go again");
    await pane.until(/^again$/m);
    expect(times(pane.all(), "claw wants to")).toBe(1);
    pane.say("/permissions");
    await pane.until("remembered for this workspace");
    pane.keys("Enter");
    await pane.until("Removed: Bash(touch");
  });

  test("an edit is shown as a diff before it is made, whole", async () => {
    const content = Array.from({ length: 60 }, (_, index) => `row ${index}`).join("\n");
    const pane = await start([call("Write", { file_path: "new.txt", content }), text("after")]);
    pane.say("go");
    await pane.until("Go ahead?");
    const all = pane.all();
    for (const row of content.split("\n")) expect(all).toContain(`+${row}`);
    pane.keys("y");
    await pane.until(/^after$/m);
    expect(times(pane.all(), "+row 7")).toBe(1);
    expect(readFileSync(join(workspace, "new.txt"), "utf8").trimEnd()).toBe(content);
  });

  test("what somebody is typing does not answer a question", async () => {
    const pane = await start([
      { ...call("Bash", { command: "touch made" }), text: ["wait ", "for it"], chunkDelayMs: 100 },
      text("after"),
    ]);
    pane.say("go");
    await pane.until("wait");
    for (let typed = 0; typed < 12; typed += 1) {
      pane.keys("-l", "yay");
      await Bun.sleep(60);
    }
    expect(await Bun.file(join(workspace, "made")).exists()).toBe(false);
    await pane.until("Go ahead?");
    await pane.until("in the input: yayyay");
  });
});

describe("interrupting and leaving", () => {
  test.each(["Escape", "C-c"])(
    "%s interrupts, and the queue goes back into the input",
    async (key) => {
      const pane = await start([call("Bash", { command: "ls; sleep 60" }), text("next")], {
        args: ["--model", "openai/scripted", "--dangerously-skip-permissions"],
      });
      pane.say("go");
      await pane.until("Running Bash");
      pane.say("queued words");
      await pane.until("queued: queued words");
      pane.keys(key);
      await pane.until("Interrupted.");
      await pane.until("› queued words");
      pane.keys("Enter");
      await pane.until(/^next$/m);
    },
  );

  test.each<[string, (pane: Awaited<ReturnType<typeof start>>) => unknown, number]>([
    ["Ctrl-D", (pane) => pane.keys("C-d"), 0],
    ["Ctrl-C twice", (pane) => pane.keys("C-c", "C-c"), 0],
    ["exit", (pane) => pane.say("exit"), 0],
    [":q", (pane) => pane.say(":q"), 0],
    ["/exit", (pane) => pane.say("/exit"), 0],
    ["SIGTERM", (pane) => killClaw(pane, "SIGTERM"), 143],
    ["SIGHUP", (pane) => killClaw(pane, "SIGHUP"), 129],
  ])("%s leaves the terminal as it was", async (_, leave, code) => {
    const pane = await start([]);
    await leave(pane);
    await pane.until(`code ${code}, icanon`);
    expect(pane.ask("#{cursor_flag} #{bracketed_paste_flag}").startsWith("1")).toBe(true);
    expect(pane.screen()).not.toContain("› Ask for a change");
  });

  test("Ctrl-C clears the input first, and asks before it leaves", async () => {
    const pane = await start([]);
    pane.keys("-l", "some text");
    await pane.until("› some text");
    pane.keys("C-c");
    await pane.until("› Ask");
    pane.keys("C-c");
    await pane.until("Ctrl-C again leaves");
    pane.keys("-l", "on");
    await pane.until("› on");
  });

  async function killClaw(pane: { ask(format: string): string }, signal: NodeJS.Signals) {
    const child = Bun.spawnSync(["pgrep", "-P", pane.ask("#{pane_pid}")])
      .stdout.toString()
      .trim();
    process.kill(Number(child), signal);
  }
});

describe("commands", () => {
  test("each says something, and none fails", async () => {
    const pane = await start([text("hello")], { rows: 60 });
    pane.say("hi");
    await pane.until("hello");
    const expected: [string, string][] = [
      ["/help", "Shift-Tab"],
      ["/context", "free"],
      ["/cost", "1 call"],
      ["/model", "openai/scripted"],
      ["/permissions", "Mode: ask"],
      ["/permissions edit", "The mode is now edit"],
      ["/sessions", "/resume goes on"],
      ["/memory", "No instruction files"],
      ["/tools", "WebFetch|Bash"],
      ["/skills", "kill"],
      ["/status", workspace],
      ["/diff", "no git repository"],
      ["/export talk.md", "Written:"],
      ["/contxt", "Did you mean /context?"],
    ];
    for (const [line, part] of expected) {
      pane.say(line);
      await pane.until(new RegExp(`› ${line}\\n\\n[\\s\\S]*(${part})`), "all");
    }
    expect(readFileSync(join(workspace, "talk.md"), "utf8")).toContain("hello");
    expect(server.requests).toHaveLength(1);
  });

  test("/clear begins anew, /resume goes back, /fork copies, /compact shortens", async () => {
    const pane = await start([text("apple"), text("pear"), text("a summary"), text("plum")]);
    pane.say("first session");
    await pane.until(/^apple$/m);
    pane.say("/clear");
    await pane.until("A new session");
    pane.say("second session");
    await pane.until(/^pear$/m);
    expect(sent(1)).not.toContain("apple");
    pane.say("/resume");
    await pane.until("Go on with which session?");
    pane.say("first");
    await pane.until(/Session \w{8}: first session[\s\S]*apple/);
    pane.say("/compact");
    await pane.until("Compacted:");
    pane.say("/fork");
    await pane.until(/Session \w{8}: first session[\s\S]*Session \w{8}: first session/, "all");
    pane.say("third");
    await pane.until(/^plum$/m);
    expect(sent(3)).toContain("a summary");
    expect(sent(3)).not.toContain("apple");
  });
});
