/**
 * Completion of `@file`: what the folder that is being typed holds, and files anywhere in the
 * workspace whose path holds what was typed. What ignore files hide is left out; the workspace is
 * walked in the background, in short steps, when somebody first types an `@`.
 */
import { type Dirent, readdirSync } from "node:fs";
import { relative } from "node:path";
import type { Suggestion, Suggestions } from "./editor.ts";
import { toPath } from "./mentions.ts";

const typing = /(?:^|[\s([{"'])@("[^"\n]*|[^\s"]*)$/;
const maxSuggestions = 50;
const maxFiles = 20_000;
/** How long the walk may hold up the keyboard at a time, and how long its result is good for. */
const stepMs = 8;
const freshMs = 10_000;

export class FileIndex {
  #cwd: string;
  #files: string[] = [];
  /** Every file that no ignore file hides, and every folder above one; null until they are known. */
  #shown: Set<string> | null = null;
  #walkedAt = -freshMs;

  /** `cwd` is absolute and real. */
  constructor(cwd: string) {
    this.#cwd = cwd;
  }

  /** What the text before the cursor may go on to name. */
  suggest(text: string, cursor: number): Suggestions | null {
    const typed = typing.exec(text.slice(Math.max(0, cursor - 500), cursor))?.[1];
    if (typed === undefined) return null;
    if (performance.now() - this.#walkedAt > freshMs)
      this.#walk().catch(() => (this.#shown = null)); // folders are completed without it
    const path = typed.replace(/^"/, "");
    const paths = new Set([...this.#inFolder(path), ...this.#anywhere(path)]);
    const options = [...paths].slice(0, maxSuggestions).map(toOption);
    return { start: cursor - typed.length - 1, options };
  }

  #inFolder(path: string): string[] {
    const slash = path.lastIndexOf("/") + 1;
    const [folder, begin] = [path.slice(0, slash), path.slice(slash).toLowerCase()];
    return list(toPath(folder || ".", this.#cwd))
      .filter(({ name }) => name.toLowerCase().startsWith(begin))
      .filter(({ name }) => begin.startsWith(".") || !name.startsWith("."))
      .map((entry) => `${folder}${entry.name}${entry.isDirectory() ? "/" : ""}`)
      .filter((found) => this.#isShown(found));
  }

  #isShown(path: string): boolean {
    const inside = relative(this.#cwd, toPath(path, this.#cwd));
    return this.#shown === null || inside.startsWith("..") || this.#shown.has(inside);
  }

  #anywhere(path: string): string[] {
    if (path.length < 2) return [];
    const part = path.toLowerCase();
    return this.#files.filter((file) => file.toLowerCase().includes(part)).slice(0, maxSuggestions);
  }

  async #walk(): Promise<void> {
    this.#walkedAt = performance.now();
    const { walk } = await import("../tools/walk.ts");
    const range = { levels: 12, named: new Set<string>(), workspace: this.#cwd };
    const [files, shown] = [[] as string[], new Set<string>()];
    let pauseAt = performance.now() + stepMs;
    for (const path of walk(this.#cwd, range, { ignored: 0, unreadable: 0 })) {
      const name = relative(this.#cwd, String(path));
      files.push(name);
      for (let at = name.length; at > 0; at = name.lastIndexOf("/", at - 1))
        shown.add(name.slice(0, at));
      if (files.length >= maxFiles) break;
      if (performance.now() < pauseAt) continue;
      await Bun.sleep(1);
      pauseAt = performance.now() + stepMs;
    }
    this.#files = files;
    this.#shown = files.length < maxFiles ? shown : null;
  }
}

function list(folder: string): Dirent[] {
  try {
    const entries = readdirSync(folder, { withFileTypes: true });
    const rank = (entry: Dirent) => `${entry.isDirectory() ? 0 : 1}${entry.name}`;
    return entries.toSorted((a, b) => (rank(a) < rank(b) ? -1 : 1));
  } catch {
    return []; // no such folder, or none that may be read: nothing to suggest
  }
}

function toOption(path: string): Suggestion {
  if (!/\s/.test(path)) return { value: `@${path}` };
  return { value: path.endsWith("/") ? `@"${path}` : `@"${path}"` };
}
