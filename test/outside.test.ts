/** What is seen from outside: status, its socket, logs, secrets, the first run, pairing, the service. */
import { afterAll, expect, test } from "bun:test";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { systemFor } from "../src/commands/service.ts";
import { config } from "../src/config.ts";
import { openDatabase } from "../src/store/database.ts";
import { UsageError } from "../src/errors.ts";
import { overviewIn } from "../src/store/overview.ts";
import { peopleIn } from "../src/store/people.ts";
import { type Log, openLog } from "../src/serve/log.ts";
import { readSecrets, saveSecrets, secretsIn } from "../src/serve/secrets.ts";
import { missingFor } from "../src/serve/missing.ts";
import { askDaemon, openSocket, socketPath } from "../src/serve/socket.ts";
import { type Live, readStatus, type Status } from "../src/serve/status.ts";
import { until } from "./claw.ts";
import { startSlack } from "./slack-server.ts";

const base = fs.mkdtempSync(join(tmpdir(), "claw-outside-"));
afterAll(() => fs.rmSync(base, { recursive: true, force: true }));
const newHome = () => join(fs.mkdtempSync(join(base, "place-")), "home");

const noon = new Date(2026, 10, 21, 12).getTime();
const iso = (at: number) => new Date(at).toISOString();

/** A home where messages wait, a turn and a reply failed, a run was missed and money was spent. */
function usedHome(now = noon): string {
  const clawHome = newHome();
  const opened = openDatabase(clawHome);
  const [ago, today] = [now - 60_000, new Date(now).toLocaleDateString("sv-SE")];
  const message = `'slack:D1', 'command', 'U1', '{"text":"a person said"}', ${ago}, ${ago}`;
  const outgoing = `'slack', 'slack:D1', 'D1', '{"text":"claw said"}', ${now - 5_000}`;
  opened.db.run(`
    INSERT INTO conversations (id, channel, thread, address, created_at, last_error) VALUES
      ('slack:D1', 'slack', 'D1', 'D1', ${ago}, 'no model'), ('slack:D2', 'slack', 'D2', 'D2', 1, NULL);
    INSERT INTO messages (conversation_id, kind, sender, body, at, stored_at, channel, external_id, state)
      VALUES (${message}, 'slack', 'm1', 'failed'), (${message}, 'slack', 'm2', 'waiting'),
        (${message}, 'slack', 'm3', 'taken');
    INSERT INTO outbox (channel, conversation_id, address, body, created_at, client_id, state, error)
      VALUES (${outgoing}, 'a', 'failed', 'not_found'), (${outgoing}, 'b', 'pending', NULL),
        (${outgoing}, 'c', 'sending', NULL);
    INSERT INTO spending VALUES ('slack:D1', '${today}', 1200, 0.5), ('slack:D1', '2026-01-02', 9, 9);
    INSERT INTO egress VALUES
      (1, 'slack:D1', ${now - 9}, 5, 'github', 'GET', 'github.com', '/a', 200, 0, 2000000, NULL),
      (2, 'slack:D1', ${now - 8}, 5, NULL, 'GET', 'github.com', '/b', 403, 0, 0, 'no route'),
      (3, 'slack:D1', ${now - 9e8}, 5, NULL, 'GET', 'old.test', '/', 403, 0, 0, 'no route');
    INSERT INTO schedules (id, name, message, kind, spec, time_zone, missed, channel, target, state,
      anchor_at, next_at, created_at) VALUES ('s1', 'standup', 'claw said', 'every', '60000', 'UTC',
      'once', 'slack', 'C1', 'active', 0, ${now + 90_000}, 0);
    INSERT INTO runs VALUES ('s1', ${now - 9e5}, 'done', ${now - 9e5}, NULL, 0, NULL),
      ('s1', ${now - 6e5}, 'missed', ${now - 6e5}, NULL, NULL, 'no daemon');`);
  opened.close();
  return clawHome;
}

const [pid, since, model, isolation] = [7, noon - 7_200_000, "demo", "bwrap"];
const running = [{ conversation: "slack:D2", since: noon - 1_000, doing: "Bash" }];
const channels = [{ name: "slack", since: noon, lastIn: noon, lastOut: null, error: null }];
const live: Live = { pid, since, model, isolation, channels, running };

test("status tells what the store and the daemon know, and no words of anybody", () => {
  const opened = openDatabase(usedHome());
  config.serve.conversations["slack:D*"] = { tokensPerDay: 5_000 };
  const status = readStatus(overviewIn(opened), live, noon);
  const later = readStatus(overviewIn(opened), null, noon + 8 * 864e5);
  delete config.serve.conversations["slack:D*"];
  opened.close();
  expect(status).toMatchObject({
    since: iso(since),
    channels: [{ name: "slack", lastIn: iso(noon), lastOut: null }],
    running: [{ conversation: "slack:D2", since: iso(noon - 1_000), doing: "Bash" }],
    queue: { waiting: 1, taken: 1, failed: 1 },
    outbox: { pending: 1, sending: 1, failed: 1, unknown: 0, oldest: iso(noon - 5_000) },
    schedules: [{ id: "s1", next: iso(noon + 90_000), last: iso(noon - 6e5), lastState: "missed" }],
    budgets: [{ conversation: "slack:D1", tokens: 1200, usd: 0.5, tokensPerDay: 5_000 }],
    egress: [{ conversation: "slack:D1", host: "github.com", requests: 2, bytes: 2e6, refused: 1 }],
    conversations: [{ id: "slack:D1", waiting: 1, lastError: "no model" }, { id: "slack:D2" }],
  });
  expect(status.errors.map(({ at, where, error }) => `${at} ${where}: ${error}`)).toEqual([
    `${iso(noon - 5_000)} slack outbox: not_found`,
    `${iso(noon - 60_000)} slack:D1: no model`,
    `${iso(noon - 6e5)} schedule standup: no daemon`,
  ]);
  expect(JSON.stringify(status)).not.toContain("said");
  expect(later).toMatchObject({ serving: false, pid: null, errors: [], queue: { failed: 0 } });
});

/** A daemon's socket in a home, and how often it was told of a change. */
function serveStatus(clawHome: string, status?: () => Status) {
  const opened = openDatabase(clawHome);
  const daemon = { changes: 0, [Symbol.dispose]: () => [socket.stop(), opened.close()] };
  const changed = () => void (daemon.changes += 1);
  const read = () => readStatus(overviewIn(opened), live, noon);
  const socket = openSocket({ path: socketPath(clawHome), status: status ?? read, changed });
  return daemon;
}

test("the socket: answers this user alone, and nothing but its two questions", async () => {
  const [clawHome, umask] = [usedHome(), process.umask()];
  const unix = socketPath(clawHome);
  {
    using daemon = serveStatus(clawHome);
    expect([fs.statSync(unix).mode & 0o777, process.umask()]).toEqual([0o600, umask]);
    expect(await askDaemon(clawHome, "/status", "GET")).toMatchObject({ pid: 7, serving: true });
    expect(await askDaemon(clawHome, "/changed", "POST")).toBe(true);
    for (const path of ["", "changed", "status/x"])
      expect((await fetch(`http://claw/${path}`, { unix })).status).toBe(404);
    expect(daemon.changes).toBe(1);
  }
  expect(fs.existsSync(unix)).toBe(false);
  expect(await askDaemon(clawHome, "/status", "GET")).toBe(null);
});

test("the socket: a dead daemon's file is no obstacle, another file is", async () => {
  const clawHome = usedHome();
  const path = socketPath(clawHome);
  const dying = `Bun.serve({ unix: "${path}", fetch() {} }); process.kill(process.pid, 9)`;
  await Bun.spawn([process.execPath, "-e", dying], { stderr: "ignore" }).exited;
  expect([fs.existsSync(path), await askDaemon(clawHome, "/status", "GET")]).toEqual([true, null]);
  {
    using _ = serveStatus(clawHome, () => JSON.parse("oops"));
    const answer = await askDaemon(clawHome, "/status", "GET").catch(String);
    expect(answer).toMatch(/does not answer as it should: .*"oops"/);
  }
  fs.writeFileSync(path, "somebody's notes");
  expect(() => serveStatus(clawHome)).toThrow(UsageError);
  expect(fs.statSync(path).isFile()).toBe(true);
});

const lineOf = (options: object, ...event: Parameters<Log>): string => {
  let written = "";
  const write = (line: string) => void (written += line);
  openLog({ json: false, verbose: false, ...options, write, now: () => noon })(...event);
  return written;
};

test("the log: is one readable line an event", () => {
  const facts = { channel: "slack", count: 2, ok: true, id: null, name: "Ann Lee", empty: "" };
  const told = 'channel=slack count=2 ok=true id=null name="Ann Lee" empty=""';
  expect(lineOf({}, "message stored", facts)).toBe(`12:00:00 message stored  ${told}`);
  expect(JSON.parse(lineOf({ json: true }, "a", { at: 1 }))).toEqual({ at: iso(noon), event: "a" });
  expect(lineOf({}, "debug step")).toBe("");
  expect(lineOf({ verbose: true }, "debug step")).toBe("12:00:00 debug step");
});

test.each([false, true])("the log: nothing in a fact breaks or drives it (json: %p)", (json) => {
  const evil = "a\n12:00:00 approved\u001b[2J\u009b1m\u202e\u2028\u{e0041}";
  const line = lineOf({ json }, "message", { name: evil, long: "y".repeat(10_000) });
  expect(line).toMatch(/^[^\p{Cc}\p{Cf}\p{Zl}]{0,1000}$/u);
  if (json) expect(JSON.parse(line).name).toBe(evil);
});

test("the log: a known secret is never shown, however it is written, the longer one first", () => {
  const tokens = { SLACK_BOT_TOKEN: "xoxb-12", SLACK_APP_TOKEN: "xoxb-12-3", HF_TOKEN: "abc" };
  const secrets = secretsIn({ ...tokens, EMAIL_IMAP_URL: "imaps://me:p%40ss%C3%A9%20%22@h:993" });
  const facts = { a: "is xoxb-12-3 abc", b: "p%40ss%C3%A9%20%22", c: 'p@ssé "' };
  const masked = '12:00:00 got •••  a="is ••• abc" b=••• c=•••';
  expect(lineOf({ secrets }, "got xoxb-12", facts)).toBe(masked);
  expect(lineOf({ secrets, json: true }, "got xoxb-12")).not.toContain("xoxb");
});

test("secrets: are read from a file that is ours alone; the environment goes first", () => {
  const clawHome = newHome();
  const path = join(clawHome, "secrets.env");
  expect(readSecrets(clawHome, { CLAW_MODEL: "demo" })).toEqual({ CLAW_MODEL: "demo" });
  fs.mkdirSync(clawHome);
  const lines = `# mine\nexport SLACK_BOT_TOKEN="xoxb-\\$1"\nCLAW_OWNER='slack:U1'\n\nCLAW_MODEL = b\n`;
  fs.writeFileSync(path, `${lines}OPENAI_API_KEY=k\n`, { mode: 0o600 });
  const env = { CLAW_MODEL: "demo", OPENAI_API_KEY: " ", PATH: "/bin" };
  const completed = { SLACK_BOT_TOKEN: "xoxb-$1", CLAW_OWNER: "slack:U1", OPENAI_API_KEY: "k" };
  expect(readSecrets(clawHome, env)).toEqual({ ...env, ...completed });
  for (const [line, sentence] of [
    ["SLACK_BOT_TOKN=xoxb-hidden", "Line 1 .* Did you mean SLACK_BOT_TOKEN"],
    ["# a\nLD_PRELOAD=hidden", "Line 2 of secrets.env sets LD_PRELOAD"],
    ["hidden words", "Line 1 of secrets.env is not NAME=value."],
  ]) {
    fs.writeFileSync(path, `${line}\n`);
    expect(() => readSecrets(clawHome, {})).toThrow(new RegExp(`^(?!.*hidden).*${sentence}`));
  }
  fs.chmodSync(path, 0o640);
  expect(() => readSecrets(clawHome, {})).toThrow(`chmod 600 ${path}`);
  expect(() => saveSecrets(clawHome, {})).toThrow(UsageError);
});

test("secrets: are saved whole, for this user, beside what was there", () => {
  const clawHome = newHome();
  const path = join(clawHome, "secrets.env");
  const [EMAIL_IMAP_URL, umask] = ["imaps://a b:\"$\\`'#%22@h", process.umask(0)];
  saveSecrets(clawHome, { CLAW_OWNER: "slack:U1", EMAIL_IMAP_URL });
  fs.writeFileSync(path, `# keep me\n${fs.readFileSync(path, "utf8")}`);
  fs.writeFileSync(`${path}.new`, "of a crash", { mode: 0o666 });
  saveSecrets(clawHome, { CLAW_OWNER: "slack:U2" });
  process.umask(umask);
  expect([path, clawHome].map((at) => fs.statSync(at).mode & 0o777)).toEqual([0o600, 0o700]);
  expect(fs.readdirSync(clawHome)).toEqual(["secrets.env"]);
  expect(fs.readFileSync(path, "utf8")).toMatch(/^# keep me\n(?!.*slack:U1)/s);
  expect(readSecrets(clawHome, {})).toEqual({ CLAW_OWNER: "slack:U2", EMAIL_IMAP_URL });
  expect(() => saveSecrets(clawHome, { CLAW_OWNER: "a\nLD_PRELOAD=x" })).toThrow(UsageError);
});

/** A program that calls `name` of a module with `args`, and ends with what that resolves to. */
function program(module: string, name: string, args: string): string[] {
  const path = JSON.stringify(join(import.meta.dir, "../src", module));
  const fail = "(error) => [console.error(error.message), 2][1]";
  const code = `process.exit(Number(await ${name}(${args}).catch(${fail})))`;
  return [process.execPath, "-e", `import { ${name} } from ${path}; ${code}`];
}

/** Runs a command as main.ts would. */
async function run(command: "status" | "pair" | "service", clawHome: string, ...argv: string[]) {
  const name = `run${command[0]?.toUpperCase()}${command.slice(1)}`;
  const child = Bun.spawn(program(`commands/${command}.ts`, name, JSON.stringify(argv)), {
    env: { PATH: `${base}/bin:${process.env["PATH"]}`, HOME: base, CLAW_HOME: clawHome },
    stderr: "pipe",
  });
  const [out, err] = [await child.stdout.text(), await child.stderr.text()];
  return { code: await child.exited, out, err };
}

test("commands: status asks the daemon, else the store, else says that there is nothing", async () => {
  const nowhere = newHome();
  expect((await run("status", nowhere)).out).toMatch(/does not serve.*\nNothing was ever done/);
  const json = await run("status", nowhere, "--json");
  expect(JSON.parse(json.out)).toMatchObject({ serving: false, errors: [], queue: { waiting: 0 } });
  expect(fs.existsSync(nowhere)).toBe(false);
  const clawHome = usedHome(Date.now());
  {
    using _ = serveStatus(clawHome);
    expect((await run("status", clawHome)).out).toMatch(/serves since .*pid 7, demo, bwrap/);
  }
  const { out } = await run("status", clawHome);
  expect(out).toMatch(/queue +1 waiting, 1 taken, 1 failed\n(.*\n)*outbox +1 pending, 1 sending/);
  expect(out).toMatch(/schedules +standup  next in 1 min, last 10 min ago \(missed\)\n/);
  expect(out).toContain("slack:D1  github.com: 2 requests, 2.0 MB, 1 refused\n");
  expect(out).not.toMatch(/channels|running/);
  expect((await run("status", clawHome, "--jsn")).code).toBe(2);
});

test("commands: pair shows who waits, decides once, and tells the daemon", async () => {
  const clawHome = newHome();
  using daemon = serveStatus(clawHome);
  const opened = openDatabase(clawHome);
  const people = peopleIn(opened);
  const knock = async (address: string) =>
    (await people.knock("slack", address, "Eve\u001b[2J", Date.now(), () => [])) ?? "";
  const [eve, mallory] = [await knock("U1"), await knock("U2")];
  const { out } = await run("pair", clawHome, "list");
  expect(out).toMatch(new RegExp(`${eve}  slack:U1  Eve\\\\x1b\\[2J  waits until ..:..\n`));
  expect((await run("pair", clawHome, "approve", eve.toLowerCase())).code).toBe(0);
  expect((await run("pair", clawHome, "deny", mallory)).code).toBe(0);
  expect([people.isKnown("slack", "U1"), people.isKnown("slack", "U2")]).toEqual([true, false]);
  expect(daemon.changes).toBe(2);
  expect((await run("pair", clawHome, "approve", mallory)).err).toContain(`"${mallory}"`);
  for (const wrong of ["approve", "list x", "forget", "list --yes"])
    expect((await run("pair", clawHome, ...wrong.split(" "))).code).toBe(2);
  opened.close();
});

test("commands: service writes one file, and with --dry-run none", async () => {
  const [clawHome, unit] = [newHome(), join(base, ".config/systemd/user/claw.service")];
  const { out, err } = await run("service", clawHome, "install", "--dry-run", "--", "--verbose");
  expect(out).toContain(`ExecStart="${process.execPath}" "serve" "--verbose"\n`);
  const reload = "--user daemon-reload\n";
  expect(out).toMatch(/daemon-reload\n.*--user enable --now claw.service\n.*enable-linger\n$/);
  expect(err).toContain("No channel is configured");
  expect((await run("service", clawHome, "install")).err).toContain("runs from its source");
  expect([fs.existsSync(unit), fs.existsSync(clawHome)]).toEqual([false, false]);
  const stub = `#!/bin/sh\necho "$@" >> ${base}/calls\n`;
  for (const path of [join(base, "bin"), dirname(unit)]) fs.mkdirSync(path, { recursive: true });
  fs.writeFileSync(join(base, "bin/systemctl"), stub, { mode: 0o755 });
  fs.writeFileSync(unit, "");
  expect((await run("service", clawHome, "uninstall")).code).toBe(0);
  const calls = fs.readFileSync(join(base, "calls"), "utf8");
  expect([calls, fs.existsSync(unit)]).toEqual([
    `--user disable --now claw.service\n${reload}`,
    false,
  ]);
  expect((await run("service", clawHome, "start")).code).toBe(2);
  const { text } = systemFor("darwin", ["/opt/a&b/claw", "serve"], "/Users/<me>/.claw");
  expect(text).toContain("<string>/opt/a&#38;b/claw</string><string>serve</string></array>");
  expect(text).toContain("<key>CLAW_HOME</key><string>/Users/&#60;me&#62;/.claw</string>");
  expect(() => systemFor("win32", [], "")).toThrow(UsageError);
});

test.if(Bun.which("systemd-analyze") !== null)("commands: systemd accepts the unit", async () => {
  const [clawHome, path] = [`${newHome()} "b" %h $HOME`, join(newHome(), "../claw.service")];
  const { text } = systemFor("linux", ["/bin/sh", "a b%c$d"], clawHome);
  expect(text).toMatch(
    /ExecStart="\/bin\/sh" "a b%%c\$\$d"\nEnvironment=".* \\"b\\" %%h \$HOME"\n/,
  );
  fs.writeFileSync(path, text);
  const env = { ...process.env, XDG_RUNTIME_DIR: base };
  const child = Bun.spawn(["systemd-analyze", "verify", "--user", path], { env, stderr: "pipe" });
  const said = (await child.stderr.text()).replace(/.*Unknown key 'Restart(Steps|Max).*\n/g, "");
  expect([await child.exited, said]).toEqual([0, ""]);
});

const slack = "SLACK_BOT_TOKEN=xoxb-1 SLACK_APP_TOKEN=xapp-1 CLAW_OWNER=slack:U1";
const mail = "EMAIL_ADDRESS=c@x EMAIL_IMAP_URL=imaps://c:p@x CLAW_OWNER=email:a@x";
test.each([
  ["", /^No channel is configured/],
  [slack, /^$/],
  [slack.replace("xapp-1", ""), /^SLACK_APP_TOKEN is not set; it takes/],
  [slack.replace("xoxb-1", "x-hidden"), /^(?!.*hidden)SLACK_BOT_TOKEN does not hold/],
  [slack.replace("slack:U1", "email:a@x"), /^CLAW_OWNER names nobody on slack/],
  [slack.replace("slack:U1", "me"), /^CLAW_OWNER has "me"/],
  [`${mail} EMAIL_SMTP_URL=smtp://x`, /^EMAIL_AUTHSERV_ID is not set/],
  [`${mail} EMAIL_AUTHSERV_ID=x EMAIL_SMTP_URL=imap://x`, /^EMAIL_SMTP_URL does not hold/],
])("the first run: says in a sentence what is missing in %p", (text, sentence) => {
  const missing = missingFor(Object.fromEntries(text.split(" ").map((pair) => pair.split("="))));
  expect(missing.join("\n")).toMatch(sentence);
  expect(missing.length).toBeLessThan(2);
});

/** The questions in a terminal of their own; `say` waits for one and types the answer. */
function ask(clawHome: string, env: Record<string, string>) {
  let shown = "";
  const args = `${JSON.stringify(clawHome)}, process.env`;
  const data = (_: unknown, bytes: Uint8Array) => void (shown += Buffer.from(bytes).toString());
  const child = Bun.spawn(program("serve/setup.ts", "runSetup", args), {
    env: { TERM: "xterm", ...env },
    terminal: { cols: 200, rows: 40, data },
  });
  const say = async (question: string, answer: string) => {
    await until(() => shown.includes(question));
    shown = shown.slice(shown.indexOf(question) + question.length);
    child.terminal?.write(answer);
  };
  return { say, exited: child.exited };
}

test("the first run: tries the tokens at the server, and saves what worked; Ctrl-C saves nothing", async () => {
  using server = startSlack();
  const { SLACK_API_URL, ...tokens } = server.env;
  const [clawHome, untouched] = [newHome(), newHome()];
  const leaving = ask(untouched, {});
  await leaving.say("Where will you talk", " \r");
  await leaving.say("Bot token", "\u0003");
  expect([await leaving.exited, fs.existsSync(untouched)]).toEqual([Number(false), false]);
  const { say, exited } = ask(clawHome, { SLACK_API_URL });
  await say("Where will you talk", " \r");
  await say('"socket_mode_enabled": true', "");
  await say("Bot token", "xoxp-1\r");
  await say("It takes the Bot User", `\u0015xoxb-wrong\r`);
  await say("App token", `${tokens.SLACK_APP_TOKEN}\r`);
  await say("invalid_auth", "");
  await say("Enter them again", "\r");
  await say("Bot token", `${tokens.SLACK_BOT_TOKEN}\r`);
  await say("App token", `${tokens.SLACK_APP_TOKEN}\r`);
  await say("member ID", "U1\r");
  expect(await exited).toBe(Number(true));
  expect(readSecrets(clawHome, {})).toEqual({ ...tokens, CLAW_OWNER: "slack:U1" });
});
