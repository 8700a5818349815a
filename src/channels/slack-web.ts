/**
 * Slack's Web API: calls, what their failures mean, and which hosts may see the bot's token.
 *
 * Invariants: a call is made once, and its `SendError` says whether it may be made again: "retry"
 * only where Slack has surely done nothing. A call that has to wait holds up no other. The bot's
 * token goes to Slack's hosts, and never along with a redirect to another one; no token is ever in
 * an error.
 */
import { LogLevel, WebClient } from "@slack/web-api";
import { z } from "zod";
import { messageOf, UsageError } from "../errors.ts";
import { SendError } from "./channel.ts";
import { isLoopback } from "./slack-socket.ts";

export type SlackAccess = {
  botToken: string;
  appToken: string;
  /** Default: https://slack.com/api/ */
  apiUrl?: string;
};

/** Throws SendError. */
export type WebCall = <T>(method: string, args: object, shape: z.ZodType<T>) => Promise<T>;

export type Web = ReturnType<typeof openWeb>;
/** claw, as its workspace knows it. */
export type Bot = { userId: string; botId: string | null };

const id = z.string();

const identity = z.object({
  team: id.default("Slack"),
  user: id.default("the bot"),
  user_id: id,
  bot_id: id.optional(),
  response_metadata: z.object({ scopes: z.array(id).optional() }).optional(),
});

/** `ask` and `show` must not wait long, `write` may; `show` throws nothing. */
export function openWeb({ botToken, appToken, apiUrl = "https://slack.com/api/" }: SlackAccess) {
  checkOptions(botToken, appToken, apiUrl);
  const raw = (token: string, timeout: number): WebCall => {
    const rest = { timeout, maxRequestConcurrency: 32, rejectRateLimitedCalls: true };
    const options = { slackApiUrl: apiUrl, logger: silent, retryConfig: { retries: 0 }, ...rest };
    const client = new WebClient(token, options);
    return async (method, args, shape) => shape.parse(await client.apiCall(method, { ...args }));
  };
  const explained =
    (call: WebCall): WebCall =>
    (method, args, shape) =>
      call(method, args, shape).catch((error: unknown) => {
        throw explain(method, error);
      });
  const [bot, app] = [raw(botToken, 5_000), raw(appToken, 10_000)];
  const address = z.object({ url: id });
  return {
    ask: explained(bot),
    write: explained(raw(botToken, 30_000)),
    show: (method: string, args: object) => bot(method, args, z.unknown()).catch(() => null),
    identify: () => named("SLACK_BOT_TOKEN", bot("auth.test", {}, identity)),
    connect: async () =>
      (await named("SLACK_APP_TOKEN", app("apps.connections.open", {}, address))).url,
    download: (url: string, maxBytes: number, signal: AbortSignal) =>
      download(url, maxBytes, { apiUrl, token: botToken, signal }),
    /** With the token, as Slack's own client does it. */
    upload: (url: string, body: Blob, signal: AbortSignal) => {
      const headers = { authorization: `Bearer ${botToken}` };
      return fetch(checkHost(new URL(url), apiUrl), { method: "POST", body, signal, headers });
    },
  };
}

const nothing = () => undefined;
const settings = { setName: nothing, setLevel: nothing, getLevel: () => LogLevel.ERROR };
const silent = { debug: nothing, info: nothing, warn: nothing, error: nothing, ...settings };

function checkOptions(botToken: string, appToken: string, apiUrl: string): void {
  const [isBot, isApp] = [/^(xoxe\.)?xoxb-/, /^xapp-/];
  if (isBot.test(appToken) && isApp.test(botToken))
    throw new UsageError("SLACK_BOT_TOKEN and SLACK_APP_TOKEN hold each other's token: swap them.");
  const { SLACK_BOT_TOKEN: bot, SLACK_APP_TOKEN: app } = cures;
  if (!isBot.test(botToken)) throw new UsageError(`SLACK_BOT_TOKEN is no bot token: ${bot}.`);
  if (!isApp.test(appToken)) throw new UsageError(`SLACK_APP_TOKEN is no app token: ${app}.`);
  const { protocol = "", hostname = "" } = URL.parse(apiUrl) ?? {};
  if (protocol === "https:" || (protocol === "http:" && isLoopback(hostname))) return;
  throw new UsageError(`SLACK_API_URL is ${JSON.stringify(apiUrl)}; it must be an https:// URL.`);
}

export const install = "install the app into the workspace again";
const cures = {
  SLACK_BOT_TOKEN: "copy the Bot User OAuth Token (xoxb-…) from OAuth & Permissions of your app",
  SLACK_APP_TOKEN:
    "make an app-level token (xapp-…) with the scope connections:write in Basic Information of your app",
};
/** Errors that no retry can help, and the cure where it is not another token. */
const fatal: Record<string, string | undefined> = {
  account_inactive: install,
  user_removed_from_team: install,
  org_login_required: install,
  team_access_not_granted: "let an administrator give the app access to the workspace",
  team_disabled: "the workspace was switched off",
  cannot_find_service: "switch Socket Mode on in the app's settings",
  missing_scope: `add the scope and ${install}`,
};
const badToken =
  /^(invalid_auth|not_authed|invalid_token|token_(revoked|expired)|not_allowed_token_type)$/;
const permanent: Record<string, string | undefined> = {
  channel_not_found: "Slack knows no such channel, or claw was not invited to it (/invite)",
  not_in_channel: "claw is not in that channel (/invite it)",
  is_archived: "the channel is archived",
  no_permission: "the workspace does not let claw post there",
  missing_scope: fatal["missing_scope"],
};
const later = /^(rate_?limited|request_timeout|team_added_to_org)$/;
const unsure = /^(internal_error|fatal_error|service_unavailable)$|[^a-z0-9_]/;

/** What @slack/web-api throws, as far as it matters. */
const thrown = z.object({
  retryAfter: z.number().optional(),
  statusCode: z.number().optional(),
  original: z.object({ code: z.unknown().optional(), message: id }).optional(),
  data: z.object({ error: id, needed: id.optional() }).optional(),
});

function explain(method: string, error: unknown): SendError {
  const { retryAfter, statusCode, data, original } = thrown.safeParse(error).data ?? {};
  if (retryAfter !== undefined)
    return new SendError("retry", `Slack wants fewer calls of ${method}.`, retryAfter * 1000);
  if (!data) {
    const isUnsent = /^(ECONNREFUSED|ENOTFOUND|EAI_AGAIN)$/.test(String(original?.code));
    const reason = (original?.message ?? messageOf(error)).replace(
      /\. For more information.*/s,
      "",
    );
    const isRefused = (statusCode ?? 500) < 500 || reason.startsWith("Retry header"); // of a 429
    const kind = isUnsent || isRefused ? "retry" : "ambiguous";
    return new SendError(kind, `Slack did not answer ${method}: ${statusCode ?? reason}.`);
  }
  if (unsure.test(data.error)) return new SendError("ambiguous", `Slack failed in ${method}.`);
  const { error: code, needed = "" } = data;
  const isLater = later.test(code) || badToken.test(code) || (fatal[code] && !permanent[code]);
  const words = [`${code} ${needed}`.trim(), permanent[code]].filter(Boolean).join("; ");
  return new SendError(isLater ? "retry" : "permanent", `Slack refused ${method}: ${words}.`);
}

/** Names the variable whose token Slack refuses. */
async function named<T>(variable: keyof typeof cures, call: Promise<T>): Promise<T> {
  return call.catch((error: unknown) => {
    const { error: code = "", needed = "" } = thrown.safeParse(error).data?.data ?? {};
    const cure = badToken.test(code) ? cures[variable] : fatal[code];
    if (!cure) throw explain("the connection", error);
    throw new UsageError(`Slack refuses ${variable} (${`${code} ${needed}`.trim()}): ${cure}.`);
  });
}

// ── Files of the workspace ──────────────────────────────────────────────────────────────────────

const hosts = /^((.+\.)?slack\.com|slack-files\.com|.+\.slack-edge\.com)$/;
const downloadMs = 60_000;

function checkHost(url: URL, apiUrl: string): URL {
  if (url.protocol === "https:" && hosts.test(url.hostname)) return url;
  if (url.origin === new URL(apiUrl).origin) return url;
  throw new Error(`it lies at ${url.host}, which is not Slack's`);
}

/** Throws why it cannot be had, in half a sentence. */
async function download(first: string, maxBytes: number, access: Access) {
  const signal = AbortSignal.any([access.signal, AbortSignal.timeout(downloadMs)]);
  const response = await follow(new URL(first), { ...access, signal });
  if (!response.ok) throw new Error(`Slack answered ${response.status}`);
  const isPage = response.headers.get("content-type")?.startsWith("text/html") ?? false;
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const part of response.body ?? []) {
    bytes += part.length;
    if (bytes > maxBytes) throw new Error(`it is larger than ${maxBytes} bytes`);
    parts.push(part);
  }
  return { content: Buffer.concat(parts), isPage };
}

type Access = { apiUrl: string; token: string; signal: AbortSignal };

async function follow(first: URL, { apiUrl, token, signal }: Access): Promise<Response> {
  let [url, headers] = [first, new Headers({ authorization: `Bearer ${token}` })];
  for (let hops = 0; hops <= 3; hops += 1) {
    const response = await fetch(checkHost(url, apiUrl), { headers, redirect: "manual", signal });
    const location = response.headers.get("location");
    if (response.status < 300 || response.status > 399 || !location) return response;
    await response.body?.cancel();
    const next = new URL(location, url);
    if (next.origin !== url.origin) headers = new Headers();
    url = next;
  }
  throw new Error("it was redirected more than three times");
}
