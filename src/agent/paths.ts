/**
 * Where paths really lead, which of them nobody may touch, and which `rm -r` is never waved through.
 *
 * Invariant: a path is judged under every name it has: as written, and where its links lead. Names
 * that some file system takes for the same (case, Unicode forms, dots at the end) are the same.
 * `realResolve` alone looks at the disk.
 */
import { lstatSync, readlinkSync } from "node:fs";
import { join, normalize } from "node:path";
import type { Policy } from "../types.ts";
import type { Touch } from "./programs.ts";

/** The system's own limits: links in one path, and its length. */
const MAX_LINKS = 40;
const MAX_PATH = 4096;

/**
 * The real path of the deepest part of `path` that exists, with the rest appended; `..` counts from
 * where links lead, as in the kernel. Links in a circle stay as they are: what opens them fails.
 */
export function realResolve(path: string): string {
  const names = (path.startsWith("/") ? path : `${process.cwd()}/${path}`).split("/").toReversed();
  let real = "/";
  for (let links = 0; ;) {
    const name = names.pop();
    if (name === undefined) return real;
    if (name === "" || name === ".") continue;
    const next = join(real, name);
    const target = links > MAX_LINKS ? null : linkAt(next);
    if (target === null) real = next;
    else {
      links++;
      names.push(...target.split("/").toReversed());
      if (target.startsWith("/")) real = "/";
    }
  }
}

function linkAt(path: string): string | null {
  try {
    return lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() ? readlinkSync(path) : null;
  } catch {
    return null; // What cannot be looked at is no link that could be followed.
  }
}

export const isWithin = (path: string, folder: string): boolean =>
  path === folder || path.startsWith(folder === "/" ? "/" : `${folder}/`);

/** What is wrong with a path that a tool was given; null where it may be one. */
export function complaintAbout(path: string): string | null {
  // oxlint-disable-next-line no-control-regex
  if (/[\0\r\n]/.test(path)) return "holds a line break or a NUL";
  if (/^[a-z][a-z\d+.-]*:\/\//i.test(path)) return "is an address";
  if (path.length > MAX_PATH) return "is longer than any path";
  return path === "" ? "is empty" : null;
}

// ── What a touch comes to ───────────────────────────────────────────────────────────────────────

/**
 * All names of what is touched: as written, and where links lead, with `..` taken both ways.
 * `inside`: wherever it leads, it is in the workspace or an added folder.
 */
export type Sight = { names: string[]; inside: boolean };

/** What `touch` comes to; null where only the shell knows. */
export function sightOf({ path, base }: Touch, policy: Policy): Sight | null {
  if (path === null || path.length > MAX_PATH) return null;
  const pattern = path.slice(base.length);
  const reals = [...new Set([policy.resolve(base), policy.resolve(normalize(base))])];
  const names = [normalize(path), ...reals.map((real) => normalize(real + pattern))];
  const inside = reals.every((real) => policy.roots.some((root) => isWithin(real, root)));
  return { names: [...new Set(names.map((name) => name.replace(/(.)\/$/, "$1")))], inside };
}

/** The same text for names that some file system takes for the same. */
export const fold = (name: string): string =>
  name
    .normalize("NFKC")
    .toLowerCase()
    .replace(/[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]/g, "")
    .replace(/[. ]+(?=\/|$)/g, "");

const GIT =
  /\/\.git(\/(hooks|config(\.worktree)?|commondir|(modules|worktrees)\/(.*\/)?(hooks|config(\.worktree)?|commondir))(\/.*)?)?$/;
const SHELL_START =
  /^\/(\.(bashrc|bash_(profile|login|logout|aliases)|profile|(zsh(rc|env)|z(profile|login|logout))|[kmc]shrc|tcshrc|login|logout)|\.config\/fish(\/.*)?)$/;
const SYSTEM_SHELL_START = /^\/etc\/(profile(\.d\/.*)?|(bash\.)?bashrc|(zsh|fish)(\/.*)?|z\w+)$/;

/** Says why nobody may do a thing, in any mode; null where the rules and the mode decide. */
export type Guard = (touch: Touch, sight: Sight) => string | null;

export function guardOf(policy: Policy): Guard {
  const { clawHome, home, roots } = policy;
  const homes = [home, policy.resolve(home)].map(fold);
  const own = [clawHome, policy.resolve(clawHome)].map(fold);
  // A conversation's workspace lies in claw's own folder.
  const free = roots
    .map(fold)
    .filter((root) => own.some((at) => root !== at && isWithin(root, at)));
  const below = (name: string, folders: string[]) =>
    folders.filter((folder) => isWithin(name, folder)).map((folder) => name.slice(folder.length));

  const guard = (name: string, writes: boolean): string | null => {
    const [rest] = free.some((root) => isWithin(name, root)) ? [] : below(name, own);
    const open = !writes && /^\/(skills|agents)(\/|$)|^\/claude\.md$/.test(rest ?? "");
    if (rest !== undefined && !open) return "is claw's own";
    if (writes && GIT.test(name)) return "tells git what to run";
    const starts = below(name, homes).some((path) => SHELL_START.test(path));
    return writes && (starts || SYSTEM_SHELL_START.test(name)) ? "is run by every shell" : null;
  };
  return ({ access }, { names }) => {
    const writes = access === "write" || access === "remove";
    const why = names.map((name) => guard(fold(name), writes));
    return why.find((one) => one !== null) ?? null;
  };
}

/** Whether this removes `/`, a folder of the system, home, a workspace, or what they are in. */
export function isCritical(touch: Touch, sight: Sight | null, policy: Policy): boolean {
  if (touch.access !== "remove") return false;
  if (!sight || touch.path === null) return true;
  const pattern = touch.path.slice(touch.base.length);
  if (/[^/.*?[\]!^]/.test(pattern)) return false; // `*.o` is not all of a folder
  const { home, roots } = policy;
  const dear = [home, policy.resolve(home), ...roots];
  return [normalize(touch.base), policy.resolve(touch.base)].some((at) => {
    const path = at.replace(/(.)\/$/, "$1");
    return /^(\/private)?\/[^/]*$/.test(path) || dear.some((folder) => isWithin(folder, path));
  });
}
