/** What a channel needs to be there, and what of it is missing: a sentence each. */
import { UsageError } from "../errors.ts";
import { readOwners } from "./access.ts";
import type { Env } from "./secrets.ts";

/** What each channel needs: the shape of the variable's value, and what that is in words. */
export const needs: Record<string, Record<string, [shape: RegExp, takes: string]>> = {
  slack: {
    SLACK_BOT_TOKEN: [/^xoxb-\S+$/, "the Bot User OAuth Token (xoxb-…) under “Install App”"],
    SLACK_APP_TOKEN: [
      /^xapp-\S+$/,
      "an App-Level Token (xapp-…) with connections:write, made under “Basic Information”",
    ],
  },
  email: {
    EMAIL_ADDRESS: [/^[^\s@,<>]+@[^\s@,<>]+$/, "the address of claw's own mailbox"],
    EMAIL_IMAP_URL: [/^imaps?:\/\/\S+$/, "where mail comes in: imaps://user:password@host:993"],
    EMAIL_SMTP_URL: [/^smtps?:\/\/\S+$/, "where mail goes out: smtps://user:password@host:465"],
    EMAIL_AUTHSERV_ID: [
      /^[\w.-]+$/,
      "the first word of the Authentication-Results header that the mailbox's server writes " +
        "(Gmail: mx.google.com), without which no sender counts as authenticated",
    ],
  },
};

/** What keeps claw from serving as this environment means it to, a sentence each. */
export function missingFor(env: Env): string[] {
  const valueOf = (name: string) => env[name]?.trim() ?? "";
  const meant = Object.entries(needs).filter(([, names]) => Object.keys(names).some(valueOf));
  if (meant.length === 0)
    return [
      "No channel is configured: set SLACK_BOT_TOKEN and SLACK_APP_TOKEN, or EMAIL_ADDRESS, " +
        "EMAIL_IMAP_URL, EMAIL_SMTP_URL and EMAIL_AUTHSERV_ID.",
    ];
  const missing = meant
    .flatMap(([, names]) => Object.entries(names))
    .filter(([name, [shape]]) => !shape.test(valueOf(name)))
    .map(([name, [, takes]]) =>
      valueOf(name) === ""
        ? `${name} is not set; it takes ${takes}.`
        : `${name} does not hold what it takes: ${takes}.`,
    );
  return [
    ...missing,
    ...missingOwner(
      meant.map(([channel]) => channel),
      valueOf("CLAW_OWNER"),
    ),
  ];
}

function missingOwner(channels: string[], text: string): string[] {
  try {
    if (readOwners(text).some(({ channel }) => channels.includes(channel))) return [];
    return [
      `CLAW_OWNER names nobody on ${channels.join(" or ")}, so that nobody may speak to claw; it ` +
        "takes your addresses there, such as slack:U123 or email:me@x.org.",
    ];
  } catch (error) {
    if (error instanceof UsageError) return [error.message];
    throw error;
  }
}
