/**
 * What the programs of a command line do with their arguments: which only read, which only make or
 * move files, which run another command. Tables first, then how they are applied.
 *
 * Invariant: a program is `known` only with arguments that are each on its list. An option that
 * writes, runs something, follows links or takes names from a file is on none: `sort -o`, `rg --pre`,
 * `find -exec`, `grep -R`, `wc --files0-from`; nor is an abbreviation of one.
 */
import { posix } from "node:path";

/** A word. `value` leaves out what is not `sure`; `glob`: it holds a pattern the shell expands. */
export type Arg = { raw: string; value: string; sure: boolean; glob: boolean };

/**
 * A file that is read, written, removed with all below it, or merely mentioned. `path` starts at
 * the root and may hold `..`; null: only the shell will know it. `base` is the folder in which its
 * first wildcard is looked up, and is `path` where there is none.
 */
export type Touch = {
  access: "read" | "write" | "remove" | "mention";
  path: string | null;
  base: string;
};

/** `known`: the program does nothing but `touches`. */
export type Effects = { known: boolean; touches: Touch[] };

/** The folders a command may be started in (null: anywhere), and the one where the line began. */
export type Here = { cwds: string[] | null; start: string };

// ── Tables ──────────────────────────────────────────────────────────────────────────────────────

/**
 * A program that only reads. Every flag has to match `flags`, and every operand `operand`; no more
 * than `max` operands. `first`: the first operand is no file but a pattern, and matches this.
 * `free`: no operand is a file. `dynamic`: harmless whatever the shell puts in.
 */
type Reader = {
  flags?: RegExp;
  operand?: RegExp;
  first?: RegExp;
  max?: number;
  free?: true;
  dynamic?: true;
};

const GREP =
  /^-[acEFGHhiIlLnoPqrsvwxyzZUbT\d]*([ABCm]\d*|e)?$|^--(include|exclude|exclude-dir|colou?r|context|(after|before)-context|max-count)=.*$|^--(ignore-case|line-number|recursive|only-matching|count|files-with(out-match|-matches)|(word|line)-regexp|invert-match|(no|with)-filename|fixed-strings|(extended|perl)-regexp|no-messages|quiet)$/;
const RG =
  /^-[acFHhiIlNnopPqsSuUvwx.0]*([ABCgtTmMdj]\d*|e)?$|^--(glob|iglob|type|type-not|colors?|context|sortr?|max-(count|depth|columns)|(after|before)-context)=.*$|^--(files|hidden|no-ignore|json|stats|trim|multiline|pcre2|(no-)?heading|vimgrep|count|count-matches|files-with(out-match|-matches)|(no-)?line-number|ignore-case|smart-case|case-sensitive|fixed-strings|(word|line)-regexp|only-matching|invert-match|(no|with)-filename|type-list)$/;
const FIND =
  /^-(\d+[bcwkMG]?|P|i?(name|path|regex|wholename|lname)|x?type|(max|min)depth|[acm](time|min)|[ac]?newer|empty|size|not|or?|and?|print0?|printf|prune|depth|xdev|mount|perm|user|group|uid|gid|readable|writable|executable|true|false|ls|quit|samefile|links|inum|daystart|regextype|nouser|nogroup)$/;
const DIFF =
  /^-[abBcdhikmNpqsSuvwxyU\d]+$|^--(brief|unified|color|stat|summarize|human-readable|max-depth=\d+)$/;
const TREE =
  /^-([adfipsughDFvtcUrxCAnSJ]+|[LIP]\d*)$|^--(dirsfirst|noreport|gitignore|prune|du|si)$/;
const SORT =
  /^-[bdfghiMnRrVuzsc]+$|^-k[\d.,bdfginrMRhV]*$|^-t.?$|^--(reverse|unique|(numeric|version)-sort)$/;
const JQ =
  /^-[rcsnejSaMC]+$|^--(raw-output|compact-output|slurp|null-input|exit-status|sort-keys|tab|arg|argjson)$/;
const GIT_INFO =
  /^-([abdelnpqrstvz]|sb|vv|u\w*)$|^--(short|branch|porcelain|long|untracked-files|ignored|show-toplevel|abbrev-ref|verify|git-dir|is-inside-work-tree|symbolic-full-name|show-prefix|quiet|tags|heads|all|always|dirty|exact-match|name-only|full-name|is-ancestor|fork-point)$|^--(porcelain|untracked-files|short|abbrev|abbrev-ref|match)=[\w.*-]+$/;
const GIT_SHOW =
  /^-([abCDEFGilLMpRqSswzn]|[UCMnGSL]\S*|\d+)$|^--(cc|all|oneline|graph|decorate|patch|raw|name-only|name-status|(num|short|dir)?stat|summary|compact-summary|cached|staged|merge-base|follow|reverse|merges|no-merges|first-parent|branches|tags|remotes|abbrev-commit|no-(patch|color|renames|ext-diff|textconv|decorate|prefix|index)|(date|topo|author-date)-order|ignore-(all-space|space-change|blank-lines|space-at-eol)|word-diff|color-words|check|relative-date|source|exit-code|quiet)$|^--(pretty|format|date|since|until|after|before|author|committer|grep|max-count|skip|color|decorate|abbrev|unified|diff-filter|word-diff|stat|find-renames|diff-algorithm|branches|tags|remotes|glob)=.*$/;
const GIT_LIST =
  /^-(a|r|l|v+|n\d*)$|^--(list|all|remotes|show-current|verbose|merged|no-merged|column)$|^--(contains|no-contains|merged|no-merged|points-at|sort|format|color)=.*$/;
const GIT_FILES =
  /^-[cdmosiktuvz]+$|^--(cached|deleted|modified|others|exclude-standard|stage|error-unmatch|full-name)$/;
const GIT_BLAME = /^-([wlsepCMcft]|L\S*|\d+)$|^--(line-porcelain|porcelain|show-email)$/;

const readers: readonly (readonly [names: RegExp, reader: Reader])[] = [
  [/^(ls|cat|head|tail|stat|cmp|comm|tac|nl|readlink|realpath|cksum|md5sum|sha\d+sum)$/, {}],
  [/^(cut|rev|fold|paste|od)$/, {}],
  [/^(true|false|:|seq|sleep|whoami|id|uname|basename|dirname|tr|df|which|type)$/, { free: true }],
  [/^(printenv|nproc|arch|groups|uptime|break|continue|exit|return|wait)$/, { free: true }],
  [/^command -[vV]$/, { free: true }],
  [/^echo$/, { free: true, dynamic: true }],
  [/^printf$/, { flags: /^-(?!v)/, first: /./, free: true, dynamic: true }],
  [/^(pwd|env|hostname)$/, { flags: /^-[LPfsiIA]$/, max: 0, free: true }],
  [/^set$/, { flags: /^-[eux]*o?$/, operand: /^pipefail$/, free: true }],
  // An operand of digits alone sets the clock.
  [/^date$/, { flags: /^-[uRdI]$|^--(utc|date=.*)$/, operand: /[^\d.]/, free: true }],
  // `test -v 'a[$(id)]'` runs id.
  [/^(test|\[)$/, { flags: /^-([a-uw-zA-QS-Z]|eq|ne|[lg][te]|[no]t|ef)$/, free: true }],
  [/^cd$/, { flags: /^-L$/, max: 1 }],
  [/^wc$/, { flags: /^-[clLmw]+$|^--(lines|words|bytes|chars)$/ }],
  [/^(diff|du)$/, { flags: DIFF }],
  [/^file$/, { flags: /^-[bhikLNprs0]+$|^--(brief|mime|mime-type|mime-encoding)$/ }],
  // The second operand of uniq is what it writes.
  [/^uniq$/, { flags: /^-[cdDiuz]+$|^-[fsw]\d+$|^--(count|repeated|unique)$/, max: 1 }],
  [/^sort$/, { flags: SORT }],
  [/^tree$/, { flags: TREE }],
  [/^[ef]?grep$/, { flags: GREP, first: /./ }],
  [/^rg$/, { flags: RG, first: /(?:)/ }],
  [/^find$/, { flags: FIND }],
  [/^jq$/, { flags: JQ, first: /./, operand: /^(?!.*\b(import|include)\b)/s }],
  [/^sed$/, { flags: /^-[nEru]+$/, first: /^((\d+|\$)(,\+?(\d+|\$))?p;?\s*)+$/ }],
  [/^git (status|rev-parse|merge-base|cat-file|ls-tree|show-ref|describe)$/, { flags: GIT_INFO }],
  [/^git (log|diff|show|shortlog|rev-list|stash show|diff-tree)$/, { flags: GIT_SHOW }],
  [/^git (branch|tag|remote|stash list|reflog)$/, { flags: GIT_LIST, max: 0 }],
  [/^git (tag -l|tag --list|branch --list|remote get-url)$/, { flags: GIT_LIST, free: true }],
  [/^git ls-files$/, { flags: GIT_FILES }],
  [/^git blame$/, { flags: GIT_BLAME }],
  [/^git grep$/, { flags: GREP, first: /./ }],
  [/^git config (--(global|local) )?(--get|--get-all|--list|-l)$/, { flags: /^$/, free: true }],
  // Not cargo, rustc, yarn or pnpm: they run a version of themselves that the folder names.
  [/^(git|node|npm|bun|deno|python3?|pip3?|ruby|go|gcc|clang) (--version|--help)$/, { max: 0 }],
  [/^(make|cmake|java|javac|tsc|docker|gh|rg|jq) --version$/, { max: 0 }],
  [/^((node|npm) -v|go version)$/, { max: 0, flags: /^$/ }],
];

/**
 * A program whose operands are files it writes. `flags` are those with which it does nothing else.
 * `into`: the last operand is where the others go.
 */
type Writer = { flags?: RegExp; into?: "copies" | "moves"; removes?: true };

const COPY = /^-[rRapvnfiuTPd]+$|^--(recursive|archive|verbose|no-clobber|force|parents)$/;

const writers: readonly (readonly [names: RegExp, writer: Writer])[] = [
  [/^(mkdir|touch|tee) /, { flags: /^-[pvacmi]+$|^--(parents|verbose|append)$/ }],
  [/^cp /, { flags: COPY, into: "copies" }],
  [/^mv /, { flags: /^-[fnviuT]+$|^--(verbose|no-clobber|force)$/, into: "moves" }],
  [/^(install|rsync|scp) /, { flags: /^-[rRapvDmz]+$/, into: "copies" }],
  [/^ln /, { flags: /^-[sfnrvT]+$/, into: "moves" }],
  [/^rm (.* )?(-\w*[rR]|--r)/s, { removes: true }],
  [/^(rm|rmdir|unlink|shred|truncate|chmod|chown|chgrp|chattr|dd|split) /, {}],
  [/^(sed|perl|ruby) (.* )?(-\w*i|--in-p)/s, {}],
];

/** The writers that the mode `edit` runs by itself. */
const MOVES = /^(mkdir|touch|tee|cp|mv)$/;

/** The beginning of a line whose rest is run as it is; with the space before that rest. */
const PLAIN_WRAPPER =
  /^(timeout( -v| --foreground| --preserve-status| -[ks] ?[\w.]+| --(signal|kill-after)=[\w.]+)* [\d.]+[smhd]?|nice( -n ?-?\d+| -\d+)?|stdbuf( -[ioe] ?\w+)+|nohup|time( -p)?|command|builtin|noglob) (?=[^-\s])/;

/** What runs some of its line; rules of `deny` and `ask` look past it. */
const WRAPPER =
  /^(timeout|time|nice|nohup|stdbuf|command|builtin|noglob|env|sudo|doas|su|xargs|parallel|setsid|ionice|chrt|watch|flock|exec|chroot|unshare|nsenter|busybox|strace|ltrace|script|caffeinate|npx|bunx) /;

/** Variables that change only how things look. */
export const ASSIGNABLE =
  /^(LANG|LC_\w+|TZ|NO_COLOR|FORCE_COLOR|CI|NODE_ENV)=(?!.*\.\.)[\w./:@+-]*$/;

// ── Commands within commands ────────────────────────────────────────────────────────────────────

/** What a command runs in turn: texts for a shell, or words. `only`: it does nothing else. */
export type Within = { script?: string; commands: Arg[][]; only: boolean };

export function withinOf(args: Arg[], text: string, plain: string): Within | null {
  const script = args.every(({ sure }) => sure) ? scriptOf(args, plain) : null;
  if (script !== null) return { script, commands: [], only: /^(ba|da)?sh -c /.test(text) };
  const skipped = PLAIN_WRAPPER.exec(text)?.[0].trim().split(" ").length;
  if (skipped) return { commands: [args.slice(skipped)], only: true };
  const commands = /^command -[vV] /.test(plain) ? [] : wrapped(args, plain);
  return commands.length > 0 ? { commands, only: false } : null;
}

function scriptOf(args: Arg[], plain: string): string | null {
  if (/^(eval|trap) /.test(plain)) return plain.slice(plain.indexOf(" "));
  const split = plain.startsWith("env ") ? splitStringOf(args.slice(1)) : null;
  if (split !== null) return split;
  const at = args.findIndex(({ value }) => /^-\w*c$/.test(value));
  return at > 0 && /^(ba|da|z|k|a)?sh /.test(plain) ? (args[at + 1]?.value ?? "") : null;
}

/** The line that `env -S` takes apart: its value, and the words after it. */
function splitStringOf(words: Arg[]): string | null {
  const values = words.map(({ value }) => value);
  const at = values.findIndex((value) => /^(-\w*S|--split-string)/.test(value));
  const isOption = (value: string, index: number) =>
    /^-|=/.test(value) || /^-[uC]$/.test(values[index - 1] ?? "");
  if (at < 0 || !values.slice(0, at).every(isOption)) return null;
  return [values[at]?.replace(/^(-\w*S|--split-string)=?/, ""), ...values.slice(at + 1)].join(" ");
}

/** What `sudo`, `xargs` or `find -exec` may run: each likely reading of their arguments. */
function wrapped(args: Arg[], plain: string): Arg[][] {
  const found: Arg[][] = [];
  const start = plain.startsWith("find ")
    ? args.findIndex(({ value }) => /^-(exec|ok)(dir)?$/.test(value))
    : Number(WRAPPER.test(plain)) - 1;
  if (start < 0) return found;
  for (let i = start + 1; i < args.length && found.length < 3; i++) {
    const { value = "" } = args[i] ?? {};
    if (value.startsWith("-")) continue;
    found.push(args.slice(i));
    // The word after a flag may be its value; a number, an assignment or a path an operand.
    const maybeValue = i > start + 1 && args[i - 1]?.value.startsWith("-");
    if (!maybeValue && !/[=/]|^[\d.]+[smhd]?$/.test(value)) break;
  }
  return found;
}

// ── Files ───────────────────────────────────────────────────────────────────────────────────────

/** `value` as a path from `cwd`; with `glob`, whatever that pattern may match. */
export function touchAt(access: Touch["access"], value: string, cwd: string, glob: boolean): Touch {
  const path = value.startsWith("/") ? value : `${cwd}/${value}`;
  const at = glob ? path.search(/[*?[{(!]/) : -1;
  if (at < 0) return { access, path, base: path };
  const base = path.slice(0, path.lastIndexOf("/", at)) || "/";
  // What a wildcard matched may be a link, and `..` then leads anywhere.
  return { access, path: path.slice(base.length).includes("..") ? null : path, base };
}

const DEVICES = /^\/dev\/(null|stdin|stdout|stderr|fd\/\d)$/;

/** What `access` to these words touches, from each folder the shell may be in. */
export const touching = (access: Touch["access"], args: Arg[], here: Here): Touch[] =>
  args.flatMap(({ value, sure, glob }) => {
    if (sure && DEVICES.test(value)) return [];
    const unknown: Touch = { access, path: null, base: "/" };
    // `rm -rf "$X/"*`: X may be anything, but it may also be unset.
    if (!sure && (access !== "remove" || value === "")) return [unknown];
    if (value.startsWith("/")) return [touchAt(access, value, "/", glob)];
    return here.cwds?.map((cwd) => touchAt(access, value, cwd, glob)) ?? [unknown];
  });

/** What a command without redirections, wrappers or scripts does, by the tables. */
export function effectsOf(args: Arg[], plain: string, here: Here): Effects {
  // Any other folder's .git/config may name a program that git runs.
  const settled = !plain.startsWith("git ") || here.cwds?.join() === here.start;
  return (
    (settled && reading(args, here)) ||
    writing(args, plain, here) || { known: false, touches: mentioning(args.slice(1), here) }
  );
}

const isFlag = ({ value }: Arg) => /^-./.test(value);

/** Operands have no dash, or come after `--`. */
function split(args: Arg[]): { operands: Arg[]; flags: Arg[] } {
  const at = args.findIndex(({ value }) => value === "--");
  const before = at < 0 ? args : args.slice(0, at);
  const after = at < 0 ? [] : args.slice(at + 1);
  const operands = [...before.filter((arg) => !isFlag(arg)), ...after];
  return { operands, flags: before.filter(isFlag) };
}

/** What a reader touches; null where one of the words is not on its list. */
function reading(args: Arg[], here: Here): Effects | null {
  for (let count = Math.min(args.length, 5); count > 0; count--) {
    const words = args.slice(0, count);
    const name = words
      .map(({ value }) => value)
      .join(" ")
      .replace(/^git --no-pager /, "git ");
    const reader = readers.find(([names]) => names.test(name))?.[1];
    const certain = words.every(({ sure, value }) => sure && !value.includes(" "));
    if (reader) return certain ? applying(reader, args.slice(count), here) : null;
  }
  return null;
}

function applying(reader: Reader, args: Arg[], here: Here): Effects | null {
  const { flags: listed, operand = /(?:)/, first, max = Infinity } = reader;
  const { operands, flags } = split(args);
  if (!reader.dynamic && args.some(({ sure }) => !sure)) return null;
  if (!operands.every(({ value }) => operand.test(value)) || operands.length > max) return null;
  if (first && !first.test(operands[0]?.value ?? "")) return null;
  // A name that begins with a wildcard may turn out to be a flag: `sort *`.
  if (listed && operands.some(({ glob, value }) => glob && /^[*?[]/.test(value))) return null;
  if (listed && !flags.every(({ value }) => listed.test(value))) return null;
  if (reader.free) {
    const patterns = operands.filter(({ glob }) => glob);
    return { known: true, touches: touching("read", patterns, here) };
  }
  const isPattern = first && !flags.some(({ value }) => /^-\w*e$|^--files$/.test(value));
  const dot: Arg = { raw: ".", value: ".", sure: true, glob: false };
  return {
    known: true,
    touches: touching("read", [...operands.slice(isPattern ? 1 : 0), dot], here),
  };
}

/** What a program touches whose operands are files it writes; null for any other. */
function writing(args: Arg[], plain: string, here: Here): Effects | null {
  const writer = writers.find(([names]) => names.test(plain))?.[1];
  if (!writer) return null;
  const { operands: files, flags } = split(args.slice(1));
  const operands = files.map((arg) => ({ ...arg, value: arg.value.replace(/^[io]f=/, "") }));
  const listed = flags.every(({ value }) => writer.flags?.test(value));
  const certain = operands.length > 0 && operands.every(({ sure, glob }) => sure && !glob);
  const known = MOVES.test(args[0]?.raw ?? "") && listed && certain;
  const target = operands.at(-1);
  if (writer.into && listed && target)
    return { known, touches: placing(writer.into, operands.slice(0, -1), target, here) };
  const access = writer.removes ? "remove" : "write";
  return { known, touches: [...touching(access, operands, here), ...mentioning(flags, here)] };
}

/** Into a folder, files go under their own names; and what stands there may be a link. */
function placing(into: "copies" | "moves", sources: Arg[], target: Arg, here: Here): Touch[] {
  const placed = sources.map((arg) => ({
    ...arg,
    value: `${target.value}/${posix.basename(arg.value)}`,
    sure: arg.sure && target.sure,
  }));
  const taken = touching(into === "copies" ? "read" : "write", sources, here);
  return [...taken, ...touching("write", [target, ...placed], here)];
}

/** Whatever may be a file among the words of a program of which nothing is known. */
function mentioning(args: Arg[], here: Here): Touch[] {
  return args.flatMap((arg, i) => {
    const value = arg.value.replace(/^-[^=]*=?/, "").replace(/^@/, "");
    if (!arg.sure || value === "" || value.length > 4096 || /\s/.test(value)) return [];
    const output = /^(-o|-O|--output(-document)?)$/.test(args[i - 1]?.value ?? "");
    return touching(output ? "write" : "mention", [{ ...arg, value }], here);
  });
}
