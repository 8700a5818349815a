/**
 * The first run: asks in the terminal for Slack or mail, tries the credentials with a real call, and
 * keeps them in `$CLAW_HOME/secrets.env`. And what is missing, where claw starts without asking.
 *
 * Invariant: nothing is saved before it worked and the last question was answered, and no secret is
 * shown. The system's keychain is not offered: a daemon that starts at boot finds it locked, and a
 * Mac's asks for leave again after each build.
 */
import * as clack from "@clack/prompts";
import { messageOf } from "../errors.ts";
import { escapeText } from "../escape.ts";
import { missingFor, needs } from "./missing.ts";
import { type Env, saveSecrets, secretsPath } from "./secrets.ts";

// ── Questions ───────────────────────────────────────────────────────────────────────────────────

/** The person left before the last question. */
class Left extends Error {
  override name = "Left";
}

type Answers = Record<string, string>;
type Asked = { answers: Answers; owner: string };

/** Asks, tries and saves. False: the person left (Ctrl-C, or gave up), and nothing was saved. */
export async function runSetup(clawHome: string, env: Env): Promise<boolean> {
  try {
    clack.intro("claw serve: no channel is configured yet");
    const options = [
      { value: "slack", label: "Slack" },
      { value: "email", label: "Mail" },
    ];
    const message = "Where will you talk to claw? (space selects)";
    const channels = await answered(clack.multiselect({ message, options, required: true }));
    const slack = channels.includes("slack") ? await askSlack(env) : null;
    const email = channels.includes("email") ? await askEmail() : null;
    const owners = [env["CLAW_OWNER"], slack?.owner, email?.owner].filter(Boolean).join(",");
    const answers = { ...slack?.answers, ...email?.answers, CLAW_OWNER: owners };
    saveSecrets(clawHome, answers);
    for (const sentence of missingFor({ ...env, ...answers })) clack.log.warn(sentence);
    clack.outro(`Saved in ${secretsPath(clawHome)}, which only you can read.`);
    return true;
  } catch (error) {
    if (!(error instanceof Left)) throw error;
    clack.cancel("Nothing was saved.");
    return false;
  }
}

type Question<Value> = Promise<Value | typeof clack.CANCEL_SYMBOL>;

async function answered<Value>(question: Question<Value>): Promise<Value> {
  const answer = await question;
  if (answer === clack.CANCEL_SYMBOL) throw new Left();
  return answer;
}

type Check = (value: string) => string | undefined;

const must =
  (shape: RegExp, takes: string): Check =>
  (value) =>
    shape.test(value) ? undefined : `It takes ${takes}.`;

/** The check of a variable's value; it says what is wrong without showing the value. */
function mustBe(name: string): Check {
  const [shape, takes] = needs["slack"]?.[name] ?? needs["email"]?.[name] ?? [/./, "something"];
  return must(shape, takes);
}

async function ask(message: string, check: Check, initialValue = ""): Promise<string> {
  const validate = (value: string | undefined) => check(value?.trim() ?? "");
  return (await answered(clack.text({ message, initialValue, validate }))).trim();
}

async function askSecret(message: string, check: Check): Promise<string> {
  const validate = (value: string | undefined) => check(value?.trim() ?? "");
  return (await answered(clack.password({ message, validate }))).trim();
}

/** Asks until `test` is content and says with what, or the person gives up. */
async function askUntil(
  questions: () => Promise<Answers>,
  test: (answers: Answers) => Promise<string>,
): Promise<Answers> {
  for (;;) {
    const answers = await questions();
    clack.log.step("Trying them…");
    try {
      clack.log.success(`They work: ${escapeText(await test(answers))}`);
      return answers;
    } catch (error) {
      clack.log.error(escapeText(messageOf(error)));
    }
    if (!(await answered(clack.confirm({ message: "Enter them again?" })))) throw new Left();
  }
}

// ── Slack ───────────────────────────────────────────────────────────────────────────────────────

/** What Slack's “From a manifest” takes: Socket Mode, and what claw reads and writes. */
export const manifest = {
  display_information: { name: "claw", description: "A personal assistant on your own machine" },
  features: {
    app_home: { messages_tab_enabled: true, messages_tab_read_only_enabled: false },
    bot_user: { display_name: "claw", always_online: true },
    slash_commands: [{ command: "/claw", description: "Orders to claw", usage_hint: "help" }],
  },
  oauth_config: {
    scopes: {
      bot: (
        "app_mentions:read channels:history groups:history im:history mpim:history chat:write " +
        "reactions:write files:read files:write im:write users:read commands"
      ).split(" "),
    },
  },
  settings: {
    event_subscriptions: {
      bot_events: "app_mention message.channels message.groups message.im message.mpim".split(" "),
    },
    interactivity: { is_enabled: true },
    socket_mode_enabled: true,
  },
};

async function askSlack(env: Env): Promise<Asked> {
  clack.log.info(
    "At https://api.slack.com/apps choose “Create New App”, “From a manifest”, and paste this:",
  );
  process.stdout.write(`\n${JSON.stringify(manifest, null, 1)}\n\n`); // no frame around it
  const questions = async () => ({
    SLACK_BOT_TOKEN: await askSecret(
      "Bot token: “Install App” shows it as Bot User OAuth Token",
      mustBe("SLACK_BOT_TOKEN"),
    ),
    SLACK_APP_TOKEN: await askSecret(
      "App token: “Basic Information”, “App-Level Tokens” makes one; add connections:write",
      mustBe("SLACK_APP_TOKEN"),
    ),
  });
  const answers = await askUntil(questions, async (given) => {
    const { testSlack } = await import("../channels/slack.ts");
    const [botToken = "", appToken = ""] = [given["SLACK_BOT_TOKEN"], given["SLACK_APP_TOKEN"]];
    return testSlack({ botToken, appToken, apiUrl: env["SLACK_API_URL"] });
  });
  const isMember = must(/^[UW][A-Z0-9]+$/, "capital letters and digits, such as U0123ABCD");
  const owner = await ask("Your own member ID: your Slack profile has it under ⋮", isMember);
  return { answers, owner: `slack:${owner}` };
}

// ── Mail ────────────────────────────────────────────────────────────────────────────────────────

async function askEmail(): Promise<Asked> {
  clack.log.info(
    "claw takes a mailbox of its own, by IMAP and SMTP. Its provider's help names the servers; " +
      "many want an “app password” in place of the usual one.",
  );
  const answers = await askUntil(askMailbox, async (given) => {
    const { testEmail } = await import("../channels/email.ts");
    return testEmail({
      address: given["EMAIL_ADDRESS"] ?? "",
      imapUrl: given["EMAIL_IMAP_URL"] ?? "",
      smtpUrl: given["EMAIL_SMTP_URL"] ?? "",
      authservId: given["EMAIL_AUTHSERV_ID"] ?? "",
    });
  });
  const owner = await ask("Your own address, that you will write from", mustBe("EMAIL_ADDRESS"));
  return { answers, owner: `email:${owner.toLowerCase()}` };
}

async function askMailbox(): Promise<Answers> {
  const isServer = must(/^[\w.-]+(:\d{1,5})?$/, "a host, or host:port");
  const isGiven = must(/./, "something");
  const address = await ask("Address of claw's mailbox", mustBe("EMAIL_ADDRESS"));
  const domain = address.split("@")[1] ?? "";
  const user = await ask("User name at its servers", isGiven, address);
  const imap = await ask("IMAP server (port 143: STARTTLS)", isServer, `imap.${domain}:993`);
  const smtp = await ask("SMTP server (port 587: STARTTLS)", isServer, `smtp.${domain}:465`);
  const password = await askSecret("Password", isGiven);
  const authservId = await ask(
    "First word of the Authentication-Results header of a mail that came in there",
    mustBe("EMAIL_AUTHSERV_ID"),
    domain === "gmail.com" ? "mx.google.com" : domain,
  );
  const login = `${encodeURIComponent(user)}:${encodeURIComponent(password)}`;
  return {
    EMAIL_ADDRESS: address,
    EMAIL_IMAP_URL: mailUrl("imap", imap, login),
    EMAIL_SMTP_URL: mailUrl("smtp", smtp, login),
    EMAIL_AUTHSERV_ID: authservId,
  };
}

/** imaps://user:password@host:port; without the "s" where the port means STARTTLS. */
function mailUrl(kind: "imap" | "smtp", server: string, login: string): string {
  const [host, port = kind === "imap" ? "993" : "465"] = server.split(":");
  return `${kind}${["143", "587", "25"].includes(port) ? "" : "s"}://${login}@${host}:${port}`;
}
