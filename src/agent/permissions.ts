/**
 * Every yes, no and ask about a tool call.
 *
 * Invariant: protected paths and deny rules come first and hold in every mode; then ask rules, then
 * allow rules, then the mode. A call is the parts of what it does, and is allowed only if each of
 * them is. But for `policy.resolve` the verdict follows from the arguments alone; nothing here runs,
 * opens or changes anything.
 */
import type { Policy, Rules, Verdict } from "../types.ts";
import { flatten, type Line, opaque, type Part, readLine } from "./bash.ts";
import { complaintAbout, guardOf, isCritical, isWithin, type Sight, sightOf } from "./paths.ts";
import { type Touch, touchAt } from "./programs.ts";
import {
  coversCall,
  type Covers,
  fileCover,
  hostOf,
  isAbout,
  joinRules,
  mayName,
  toPattern,
} from "./rules.ts";
import { type Kind, parseRule, type Rule, splitRules } from "./rules.ts";

export { realResolve } from "./paths.ts";
export { parseMode, parseRule, splitRules } from "./rules.ts";

type Call = { name: string; input: Record<string, unknown> };

/** What is known while a call is judged. `sights` has an entry for each touch of `line`. */
type Case = {
  call: Call;
  policy: Policy;
  rules: Record<Kind, FileRule[]>;
  line: Line;
  sights: Map<Touch, Sight | null>;
};

type FileRule = Rule & { covers: Covers };

/** Something that nothing allows yet, as part of a sentence; and the rules that would allow it. */
type Open = { why: string; cures: string[] };

/** `open` is empty on an allowed call, and where no rule could allow it. */
type Judgement = Verdict & { open: Open[] };

/** More rules than these are no suggestion that a person reads. */
const MAX_CURES = 5;

/**
 * The verdict on a call. Throws a UsageError for a rule that does not parse. A `suggestion` may hold
 * several rules with commas between them, as `splitRules` takes them.
 */
export function decide(call: Call, policy: Policy): Verdict {
  const { open, ...verdict } = judge(call, policy);
  const cures = [...new Set(open.flatMap((one) => one.cures))];
  const suggestion = cures.length > MAX_CURES ? null : joinRules(cures);
  if (!suggestion) return verdict;
  const allow = [...policy.rules.allow, suggestion];
  const again = judge(call, { ...policy, rules: { ...policy.rules, allow } });
  if (again.decision !== "allow") return verdict;
  if (verdict.decision === "ask") return { ...verdict, suggestion };
  return { ...verdict, reason: `${verdict.reason} The rule ${suggestion} would allow it.` };
}

/** The tools that a deny rule takes away altogether; a model need not see them. */
export function removedTools(rules: Rules): { has(name: string): boolean } {
  const bare = parseAll(rules.deny).filter(({ spec }) => spec === null);
  return { has: (name) => bare.some((rule) => isAbout(rule, name)) };
}

const parseAll = (texts: readonly string[]): Rule[] => splitRules(texts).map(parseRule);

// ── The order ───────────────────────────────────────────────────────────────────────────────────

function judge(call: Call, given: Policy): Judgement {
  const known = new Map<string, string>();
  const resolve = (path: string) => known.getOrInsertComputed(path, () => given.resolve(path));
  const policy = { ...given, resolve };
  const line = lineOf(call, policy);
  if (typeof line === "string") return verdict("deny", line);
  const read = (kind: Kind): FileRule[] =>
    parseAll(policy.rules[kind]).map((rule) => ({
      ...rule,
      covers: fileCover(rule, kind, policy),
    }));
  const rules = { deny: read("deny"), ask: read("ask"), allow: read("allow") };
  const touches = flatten(line.parts).flatMap((part) => part.touches);
  const sights = new Map(touches.map((touch) => [touch, sightOf(touch, policy)]));
  const the: Case = { call, policy, rules, line, sights };
  return forbidden(the) ?? questioned(the) ?? settled(the);
}

function forbidden(the: Case): Judgement | null {
  const guard = guardOf(the.policy);
  for (const [touch, sight] of the.sights) {
    const why = sight && guard(touch, sight);
    if (why)
      return verdict(
        "deny",
        `${show(sight.names[0] ?? "")} ${why}: it is protected in every mode.`,
      );
  }
  const rule = ruleAgainst("deny", the);
  return rule === null
    ? null
    : verdict("deny", `The rule ${rule} denies it. Do it another way.`, rule);
}

/** What is asked whatever the allow rules and the mode say. */
function questioned(the: Case): Judgement | null {
  const rule = ruleAgainst("ask", the);
  if (rule) return ask(`the rule ${rule} wants a person's word`, the, rule);
  if (the.line.trouble !== null)
    return ask(`the command cannot be read with certainty (${the.line.trouble})`, the);
  const touches = [...the.sights.keys()];
  const hidden = the.rules.deny.find((one) => touches.some((touch) => mayName(one, touch)));
  if (hidden) return ask(`a wildcard may name what the rule ${hidden.text} denies`, the);
  const critical = [...the.sights].some(([touch, sight]) => isCritical(touch, sight, the.policy));
  return critical ? ask("it may remove all of a workspace, a home or the system", the) : null;
}

/** The first rule of the list that is about any part of the call. */
function ruleAgainst(kind: "deny" | "ask", { call, rules, line, sights }: Case) {
  const parts = flatten(line.parts);
  const commands = parts.flatMap(({ text, plain }) => [text ?? plain, plain]);
  const lines = [String(call.input.command), ...commands];
  const found = rules[kind].find(
    (rule) =>
      coversCall(rule, call.name, call.input) ||
      (call.name === "Bash" && coversAny(rule, lines)) ||
      [...sights].some(([{ access }, sight]) =>
        sight?.names.some((name) => rule.covers(access, name)),
      ),
  );
  return found?.text ?? null;
}

/** Whether a rule such as Bash(git log *) covers one of these commands. */
function coversAny({ tool, spec }: Rule, commands: string[]): boolean {
  if (tool !== "Bash" || spec === null) return false;
  const pattern = toPattern(spec);
  return commands.some((command) => pattern.test(command));
}

// ── Allow rules and the mode ────────────────────────────────────────────────────────────────────

/** What became of a part: the rule that allowed it, if one did, and what is still open. */
type Outcome = { rule: string | null; open: Open[] };

const allowed = (rule: string | null = null): Outcome => ({ rule, open: [] });
const left = (why: string, cures: string[] = []): Outcome => ({
  rule: null,
  open: [{ why, cures }],
});
const together = (outcomes: Outcome[]): Outcome => ({
  rule: outcomes.find(({ rule }) => rule !== null)?.rule ?? null,
  open: outcomes.flatMap(({ open }) => open),
});

function settled(the: Case): Judgement {
  const { policy, rules, call, line } = the;
  const exact = rules.allow.find(
    ({ tool, spec }) => tool === "Bash" && call.name === "Bash" && spec === call.input.command,
  );
  const { rule, open } = exact
    ? allowed(exact.text)
    : together(line.parts.map((part) => outcomeOf(part, the)));
  const [first, ...more] = open;
  if (first) {
    const rest = more.length > 0 ? ` (and ${more.length} more)` : "";
    return { ...ask(first.why + rest, the), open };
  }
  const reason = rule ? `The rule ${rule} allows it.` : `Mode ${policy.mode} allows it.`;
  return verdict("allow", reason, rule);
}

function outcomeOf(part: Part, the: Case): Outcome {
  const { call, rules, policy } = the;
  const rule = rules.allow.find(
    (one) =>
      coversCall(one, call.name, call.input) ||
      (call.name === "Bash" && part.text !== null && coversAny(one, [part.text])),
  );
  if (rule) return allowed(rule.text);
  if (policy.mode === "unsafe") return allowed();
  if (part.known) return together(part.touches.map((touch) => fileOutcome(touch, the)));
  if (part.passes) return together(part.inner.map((inner) => outcomeOf(inner, the)));
  return left(`${show(part.plain)} ${unknownOf(call)}`, curesOf(part, call));
}

function fileOutcome(touch: Touch, { policy, rules, sights }: Case): Outcome {
  const sight = sights.get(touch);
  const { access, path, base } = touch;
  if (access === "mention") return allowed();
  if (!sight || (access === "write" && path !== base))
    return left(`only the shell will know which file is ${access === "read" ? "read" : "written"}`);
  const byMode = access === "read" || policy.mode === "edit";
  if (byMode && sight.inside) return allowed();

  const inRoots = (name: string) => policy.roots.some((root) => isWithin(name, root));
  const covering = (name: string) => rules.allow.find((rule) => rule.covers(access, name));
  const bare = sight.names.filter((name) => !covering(name) && !(byMode && inRoots(name)));
  if (bare.length === 0) return allowed(sight.names.map(covering).find(Boolean)?.text);
  const what = sight.inside ? "changes" : "is outside the workspace";
  const tool = access === "read" ? "Read" : "Edit";
  const cures = bare.map((name) => `${tool}(${patternOf(name, path === base, policy)})`);
  return left(`${show(sight.names[0] ?? base)} ${what}`, cures);
}

// ── Suggestions and sentences ───────────────────────────────────────────────────────────────────

/** A path as a rule has it: from the workspace where it lies in there. */
function patternOf(path: string, isName: boolean, { roots: [workspace = "/"] }: Policy): string {
  const escaped = (text: string) => (isName ? text.replace(/[*?[\]!#\\]/g, "\\$&") : text);
  return isWithin(path, workspace)
    ? escaped(path.slice(workspace.length)) || "/**"
    : `/${escaped(path)}`;
}

/** The narrowest sensible rule for a part of which nothing is known. */
function curesOf({ text, inner, touches }: Part, { name, input }: Call): string[] {
  if (name === "WebFetch") return [`WebFetch(domain:${hostOf(input.url)})`];
  if (name !== "Bash") return [name];
  if (text === null) return [];
  const [command] = /^[\w@+-]+ [a-z][\w:-]*(?= |$)/.exec(text) ?? [];
  const narrow = inner.length > 0 || touches.some(({ access }) => access !== "mention");
  return [`Bash(${command && !narrow ? `${command} *` : text.replaceAll("*", "\\*")})`];
}

function unknownOf({ name }: Call): string {
  if (name === "Bash") return "is not known to only read";
  return name.startsWith("Web") ? "reaches the network" : "is not known to be harmless";
}

/** A command or path in a sentence: on one line, and not too long. */
function show(text: string): string {
  const line = text.replace(/\s+/g, " ");
  return `\`${line.length > 100 ? `${line.slice(0, 100).toWellFormed()}…` : line}\``;
}

const verdict = (
  decision: Verdict["decision"],
  reason: string,
  rule: string | null = null,
): Judgement => ({ decision, rule, reason, open: [] });

/** A question, or the no that stands for it where the mode puts none. */
function ask(why: string, { policy: { mode }, call }: Case, rule: string | null = null): Judgement {
  if (mode === "dontAsk")
    return verdict("deny", `${call.name} is refused: ${why}, and mode dontAsk asks nobody.`, rule);
  if (mode === "read-only" && rule === null)
    return verdict(
      "deny",
      `${call.name} is refused in mode read-only: ${why}. Allowed are reading in the workspace and ` +
        `read-only commands such as ls, cat, grep, git log.`,
    );
  return verdict("ask", `${call.name} asks first: ${why}.`, rule);
}

// ── What a call does ────────────────────────────────────────────────────────────────────────────

/** Tools that change nothing outside the session, or guard themselves (serve/tools.ts). */
const HARMLESS = [
  "BashOutput",
  "KillShell",
  "TodoWrite",
  "Skill",
  "Task",
  "Schedule",
  "SendMessage",
  "Remember",
  "Recall",
];

/** The parts of a call; or a sentence for a call that is refused as it stands. */
function lineOf({ name, input }: Call, policy: Policy): Line | string {
  const cwd = policy.roots[0] ?? "/";
  const variables = { HOME: policy.home, CLAW_HOME: policy.clawHome };
  const plain = typeof input.url === "string" ? `${name} ${input.url}` : name;
  switch (name) {
    case "Bash":
      if (typeof input.command !== "string") return "Bash needs its command as text.";
      return readLine(input.command, { cwd, variables });
    case "Read":
    case "Edit":
    case "Write":
    case "MultiEdit":
      return filesOf(name === "Read" ? "read" : "write", { file_path: input.file_path }, policy);
    case "NotebookEdit":
      return filesOf("write", { notebook_path: input.notebook_path }, policy);
    case "Glob":
    case "Grep":
      return searchOf(input.path ?? ".", name === "Glob" ? input.pattern : "", policy);
    case "WebFetch":
      if (hostOf(input.url) === null) return `WebFetch needs an http or https address as its url.`;
      return { trouble: null, parts: [opaque(plain)] };
    default:
      return { trouble: null, parts: [{ ...opaque(plain), known: HARMLESS.includes(name) }] };
  }
}

const absolute = (path: string, policy: Policy) => path.replace(/^~(?=\/|$)/, policy.home);

function filesOf(
  access: "read" | "write",
  given: Record<string, unknown>,
  policy: Policy,
): Line | string {
  const touches: Touch[] = [];
  for (const [key, path] of Object.entries(given)) {
    if (typeof path !== "string") return `The call needs its ${key} as text.`;
    const complaint = complaintAbout(path);
    if (complaint)
      return `The ${key} ${JSON.stringify(path)} ${complaint}; give the path of a file.`;
    touches.push(touchAt(access, absolute(path, policy), policy.roots[0] ?? "/", false));
  }
  return { trouble: null, parts: [{ ...opaque(access), known: true, touches }] };
}

/** A search looks into its folder, and wherever a pattern such as `../*` or `/etc/*` leads. */
function searchOf(path: unknown, pattern: unknown, policy: Policy): Line | string {
  const line = filesOf("read", { path }, policy);
  if (typeof line === "string" || typeof pattern !== "string" || pattern === "") return line;
  const folder = line.parts[0]?.touches[0]?.path ?? "/";
  const leaves = /^[~/]|[{,][~/]|\.\./.test(pattern);
  const touch = touchAt(leaves ? "read" : "mention", absolute(pattern, policy), folder, true);
  if (/[{,][~/]/.test(pattern)) touch.path = null;
  return {
    ...line,
    parts: line.parts.map((part) => ({ ...part, touches: [...part.touches, touch] })),
  };
}
