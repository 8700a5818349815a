/**
 * The walk over a folder: its regular files in the order of their names, without what ignore files
 * hide.
 *
 * Invariant: .gitignore, .git/info/exclude and .ignore mean here what they mean to git and ripgrep,
 * and those above the folder count, up to the repository's root. Symbolic links are never followed,
 * `.git` is never entered, and nothing is opened but folders and ignore files. What cannot be read
 * is counted, never thrown.
 */
import { constants, existsSync, lstatSync, readdirSync, readFileSync } from "node:fs";
import type { Dirent } from "node:fs";
import { dirname } from "node:path";
import ignore, { type Ignore } from "ignore";

/** Bytes where the name is no UTF-8, and a string would not open it. */
export type Path = string | Buffer;

/** What a walk left out: entries hidden by ignore files, and what could not be read. */
export type Tally = { ignored: number; unreadable: number };

export type Range = {
  /** How many levels of folders are read; 1 is the root alone. */
  levels: number;
  /** Entries of these names are shown although an ignore file hides them. */
  named: ReadonlySet<string>;
  /** Where ignore files begin to count when the root is in no repository. */
  workspace: string;
};

/** What was a file when it was listed may be a link or a pipe by now: not followed, not waited for. */
export const OPEN_FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

type Entry = { name: string; raw?: Buffer; isFile(): boolean; isDirectory(): boolean };
type Folder = { path: Path; entries: readonly Entry[]; next: number; rules: Rules };

/** The files below `root`, the absolute and real path of a folder. */
export function* walk(root: string, range: Range, tally: Tally): Generator<Path> {
  const origin = originOf(root, range.workspace);
  const none = join({ git: blank(), dot: blank(), shapes: [] }, [], []);
  const site = { skip: origin === "/" ? 1 : origin.length + 1, tally, none };
  const stack = [openFolder(root, rulesAbove(root, origin, site), site)];
  for (let top = stack.at(-1); top; top = stack.at(-1)) {
    const entry = top.entries[top.next++];
    if (!entry) stack.pop();
    if (!entry || entry.name === ".git") continue;
    const isFolder = entry.isDirectory();
    if (isFolder ? stack.length >= range.levels : !entry.isFile()) continue;
    const path = pathOf(top.path, entry.raw ?? entry.name);
    const isShown = !isHidden(top.rules, entry.name, path, isFolder, site.skip);
    if (!isShown) tally.ignored++;
    if (!isShown && !range.named.has(entry.name)) continue;
    // Rules that hide a folder as a whole say nothing about what is in it.
    if (isFolder) stack.push(openFolder(path, isShown ? top.rules : none, site));
    else yield path;
  }
}

/** `skip`: how many characters of a path stand before its part below the origin. */
type Site = { skip: number; tally: Tally; none: Rules };

function openFolder(path: Path, above: Rules, site: Site): Folder {
  try {
    const entries = list(path).sort((a, b) => (a.name < b.name ? -1 : 1));
    return { path, entries, next: 0, rules: rulesIn(path, entries, above, site) };
  } catch (error) {
    countUnreadable(error, site.tally);
    return { path, entries: [], next: 0, rules: above };
  }
}

function list(path: Path): Entry[] {
  if (typeof path === "string") {
    const entries = readdirSync(path, { withFileTypes: true });
    if (entries.every((entry) => hasKind(entry) && !entry.name.includes("\ufffd"))) return entries;
  }
  return readdirSync(path, { encoding: "buffer" }).flatMap((raw) => describe(path, raw) ?? []);
}

const OTHER_KINDS = [
  "isSymbolicLink",
  "isFIFO",
  "isSocket",
  "isCharacterDevice",
  "isBlockDevice",
] as const;

/** Some file systems do not tell with its name what an entry is. */
const hasKind = (entry: Dirent): boolean =>
  entry.isFile() || entry.isDirectory() || OTHER_KINDS.some((kind) => entry[kind]());

function describe(folder: Path, raw: Buffer): Entry | null {
  const name = raw.toString();
  const isText = !name.includes("\ufffd");
  const stats = lstatSync(pathOf(folder, isText ? name : raw), { throwIfNoEntry: false });
  if (!stats) return null;
  const [isFile, isDirectory] = [stats.isFile(), stats.isDirectory()];
  return {
    name,
    raw: isText ? undefined : raw,
    isFile: () => isFile,
    isDirectory: () => isDirectory,
  };
}

function pathOf(folder: Path, name: string | Buffer): Path {
  if (typeof folder === "string" && typeof name === "string") {
    return folder === "/" ? `/${name}` : `${folder}/${name}`;
  }
  return Buffer.concat([Buffer.from(folder), Buffer.from("/"), Buffer.from(name)]);
}

/** The path below the folder `root`. */
export const insideOf = (root: string, path: Path): string =>
  String(path).slice(root === "/" ? 1 : root.length + 1);

/** What vanished or became a link since its name was read is not missed. */
export function countUnreadable(error: unknown, tally: Tally): void {
  if (!isSystemError(error)) throw error;
  if (!["ENOENT", "ENOTDIR", "ELOOP"].includes(error.code)) tally.unreadable++;
}

export function isSystemError(error: unknown): error is Error & { code: string } {
  return error instanceof Error && "code" in error && "errno" in error;
}

// ── Ignore files ────────────────────────────────────────────────────────────────────────────────

/**
 * The patterns in force in a folder. All are spelt from the origin, so that one list, in which the
 * last match decides, holds those of every level; `all` is `git` and then `dot`, whose patterns
 * outrank git's at any level. Most entries have no shape that any pattern could match, and are
 * spared the question.
 */
type Rules = {
  git: Ignore;
  dot: Ignore;
  all: Ignore;
  shapes: readonly Shape[];
  names: ReadonlySet<string>;
  form: RegExp;
  folders: readonly string[];
};

/** What must be so for a pattern to match: the name is, or looks like, or the path goes through. */
type Shape = { name?: string; form?: string; folder?: string };

const blank = (): Ignore => ignore({ ignorecase: false });

function isHidden(
  rules: Rules,
  name: string,
  path: Path,
  isFolder: boolean,
  skip: number,
): boolean {
  const isSuspect =
    rules.names.has(name) ||
    rules.form.test(name) ||
    rules.folders.some((folder) => path.includes(folder));
  return isSuspect && rules.all.ignores(String(path).slice(skip) + (isFolder ? "/" : ""));
}

/** The root of the repository that `folder` is in; else the workspace, if that is above it. */
function originOf(folder: string, workspace: string): string {
  for (let at = folder; ; at = dirname(at)) {
    if (existsSync(`${at}/.git`)) return at;
    if (at === dirname(at)) break;
  }
  return folder.startsWith(`${workspace}/`) ? workspace : folder;
}

/** What the folders above `root` say about what is in it; nothing where they hide it as a whole. */
function rulesAbove(root: string, origin: string, site: Site): Rules {
  const folders: string[] = [];
  for (let at = root; at !== origin; at = dirname(at)) folders.unshift(dirname(at));
  const rules = folders.reduce((above, folder) => {
    const entries = IGNORE_FILES.flatMap((name) => describe(folder, Buffer.from(name)) ?? []);
    return rulesIn(folder, entries, above, site);
  }, site.none);
  const isApart = root !== origin && rules.all.ignores(`${root.slice(site.skip)}/`);
  return isApart ? site.none : rules;
}

const IGNORE_FILES = [".git", ".gitignore", ".ignore"];

function rulesIn(path: Path, entries: readonly Entry[], above: Rules, site: Site): Rules {
  const found = entries.filter(({ name }) => name[0] === "." && IGNORE_FILES.includes(name));
  if (found.length === 0) return above;
  const inside = String(path).slice(site.skip);
  const read = (name: string) => rebase(readRules(pathOf(path, name), site.tally), inside);
  // Not through a link, as git.
  const isFile = (name: string) => found.some((entry) => entry.name === name && entry.isFile());
  const isRepository = found.some(({ name }) => name === ".git");
  const git = isRepository ? read(".git/info/exclude") : [];
  if (isFile(".gitignore")) git.push(...read(".gitignore"));
  // A repository in a repository does not hear the outer one's patterns.
  const outer = isRepository ? { ...above, git: blank() } : above;
  return join(outer, git, isFile(".ignore") ? read(".ignore") : []);
}

function join(
  above: Pick<Rules, "git" | "dot" | "shapes">,
  gitPatterns: string[],
  dotPatterns: string[],
): Rules {
  const git = blank().add(above.git).add(gitPatterns);
  const dot = blank().add(above.dot).add(dotPatterns);
  const shapes = [...above.shapes, ...gitPatterns.map(shapeOf), ...dotPatterns.map(shapeOf)];
  const all = <K extends keyof Shape>(key: K) => shapes.flatMap((shape) => shape[key] ?? []);
  return {
    git,
    dot,
    all: blank().add(git).add(dot),
    shapes,
    names: new Set(all("name")),
    form: new RegExp(`^(?:${all("form").join("|")})$`, "s"),
    folders: [...new Set(all("folder"))],
  };
}

function readRules(path: Path, tally: Tally): string {
  try {
    return readFileSync(path, { encoding: "utf8", flag: OPEN_FLAGS });
  } catch (error) {
    countUnreadable(error, tally);
    return "";
  }
}

/** The patterns of an ignore file in the folder `inside`, spelt from the origin (gitignore(5)). */
function rebase(text: string, inside: string): string[] {
  const lines = text.replace(/^\ufeff/, "").split(/\r?\n/);
  // More of `**` than anybody means takes exponential time.
  const patterns = lines.filter((line) => !/^#|^\s*$/.test(line) && line.split("**").length < 7);
  if (inside === "") return patterns;
  const folder = `/${inside.replace(/[\\*?[ ]/g, "\\$&")}/`;
  return patterns.flatMap((line) => {
    const [, not = "", pattern = ""] = /^(!?)(.*)$/s.exec(line) ?? [];
    const body = pattern.trimEnd().replace(/\/$/, "");
    if (body === "") return [];
    return `${not}${folder}${body.includes("/") ? "" : "**/"}${pattern.replace(/^\//, "")}`;
  });
}

function shapeOf(line: string): Shape {
  // What a bracket matches is one character, for this purpose any.
  const pattern = line
    .replace(/^!/, "")
    .trimEnd()
    .replace(/\/$/, "")
    .replace(/\[[^[\]\\]+\]/g, "?");
  const [last = "", parent = ""] = pattern.split("/").reverse();
  if (/[[\\]/.test(pattern)) return { form: ".*" };
  if (/^\*+$/.test(last) && /^[^*?]+$/.test(parent)) return { folder: `/${parent}/` };
  if (!/[*?]/.test(last)) return { name: last };
  const [head = "", ...tail] = last.split("*").map(formOf);
  return { form: tail.length > 0 ? `${head}.*${tail.at(-1)}` : head };
}

const formOf = (piece: string): string =>
  piece.replace(/[.+^${}()|\]]/g, "\\$&").replaceAll("?", ".");
