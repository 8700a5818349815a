/**
 * Which channels there are: those whose credentials are there. A fork adds its own here.
 *
 * Invariant: half of a channel's credentials is an error and not a channel that is silently missing.
 */
import type { Channel } from "../channels/channel.ts";
import { UsageError } from "../errors.ts";
import type { Env } from "./secrets.ts";

/** Throws UsageError for credentials that make no channel. */
export async function openChannels(env: Env): Promise<Channel[]> {
  const channels = await Promise.all([openSlack(env), openEmail(env)]);
  return channels.filter((channel) => channel !== null);
}

async function openSlack(env: Env): Promise<Channel | null> {
  const given = read(env, "SLACK_BOT_TOKEN", "SLACK_APP_TOKEN");
  if (given === null) return null;
  const { openSlack: open } = await import("../channels/slack.ts");
  const [botToken = "", appToken = ""] = given;
  return open({ botToken, appToken, apiUrl: env["SLACK_API_URL"] || undefined });
}

async function openEmail(env: Env): Promise<Channel | null> {
  const given = read(env, "EMAIL_IMAP_URL", "EMAIL_SMTP_URL");
  if (given === null) return null;
  const [imapUrl = "", smtpUrl = ""] = given;
  const user = decodeURIComponent(URL.parse(imapUrl)?.username ?? "");
  const address = env["EMAIL_ADDRESS"] || (user.includes("@") ? user : "");
  if (!address)
    throw new UsageError("EMAIL_ADDRESS is not set: claw needs to know which address is its own.");
  const { openEmail: open } = await import("../channels/email.ts");
  return open({ address, imapUrl, smtpUrl, authservId: env["EMAIL_AUTHSERV_ID"] || null });
}

/** The values of variables that belong together; null where none is set. */
function read(env: Env, ...names: string[]): string[] | null {
  const values = names.map((name) => env[name]?.trim() ?? "");
  if (values.every((value) => value === "")) return null;
  const missing = names.filter((_, index) => values[index] === "");
  if (missing.length === 0) return values;
  const set = names.filter((name) => !missing.includes(name));
  throw new UsageError(
    `${set.join(", ")} is set and ${missing.join(", ")} is not: a channel needs both.`,
  );
}
