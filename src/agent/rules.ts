/**
 * Modes and rules as people write them, and what a rule covers: `Bash(git log *)`, `Edit(src/**)`,
 * `WebFetch(domain:x.org)`, `mcp__server__tool`. The forms are Claude Code's.
 *
 * Invariant: a rule of `allow` covers no more than its text says; one of `deny` or `ask` covers
 * what comes to the same as well. What cannot be a rule is a UsageError, never a rule that is idle.
 */
import ignore from "ignore";
import { UsageError } from "../errors.ts";
import type { Mode, Policy } from "../types.ts";
import { fold, isWithin } from "./paths.ts";
import type { Touch } from "./programs.ts";

const MODES: Record<string, Mode> = {
  "read-only": "read-only",
  plan: "read-only",
  ask: "ask",
  default: "ask",
  edit: "edit",
  acceptEdits: "edit",
  "workspace-write": "edit",
  unsafe: "unsafe",
  bypassPermissions: "unsafe",
  "danger-full-access": "unsafe",
  dontAsk: "dontAsk",
};

/** A mode by any of its names; a UsageError names the valid ones. */
export function parseMode(text: string): Mode {
  const mode = Object.hasOwn(MODES, text) ? MODES[text] : undefined;
  if (mode) return mode;
  const start = text.toLowerCase().slice(0, 3);
  const near = Object.keys(MODES).find((name) => start && name.toLowerCase().startsWith(start));
  throw new UsageError(
    `There is no permission mode "${text}".${near ? ` Did you mean ${near}?` : ""} ` +
      `The modes are ${Object.keys(MODES).join(", ")}.`,
  );
}

// ── Rules ───────────────────────────────────────────────────────────────────────────────────────

/** Which list a rule is on. */
export type Kind = "deny" | "ask" | "allow";

/** `tool` is a tool's name or the beginning of one; `spec` stood in parentheses, null: anything. */
export type Rule = { text: string; tool: string; spec: string | null };

/** One rule; a UsageError says why it is none. */
export function parseRule(source: string): Rule {
  const text = source.trim();
  const rule = readRule(text);
  if (typeof rule === "string") throw new UsageError(`"${text}" is no permission rule: ${rule}.`);
  return rule;
}

/** The rule, or why it is none. */
function readRule(text: string): Rule | string {
  const [, tool, spec] = /^(\*|[A-Za-z_][\w-]*\*?)(?:\((.*)\))?$/s.exec(text) ?? [];
  if (tool === undefined || (spec !== undefined && /^\s*(:\*)?$/.test(spec)))
    return "write it like Read, Bash(git log *), Edit(src/**) or mcp__server__tool";
  if (tool === "WebFetch" && spec !== undefined && !/^(domain:.|\*$)/.test(spec))
    return "write WebFetch(domain:HOST), without a scheme";
  if (isAboutFiles(tool) && spec?.startsWith("!"))
    return 'it cannot begin with "!"; put it on another list';
  return { text, tool, spec: spec === undefined || spec === "*" ? null : spec };
}

/** The rules in lists that are separated by commas or spaces, but for those in parentheses. */
export function splitRules(values: readonly string[]): string[] {
  return values.flatMap((value) => {
    const rules = [""];
    let depth = 0;
    for (const char of value) {
      if (char === "(") depth++;
      if (char === ")") depth--;
      if (depth <= 0 && /[\s,]/.test(char)) rules.push("");
      else rules[rules.length - 1] += char;
    }
    return rules.filter(Boolean);
  });
}

/** The rules as one list, or null where one of them cannot stand in a list. */
export function joinRules(rules: string[]): string | null {
  const list = rules.join(", ");
  const whole = Bun.deepEquals(splitRules([list]), rules);
  return whole && rules.every((one) => typeof readRule(one) !== "string") ? list : null;
}

/** Whether the rule is about a tool of this name; `mcp__server` is about all of a server's. */
export function isAbout({ tool }: Rule, name: string): boolean {
  if (tool.endsWith("*")) return name.startsWith(tool.slice(0, -1));
  return name === tool || (/^mcp__[^_]/.test(tool) && name.startsWith(`${tool}__`));
}

/** Whether the rule covers a call as a whole, whatever its parts are. */
export function coversCall(rule: Rule, name: string, input: Record<string, unknown>): boolean {
  if (!isAbout(rule, name)) return false;
  const { tool, spec } = rule;
  if (spec === null) return true;
  if (tool === "Bash" || isAboutFiles(tool)) return false;
  if (tool === "WebFetch") return coversHost(spec.slice("domain:".length), input.url);
  const [, key = "", value = ""] = /^(\w+):(.*)$/s.exec(spec) ?? [];
  if (Object.hasOwn(input, key)) return toPattern(value).test(String(input[key]));
  return toPattern(spec).test(String(input.skill ?? input.subagent_type ?? input.query));
}

/** The host of a web address as it is compared: in ASCII, lower case, without a final dot. */
export function hostOf(url: unknown): string | null {
  const { protocol = "", hostname = "" } = URL.parse(String(url)) ?? {};
  return /^https?:$/.test(protocol) ? hostname.replace(/\.$/, "") : null;
}

function coversHost(domain: string, url: unknown): boolean {
  const host = hostOf(url);
  if (domain === "*" || host === null) return host !== null;
  const wanted = hostOf(`http://${domain.replace(/^\*\./, "")}`);
  if (wanted === null) return false;
  return domain.startsWith("*.") ? host.endsWith(`.${wanted}`) : host === wanted;
}

/**
 * What a command has to look like. `git log *` and `git log:*` cover `git log` and whatever has a
 * space after it; any other `*` stands for any text, and `\*` for itself.
 */
export function toPattern(spec: string): RegExp {
  const [, head = spec, rest] = /^(.*[^\\])(?: |:)\*$/s.exec(spec) ?? [spec, spec, null];
  const body = head.replace(/\\\*|[*.+?^${}()|[\]\\]/g, (found) =>
    found === "*" ? "[^]*" : found === "\\*" ? found : `\\${found}`,
  );
  return new RegExp(`^${body}${rest === null ? "" : "( [^]*)?"}$`);
}

// ── Rules about files ───────────────────────────────────────────────────────────────────────────

const READS = /^(Read|Glob|Grep|LS|NotebookRead)$/;
const EDITS = /^(Edit|Write|MultiEdit|NotebookEdit)$/;
const isAboutFiles = (tool: string): boolean => READS.test(tool) || EDITS.test(tool);

/** Whether a rule covers an access to the file of that name. */
export type Covers = (access: Touch["access"], name: string) => boolean;

/** What `rule`, on the list `kind`, covers of files. */
export function fileCover({ tool, spec }: Rule, kind: Kind, policy: Policy): Covers {
  const isWrite = (access: Touch["access"]) => access === "write" || access === "remove";
  if (!isAboutFiles(tool)) return () => false;
  if (spec === null && tool === "Edit") return isWrite;
  if (spec === null) return (access) => tool === "Read" && access === "read";

  // What may not be read may not be changed either: a change shows what was there.
  const concerns = (access: Touch["access"]) =>
    EDITS.test(tool)
      ? isWrite(access)
      : kind === "deny" || access === "read" || (kind === "ask" && access === "mention");
  let covered: ((path: string) => boolean) | undefined;
  return (access, name) => {
    if (!concerns(access)) return false;
    covered ??= toPathPattern(spec, kind, policy);
    return covered(name) || (kind !== "allow" && covered(fold(name)));
  };
}

/** Whether a wildcard of the shell's may name what a rule is about: a guess, and rather yes. */
export function mayName({ tool, spec }: Rule, { access, path, base }: Touch): boolean {
  const isRead = access === "read" || access === "mention";
  if (spec === null || path === null || path === base) return false;
  if (!isAboutFiles(tool) || (isRead && EDITS.test(tool))) return false;
  const key = spec.split("/").findLast((part) => /[^*]/.test(part)) ?? "*";
  const patterns = path
    .slice(base.length)
    .split("/")
    .filter((part) => /[*?[]/.test(part));
  return patterns.some(
    (part) => (part.startsWith(".") || !key.startsWith(".")) && new Bun.Glob(part).match(key),
  );
}

/** A path pattern as .gitignore has them; of a folder it covers all that is below. */
function toPathPattern(spec: string, kind: Kind, policy: Policy): (path: string) => boolean {
  const [bases, pattern] = anchor(spec, kind, policy);
  const list = ignore({ ignorecase: kind !== "allow", allowRelativePaths: true });
  list.add({ pattern: pattern.normalize("NFC").replace(/^#/, "\\#") });
  // `fold` made a name lower case, and its folder with it.
  const folders = kind === "allow" ? bases : bases.flatMap((base) => [base, fold(base)]);
  return (path) => {
    const folder = folders.find((one) => isWithin(path, one));
    if (folder === undefined) return false;
    const rest = path.slice(folder.length).replace(/^\//, "").normalize("NFC");
    if (rest === "") return /^\/?\*\*?$/.test(pattern);
    const below = kind === "allow" ? [] : [`${rest}/_`];
    return [rest, `${rest}/`, ...below].some((one) => list.ignores(one));
  };
}

/** Where a pattern starts, and what is left of it there. */
function anchor(spec: string, kind: Kind, policy: Policy): [bases: string[], pattern: string] {
  const { roots, home } = policy;
  const workspace = roots.slice(0, 1);
  if (spec.startsWith("//")) return [["/"], spec.slice(1)];
  if (/^~(\/|$)/.test(spec)) return [[home, policy.resolve(home)], spec.slice(1) || "/**"];
  if (/^\.?\//.test(spec)) return [workspace, spec.replace(/^\./, "")];
  const [, name, below] = /^([^/]+)(\/(?:\*\*)?)?$/.exec(spec) ?? [];
  if (name === undefined) return [workspace, spec];
  // `*.env` and `secrets/`: at any depth, but what is allowed of a folder is the one at the top.
  if (kind !== "allow") return [[...roots, "/"], below ? `**/${name}/**` : name];
  return below ? [workspace, `/${name}/**`] : [[...roots], name];
}
