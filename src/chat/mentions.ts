/**
 * `@file` in what a person writes. The text stays as it was; the file follows it in a part of its
 * own, read by the hands, so that it counts as read. A mention is a person's own word: it needs no
 * permission.
 */
import { statSync } from "node:fs";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import type { Hands, ImagePart, TextPart, ToolCall } from "../types.ts";
import { shortPath } from "./calls.ts";

const mention = /(?<![^\s([{"'])@(?:"([^"\n]+)"|([^\s"]+))/g;
const maxMentions = 20;

export type Attached = {
  parts: (TextPart | ImagePart)[];
  /** What was attached, or could not be; one line each. */
  notes: string[];
};

let count = 0;

/** A call made by the person, not by a model. */
export const personalCall = (name: string, input: Record<string, unknown>): ToolCall => ({
  type: "tool_call",
  id: `person_${process.pid}_${(count += 1)}`,
  name,
  input,
});

/** The path that a person means: absolute, from home, or from the workspace. */
export const toPath = (path: string, cwd: string): string =>
  path.startsWith("~/") ? join(homedir(), path.slice(2)) : resolve(cwd, path);

/** Reads what `text` mentions. A mention that names nothing is only text; a note says so. */
export async function attach(
  text: string,
  hands: Hands,
  cwd: string,
  signal: AbortSignal,
): Promise<Attached> {
  const attached: Attached = { parts: [], notes: [] };
  const names = new Set(
    Array.from(text.matchAll(mention), ([, quoted, bare]) => quoted ?? bare ?? ""),
  );
  for (const name of [...names].slice(0, maxMentions)) {
    const path = findPath(name, cwd);
    if (path) await attachPath(path, hands, cwd, attached, signal);
    else if (/[./]/.test(name)) attached.notes.push(`@${name} names no file; it is sent as text`);
  }
  if (names.size > maxMentions)
    attached.notes.push(`only the first ${maxMentions} files are attached`);
  return attached;
}

/** The path that exists, without a sentence's punctuation after it. */
function findPath(name: string, cwd: string): string | null {
  const candidates = [name, name.replace(/[.,;:!?)\]}'"]+$/, "")].filter(Boolean);
  const paths = candidates.map((candidate) => toPath(candidate, cwd));
  return paths.find((path) => statSync(path, { throwIfNoEntry: false }) !== undefined) ?? null;
}

async function attachPath(
  path: string,
  hands: Hands,
  cwd: string,
  attached: Attached,
  signal: AbortSignal,
) {
  const name = shortPath(path, cwd);
  const isFolder = statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
  const call = isFolder
    ? personalCall("Glob", { pattern: "*", path })
    : personalCall("Read", { file_path: path });
  const output = await hands.run(call, signal);
  if (output.isError) {
    attached.notes.push(`${name} is not attached: ${output.content}`);
    return;
  }
  const kind = isFolder ? "folder" : "file";
  attached.parts.push(toAttachment(kind, name, output.content), ...(output.images ?? []));
  attached.notes.push(name);
}

/** A part that stands behind what a person wrote. */
export const toAttachment = (
  kind: "file" | "folder" | "command",
  name: string,
  content: string,
): TextPart => ({
  type: "text",
  text: `<attached ${kind}=${JSON.stringify(name)}>\n${content}\n</attached>`,
});

/** What a person wrote, of the texts of an input joined by newlines. */
export const withoutAttachments = (text: string): string =>
  text.split(/\n<attached (?:file|folder|command)="/, 1)[0] ?? "";
