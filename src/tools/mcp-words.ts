/**
 * What an MCP server says, as a model reads it: its tools, and what a call of one gave.
 *
 * Invariant: a server is not to be trusted. Every text, name, schema and image that leaves here is
 * bounded, and an image is what its bytes are and not what its server calls it. Nothing here runs.
 */
import type { CallToolResult, ContentBlock, Tool } from "@modelcontextprotocol/client";
import { config } from "../config.ts";
import type { ImagePart, ToolOutput, ToolSpec } from "../types.ts";
import { cutMiddle } from "./capture.ts";
import { imageTypeOf } from "./text.ts";

/** Single underscores alone: "mcp__a" is a rule about all tools of the server "a" and of no other. */
export const isServerName = (name: string): boolean =>
  name.length <= 32 && /^[a-z0-9-]+(_[a-z0-9-]+)*$/.test(name);
export const isMcpTool = (name: string): boolean => name.startsWith("mcp__");
export const serverOf = (tool: string): string => /^mcp__(.*?)__/.exec(tool)?.[1] ?? "";

/** What is taken of a server's tools; a name that is longer is refused by some wires. */
export const MCP_LIMITS = { tools: 64, name: 64, description: 2_000, schema: 10_000 };
const MAX_IMAGES = 8;

/** By the names that models use: what the server calls it, and what models are shown. */
export type McpTools = ReadonlyMap<string, { real: string; spec: ToolSpec }>;

/** `mcp__SERVER__TOOL`, in characters that wires and rules take; a hash keeps two names apart. */
export function toTools(server: string, listed: readonly Tool[]): McpTools {
  const tools = new Map<string, { real: string; spec: ToolSpec }>();
  for (const tool of listed.slice(0, MCP_LIMITS.tools)) {
    const plain = `mcp__${server}__${tool.name.replaceAll(/[^\w-]/g, "_")}`;
    const isFree = plain.length <= MCP_LIMITS.name && !tools.has(plain);
    const hash = Bun.hash(tool.name).toString(36).slice(0, 7);
    const name = isFree ? plain : `${plain.slice(0, MCP_LIMITS.name - 8)}_${hash}`;
    tools.set(name, { real: tool.name, spec: specOf(name, tool) });
  }
  return tools;
}

/** A schema that is too long is left out: the server says itself what is wrong with a call. */
function specOf(name: string, { description = "", inputSchema }: Tool): ToolSpec {
  const { $schema: _, ...schema } = inputSchema;
  const isLong = JSON.stringify(schema).length > MCP_LIMITS.schema;
  const text = description.slice(0, MCP_LIMITS.description).toWellFormed();
  return { name, description: text, schema: isLong ? { type: "object" } : schema };
}

export function toOutput({ content, structuredContent, isError }: CallToolResult): ToolOutput {
  const images: ImagePart[] = [];
  const texts = content.map((block) => tellBlock(block, images)).filter(Boolean);
  if (texts.length === 0 && structuredContent !== undefined)
    texts.push(JSON.stringify(structuredContent));
  const text = texts.join("\n") || (images.length > 0 ? "" : "(no output)");
  return {
    content: cut(text),
    ...(isError && { isError }),
    ...(images.length > 0 && { images }),
  };
}

/** What a model reads of a part; an image that it can see goes to `images`. */
function tellBlock(block: ContentBlock, images: ImagePart[]): string {
  switch (block.type) {
    case "text":
      return block.text;
    case "image":
      return takeImage(block.data, images);
    case "audio":
      return `[sound (${block.mimeType}): it cannot be heard here]`;
    case "resource_link":
      return [block.name, block.uri, block.description].filter(Boolean).join(" · ");
    case "resource":
      return "text" in block.resource
        ? block.resource.text
        : `[a file, not shown: ${block.resource.uri}]`;
  }
}

function takeImage(data: string, images: ImagePart[]): string {
  const bytes = Buffer.from(data, "base64");
  const mediaType = imageTypeOf(bytes);
  if (mediaType === null) return "[an image that is no PNG, JPEG, GIF or WebP: not shown]";
  if (bytes.length > config.limits.imageBytes || images.length === MAX_IMAGES)
    return `[an image of ${bytes.length} bytes, over the limit: not shown]`;
  images.push({ type: "image", mediaType, data: bytes.toString("base64") });
  return "";
}

/** A failure's text. */
export const failed = (text: string): ToolOutput => ({ content: cut(text), isError: true });

const cut = (text: string): string =>
  cutMiddle(text.toWellFormed(), config.limits.resultChars - 200, "to see them, ask for less");
