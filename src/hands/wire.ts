/**
 * What a host and the worker that is its hands say to each other: one JSON object a file, in a box
 * of three folders. `in` is the host's, and read-only inside: `open.json`, then KEY.json for each
 * order and KEY.stop to end it. `out` is the worker's: `ready`, `pulse`, and KEY.json for each
 * answer, KEY.text for what a call prints meanwhile. `net` holds the way out (proxy.ts).
 *
 * Invariant: a file is written under another name and renamed, so that nobody sees half of one. A
 * message that does not fit its schema, or is longer than `MESSAGE_BYTES`, is never used: the worker
 * sits where a hijacked model works, so nothing it says counts beyond its schema.
 */
import { renameSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { z } from "zod";
import { config } from "../config.ts";
import { MCP_LIMITS } from "../tools/mcp-words.ts";
import type { ToolCall } from "../types.ts";

/** Where a box is, inside. */
export const INSIDE_BOX = "/box";

/** A tool takes and gives less: 20 MB are a fault. */
export const MESSAGE_BYTES = 20_000_000;

/** How much of what a call prints is kept in KEY.text. */
export const PRINTED_BYTES = 100_000;

/** The worker shows every so often that it lives while a call runs. */
export const PULSE_MS = 500;

/** The host shows every so often that it lives; a worker without a call leaves when it does not. */
export const LEASE_MS = 30_000;

/** open.json: what a worker begins with. */
const opening = z.object({
  /** Absolute; the workspace first. */
  roots: z.array(z.string()).min(1),
  /** What commands see besides the worker's own environment. */
  env: z.record(z.string(), z.string()),
  /** How often `in` is looked through, besides being watched. */
  pollMs: z.number().positive(),
  /** Whether the way out is there, in `net`. */
  hasWayOut: z.boolean(),
  /** MCP servers that a call may start, by name. */
  servers: z.record(
    z.string(),
    z.object({
      command: z.string(),
      args: z.array(z.string()).optional(),
      env: z.record(z.string(), z.string()).optional(),
    }),
  ),
});
export type Opening = z.infer<typeof opening>;

const call = z.object({
  type: z.literal("tool_call"),
  id: z.string(),
  name: z.string(),
  input: z.record(z.string(), z.unknown()),
  invalid: z.string().optional(),
});

/** KEY.json in `in`. `list`: what tools the MCP server has that the call is named after. */
const order = z.object({ type: z.enum(["run", "preview", "list"]), call });
export type Order = { type: "run" | "preview" | "list"; call: ToolCall };

const image = z.object({
  type: z.literal("image"),
  mediaType: z.enum(["image/png", "image/jpeg", "image/gif", "image/webp"]),
  data: z.base64().max(2 * config.limits.imageBytes),
});

/** tools/patch.ts cuts at half of it. */
const patch = z.string().max(200_000);

/** A `ToolOutput` (types.ts) of the size that the tools keep to. */
const output = z.object({
  content: z.string().max(config.limits.resultChars),
  isError: z.boolean().optional(),
  images: z.array(image).max(8).optional(),
  patch: patch.optional(),
  toolsChanged: z.boolean().optional(),
});

/** A tool of an MCP server as models are shown it, from a worker or from the store. */
const spec = z.object({
  name: z.string().max(MCP_LIMITS.name),
  description: z.string().max(MCP_LIMITS.description),
  schema: z
    .record(z.string(), z.unknown())
    .refine((schema) => JSON.stringify(schema).length <= MCP_LIMITS.schema, "is too long"),
});
export const specs = z.array(spec).max(MCP_LIMITS.tools);

/** KEY.json in `out`. `aborted` is the reply to a `run` that a KEY.stop ended. */
const reply = z.discriminatedUnion("type", [
  z.object({ type: z.literal("output"), output }),
  z.object({ type: z.literal("preview"), patch: patch.nullable() }),
  z.object({ type: z.literal("specs"), specs }),
  z.object({ type: z.literal("fault"), why: z.string().max(config.limits.resultChars) }),
  z.object({ type: z.literal("aborted") }),
]);
export type Reply = z.infer<typeof reply>;

/** All three throw an error of one line where `text` is no such message. */
export const parseOpening = (text: string): Opening => parse(opening, text, "opening");
export const parseOrder = (text: string): Order => parse(order, text, "order");
export const parseReply = (text: string): Reply => parse(reply, text, "reply");

function parse<Message>(schema: z.ZodType<Message>, text: string, what: string): Message {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`its ${what} was no JSON`, { cause: error });
  }
  const checked = schema.safeParse(value);
  if (checked.success) return checked.data;
  const [issue] = checked.error.issues;
  throw new Error(`it gave no ${what}: ${issue?.path.join(".")}: ${issue?.message}`);
}

/** Puts a message where nobody sees half of it. Names with a dot in front are nobody's. */
export function putMessage(path: string, message: Opening | Order | Reply): void {
  const aside = join(dirname(path), `.${basename(path)}`);
  writeFileSync(aside, JSON.stringify(message));
  renameSync(aside, path);
}

export const newKey = (): string => crypto.randomUUID();
export const isKey = (text: string): boolean =>
  /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text);
