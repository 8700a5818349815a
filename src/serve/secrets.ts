/**
 * Where the daemon's credentials are: the environment, completed by `$CLAW_HOME/secrets.env`.
 *
 * Invariant: that file is ours alone (0600) from its first byte, and replaced whole or not at all;
 * one that others can read or write is refused. Its lines are NAME=value, as systemd reads them too.
 */
import * as fs from "node:fs";
import { join } from "node:path";
import { nearest } from "../args.ts";
import { config } from "../config.ts";
import { UsageError } from "../errors.ts";
import { providers } from "../models/providers.ts";

export type Env = Record<string, string | undefined>;

const baseUrls = providers.map(({ name }) => `${name.toUpperCase()}_BASE_URL`);
const routeSecrets = Object.values(config.egress.routes).flatMap(
  ({ secret }) => secret?.name ?? [],
);
const tokens = [
  "SLACK_BOT_TOKEN",
  "SLACK_APP_TOKEN",
  ...providers.flatMap(({ keys }) => keys),
  ...routeSecrets,
];
const urls = ["EMAIL_IMAP_URL", "EMAIL_SMTP_URL", "SLACK_API_URL", ...baseUrls];
const plain = [
  "EMAIL_ADDRESS",
  "EMAIL_AUTHSERV_ID",
  "CLAW_OWNER",
  "CLAW_MODEL",
  "CLAW_IMAGE",
  "OLLAMA_HOST",
];
const names = [...tokens, ...urls, ...plain];

export const secretsPath = (clawHome: string): string => join(clawHome, "secrets.env");

/** `env`, with the file's value for each variable that is unset or empty. Throws UsageError. */
export function readSecrets(clawHome: string, env: Env): Env {
  const stored = readLines(secretsPath(clawHome)).flatMap(parse);
  return { ...env, ...Object.fromEntries(stored.filter(([name]) => !env[name]?.trim())) };
}

/** Writes these into the file, in place of their earlier values; what else is in it stays. */
export function saveSecrets(clawHome: string, values: Record<string, string>): void {
  fs.mkdirSync(clawHome, { recursive: true, mode: 0o700 });
  const path = secretsPath(clawHome);
  const isKept = (line: string, at: number) => !parse(line, at).some(([name]) => name in values);
  const kept = readLines(path).filter(isKept);
  const added = Object.entries(values).map(([name, value]) => `${name}=${quote(name, value)}`);
  fs.rmSync(`${path}.new`, { force: true }); // a crash left it behind
  const file = fs.openSync(`${path}.new`, "wx", 0o600);
  fs.writeFileSync(file, `${[...kept, ...added].join("\n").trim()}\n`);
  fs.fsyncSync(file);
  fs.closeSync(file);
  fs.renameSync(`${path}.new`, path);
  const folder = fs.openSync(clawHome, "r");
  fs.fsyncSync(folder);
  fs.closeSync(folder);
}

/** What may be shown nowhere: tokens, keys, and passwords of URLs, as they may be written. */
export function secretsIn(env: Env): string[] {
  const read = (part: string) => Buffer.from(part.replaceAll("%", ""), "hex").toString();
  const passwords = urls.map((name) => URL.parse(env[name]?.trim() ?? "")?.password ?? "");
  const values = tokens.map((name) => env[name]?.trim() ?? "");
  const typed = passwords.map((one) => one.replace(/(%[0-9a-f]{2})+/gi, read));
  return [...values, ...passwords, ...typed].filter((value) => value !== "");
}

function readLines(path: string): string[] {
  if (!fs.existsSync(path)) return [];
  const file = fs.openSync(path, "r"); // judged once it is open, so that it stays the same file
  try {
    const { mode, uid } = fs.fstatSync(file);
    const facts = `mode ${(mode & 0o777).toString(8)}, of user ${uid}`;
    if (mode & 0o077 || uid !== (process.getuid?.() ?? uid))
      throw new UsageError(`${path} has to be yours alone (${facts}): \`chmod 600 ${path}\`.`);
    return fs.readFileSync(file, "utf8").split("\n");
  } finally {
    fs.closeSync(file);
  }
}

/** The variable of a line; none in a comment. A value is never part of what is thrown. */
function parse(line: string, index: number): [string, string][] {
  const text = line.trim();
  if (/^([#;]|$)/.test(text)) return [];
  const [, name = "", value = ""] = /^(?:export\s+)?(\w+)\s*=\s*(.*)$/.exec(text) ?? [];
  if (!names.includes(name)) throw unknownName(name, `Line ${index + 1} of secrets.env`);
  const [, double, single] = /^(?:"((?:[^"\\]|\\.)*)"|'([^']*)')$/.exec(value) ?? [];
  return [[name, double?.replace(/\\(.)/g, "$1") ?? single ?? value]];
}

function unknownName(name: string, line: string): UsageError {
  if (name === "") return new UsageError(`${line} is not NAME=value.`);
  const near = nearest(name, names);
  const hint = near ? `Did you mean ${near}?` : "What is not claw's goes into the environment.";
  return new UsageError(`${line} sets ${name}, which claw does not read there. ${hint}`);
}

function quote(name: string, value: string): string {
  if (/\p{Cc}/u.test(value)) throw new UsageError(`${name} holds a control character.`);
  return /^[\w@%+=:,./-]*$/.test(value) ? value : `"${value.replace(/["\\$`]/g, "\\$&")}"`;
}
