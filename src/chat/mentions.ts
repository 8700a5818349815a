/**
 * `@file` in what a person writes: completed while it is typed, attached when it is sent. The text
 * stays as it was; the file follows it in a part of its own, read by the hands, so that it counts
 * as read. A mention is a person's own word: it needs no permission.
 *
 * Completion knows the workspace's files and folders, without what ignore files hide. They are walked
 * in the background, in short steps, when somebody types an `@`.
 */
import { statSync } from "node:fs";
import { homedir } from "node:os";
import { join, relative, resolve } from "node:path";
import type { Hands, ImagePart, TextPart, ToolCall } from "../types.ts";
import { shortPath } from "./calls.ts";
import type { Suggestion, Suggestions } from "./editor.ts";

const mention = /(?<![^\s([{"'])@(?:"([^"\n]+)"|([^\s"]+))/g;
const typing = /(?:^|[\s([{"'])@("[^"\n]*|[^\s"]*)$/;
const maxSuggestions = 50;
const maxFiles = 20_000;
/** How long the walk may hold up the keyboard at a time, and how long its result is good for. */
const stepMs = 8;
const freshMs = 10_000;

/** The path that a person means: absolute, from home, or from the workspace. */
const toPath = (path: string, cwd: string): string =>
  path.startsWith("~/") ? join(homedir(), path.slice(2)) : resolve(cwd, path);

// ── What is sent ────────────────────────────────────────────────────────────────────────────────

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

/** Reads what `text` mentions. A mention that names nothing is only text; a note says so. */
export async function attach(
  text: string,
  hands: Hands,
  cwd: string,
  signal: AbortSignal,
): Promise<Attached> {
  const attached: Attached = { parts: [], notes: [] };
  const names = Array.from(text.matchAll(mention), ([, quoted, bare]) => quoted ?? bare ?? "");
  for (const name of new Set(names)) {
    const path = findPath(name, cwd);
    if (path === null) {
      if (/[./]/.test(name)) attached.notes.push(`@${name} names no file; it is sent as text`);
      continue;
    }
    const kind = statSync(path).isDirectory() ? "folder" : "file";
    const call =
      kind === "folder"
        ? personalCall("Glob", { pattern: "*", path })
        : personalCall("Read", { file_path: path });
    const { content, isError, images = [] } = await hands.run(call, signal);
    const shown = shortPath(path, cwd);
    if (!isError) attached.parts.push(toAttachment(kind, shown, content), ...images);
    attached.notes.push(isError ? `${shown} is not attached: ${content}` : shown);
  }
  return attached;
}

/** The path that exists, without a sentence's punctuation after it. */
function findPath(name: string, cwd: string): string | null {
  const candidates = [name, name.replace(/[.,;:!?)\]}'"]+$/, "")].filter(Boolean);
  const paths = candidates.map((candidate) => toPath(candidate, cwd));
  return paths.find((path) => statSync(path, { throwIfNoEntry: false }) !== undefined) ?? null;
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

// ── What is suggested ───────────────────────────────────────────────────────────────────────────

export class FileIndex {
  #cwd: string;
  #onWalked: () => void;
  /** Relative to the workspace; folders first and with a slash. */
  #paths: string[] = [];
  #walkedAt = -freshMs;

  /** `cwd` is absolute and real; `onWalked` is called when there is more to suggest. */
  constructor(cwd: string, onWalked: () => void) {
    this.#cwd = cwd;
    this.#onWalked = onWalked;
  }

  /** What the text before the cursor may go on to name: what its folder holds, then what is deeper. */
  suggest(text: string, cursor: number): Suggestions | null {
    const typed = typing.exec(text.slice(Math.max(0, cursor - 500), cursor))?.[1];
    if (typed === undefined) return null;
    if (performance.now() - this.#walkedAt > freshMs) void this.#walk();
    const part = typed.replace(/^"/, "").toLowerCase();
    const found = this.#paths.filter((path) => {
      const at = path.toLowerCase().indexOf(part);
      return at >= 0 && !/(^|\/)\./.test(path.slice(at + part.length));
    });
    const isNear = (path: string): boolean =>
      path.toLowerCase().startsWith(part) && !path.slice(part.length, -1).includes("/");
    const near = found.filter(isNear);
    const far = part.length < 2 ? [] : found.filter((path) => !isNear(path));
    const options = [...near, ...far].slice(0, maxSuggestions).map(toOption);
    return { start: cursor - typed.length - 1, options };
  }

  async #walk(): Promise<void> {
    this.#walkedAt = performance.now();
    const { walk } = await import("../tools/walk.ts");
    const range = { levels: 12, named: new Set<string>(), workspace: this.#cwd };
    const [folders, files] = [new Set<string>(), [] as string[]];
    let pauseAt = performance.now() + stepMs;
    for (const path of walk(this.#cwd, range, { ignored: 0, unreadable: 0 })) {
      const name = relative(this.#cwd, String(path));
      files.push(name);
      for (let at = name.indexOf("/"); at >= 0; at = name.indexOf("/", at + 1))
        folders.add(name.slice(0, at + 1));
      if (files.length >= maxFiles) break;
      if (performance.now() < pauseAt) continue;
      await Bun.sleep(1);
      pauseAt = performance.now() + stepMs;
    }
    this.#paths = [...folders, ...files];
    this.#onWalked();
  }
}

function toOption(path: string): Suggestion {
  if (!/\s/.test(path)) return { value: `@${path}` };
  return { value: path.endsWith("/") ? `@"${path}` : `@"${path}"` };
}
