/**
 * What a host and the worker that is its hands say to each other: one JSON object a message.
 *
 * Invariant: a message that fits neither schema, or is longer than `LINE_BYTES`, is never used; the
 * worker sits where a hijacked model works, so nothing it says counts beyond its schema. How messages
 * travel (lines on a pipe here) is no business of the schemas: a mailbox of files can carry the same.
 */
import { z } from "zod";
import { config } from "../config.ts";
import type { ToolCall } from "../types.ts";

/** A tool takes and gives less: 20 MB are a fault. */
export const LINE_BYTES = 20_000_000;

/** Unique among the requests to one worker. */
const id = z.int().positive();

const call = z.object({
  type: z.literal("tool_call"),
  id: z.string(),
  name: z.string(),
  input: z.record(z.string(), z.unknown()),
  invalid: z.string().optional(),
});

/** What the host says. `open` comes first, once; its `roots` are absolute and the workspace first. */
const request = z.discriminatedUnion("type", [
  z.object({ type: z.literal("open"), roots: z.array(z.string()).min(1) }),
  z.object({ type: z.literal("run"), id, call }),
  z.object({ type: z.literal("preview"), id, call }),
  z.object({ type: z.literal("abort"), id }),
]);
export type Request = z.infer<typeof request>;

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
});

/**
 * What the worker says: `ready` before all else, then one reply to each `run` and each `preview`.
 * `aborted` is the reply to a `run` that an `abort` ended.
 */
const reply = z.discriminatedUnion("type", [
  z.object({ type: z.literal("ready") }),
  z.object({ type: z.literal("output"), id, output }),
  z.object({ type: z.literal("preview"), id, patch: patch.nullable() }),
  z.object({ type: z.literal("aborted"), id }),
]);
export type Reply = z.infer<typeof reply>;

/** What the host asks, and what it hears: a reply, or that the worker is gone. */
export type Question = { type: "run" | "preview"; call: ToolCall };
export type Answer = Reply | Ended;
/** `isReady`: the worker had begun, so the question may have been worked on. */
export type Ended = { type: "ended"; isReady: boolean; why: string };

/** Both throw an error of one line where `text` is no such message. */
export const parseRequest = (text: string): Request => parse(request, text, "request");
export const parseReply = (text: string): Reply => parse(reply, text, "reply");

function parse<Message>(schema: z.ZodType<Message>, text: string, what: string): Message {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error("a line was no JSON", { cause: error });
  }
  const checked = schema.safeParse(value);
  if (checked.success) return checked.data;
  const [issue] = checked.error.issues;
  throw new Error(`a line was no ${what}: ${issue?.path.join(".")}: ${issue?.message}`);
}

export const lineOf = (message: Request | Reply): string => `${JSON.stringify(message)}\n`;

/** The lines of a stream. Throws when one grows over `LINE_BYTES`; half a line at the end is lost. */
export async function* readLines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let parts: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of stream) {
    let rest = chunk;
    for (let end = rest.indexOf(10); end !== -1; end = rest.indexOf(10)) {
      yield Buffer.concat([...parts, rest.subarray(0, end)]).toString();
      [parts, size, rest] = [[], 0, rest.subarray(end + 1)];
    }
    parts.push(rest);
    size += rest.length;
    if (size > LINE_BYTES) throw new Error(`a line was longer than ${LINE_BYTES} bytes`);
  }
}

/** The first line with a word on a stream, once that has ended; bounded, and without controls. */
export async function readStart(stream: ReadableStream<Uint8Array>): Promise<string> {
  let start = "";
  for await (const chunk of stream)
    if (start.length < 1000) start += Buffer.from(chunk.subarray(0, 1000)).toString();
  const line = start.split("\n").find((one) => /\p{L}/u.test(one)) ?? "";
  return line.replaceAll(/[^\P{C}]/gu, " ").slice(0, 300);
}
