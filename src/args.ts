/**
 * argv as data: one pass from left to right, no value is ever read twice, nothing after `--` is a
 * flag. Knows the flags of `chat` and `-p`, and those of Claude Code that mean nothing here; other
 * commands bring their own.
 */
import { UsageError } from "./errors.ts";

/** `none`: a switch. `one`: a value. `optional`: a value if one follows. `many`: all that follow. */
type Arity = "none" | "one" | "optional" | "many";

/** The flags of a command other than chat; `command` is what \`claw help\` knows it by. */
export type Flags = { command: string; flags: Record<string, Arity> };

const chatFlags: Record<string, Arity> = {
  "--print": "none",
  "--model": "one",
  "--fallback-model": "one",
  "--permission-mode": "one",
  "--allowedTools": "many",
  "--disallowedTools": "many",
  "--dangerously-skip-permissions": "none",
  "--continue": "none",
  "--resume": "optional",
  "--fork-session": "none",
  "--session-id": "one",
  "--output-format": "one",
  "--input-format": "one",
  "--include-partial-messages": "none",
  "--max-turns": "one",
  "--max-budget-usd": "one",
  "--system-prompt": "one",
  "--append-system-prompt": "one",
  "--add-dir": "many",
  "--mcp-config": "many",
  "--json-schema": "one",
  "--sandbox": "one",
  "--verbose": "none",
  "--no-markdown": "none",
  "--permission-prompt-tool": "one",
  "--record": "one",
};

const chat: Flags = { command: "chat", flags: chatFlags };

const aliases: Record<string, string> = {
  "-p": "--print",
  "-c": "--continue",
  "-r": "--resume",
  "--allowed-tools": "--allowedTools",
  "--disallowed-tools": "--disallowedTools",
};

/** Claude Code's flags that scripts bring along and that change nothing here. */
const foreignFlags: Record<string, Arity> = {
  "--agents": "one",
  "--allow-dangerously-skip-permissions": "none",
  "--bare": "none",
  "--betas": "many",
  "--chrome": "none",
  "--debug": "optional",
  "--debug-file": "one",
  "--debug-to-stderr": "none",
  "--disable-slash-commands": "none",
  "--effort": "one",
  "--exclude-dynamic-system-prompt-sections": "none",
  "--ide": "none",
  "--include-hook-events": "none",
  "--max-thinking-tokens": "one",
  "--mcp-debug": "none",
  "--no-chrome": "none",
  "--no-session-persistence": "none",
  "--plugin-dir": "many",
  "--replay-user-messages": "none",
  "--setting-sources": "one",
  "--settings": "one",
  "--strict-mcp-config": "none",
  "--thinking": "one",
  "--thinking-display": "one",
  "--tools": "many",
  "-d": "optional",
};

export type Args = {
  /** Flags by their long name; a switch has no values. */
  flags: Map<string, string[]>;
  /** What is no flag, in order. */
  words: string[];
  /** The flags that were accepted and mean nothing here. */
  ignored: string[];
};

/** Throws UsageError for an unknown flag, a missing value, or a value that a switch cannot take. */
export function parseArgs(argv: readonly string[], known: Flags = chat): Args {
  const args: Args = { flags: new Map(), words: [], ignored: [] };
  for (let index = 0; index < argv.length; index++) {
    const arg = argv[index] ?? "";
    if (arg === "--") {
      args.words.push(...argv.slice(index + 1));
      break;
    }
    if (!arg.startsWith("-") || arg === "-") args.words.push(arg);
    else index += takeFlag(args, arg, argv.slice(index + 1), known);
  }
  return args;
}

/** Adds one flag with its values; returns how many of `rest` it took. */
function takeFlag(args: Args, arg: string, rest: readonly string[], known: Flags): number {
  const equals = arg.startsWith("--") ? arg.indexOf("=") : -1;
  const written = equals < 0 ? arg : arg.slice(0, equals);
  const name = aliases[written] ?? written;
  const arity = known.flags[name] ?? (known === chat ? foreignFlags[name] : undefined);
  if (arity === undefined) throw unknownFlag(written, known);
  if (!(name in known.flags)) args.ignored.push(name);

  const given = equals < 0 ? takeValues(arity, rest) : [arg.slice(equals + 1)];
  if (arity === "none" && equals >= 0)
    throw new UsageError(
      `${name} is a switch and takes no value; leave out "${arg.slice(equals)}".`,
    );
  if ((arity === "one" || arity === "many") && given.length === 0)
    throw new UsageError(`${name} needs a value. \`claw help ${known.command}\` lists the flags.`);
  args.flags.set(name, [...(args.flags.get(name) ?? []), ...given]);
  return equals < 0 ? given.length : 0;
}

function takeValues(arity: Arity, rest: readonly string[]): string[] {
  const isValue = (value: string | undefined) => value !== undefined && !/^-./.test(value);
  switch (arity) {
    case "none":
      return [];
    case "one": // also one that begins with "-": a prompt or a rule may
      return rest[0] === undefined ? [] : [rest[0]];
    case "optional":
      return isValue(rest[0]) ? rest.slice(0, 1) : [];
    case "many": {
      const end = rest.findIndex((value) => !isValue(value));
      return rest.slice(0, end < 0 ? undefined : end);
    }
  }
}

function unknownFlag(flag: string, known: Flags): UsageError {
  const near = nearest(flag, [...Object.keys(known.flags), ...Object.keys(aliases)]);
  const hint = near ? ` Did you mean ${near}?` : "";
  const rest =
    known === chat
      ? 'A prompt that begins with "-" goes after "--".'
      : `\`claw help ${known.command}\` lists them.`;
  return new UsageError(`There is no flag ${flag}.${hint} ${rest}`);
}

/** The candidate most like `word`, or null when none is near. */
export function nearest(word: string, candidates: readonly string[]): string | null {
  const ranked = candidates
    .map((candidate) => ({ candidate, distance: editDistance(word, candidate) }))
    .toSorted((a, b) => a.distance - b.distance);
  const best = ranked[0];
  return best && best.distance <= Math.max(1, word.length / 3) ? best.candidate : null;
}

/** Levenshtein's distance. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next.push(
        Math.min(
          (row[j] ?? 0) + 1,
          (next[j - 1] ?? 0) + 1,
          (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1),
        ),
      );
    row = next;
  }
  return row[b.length] ?? 0;
}

// ── Values ──────────────────────────────────────────────────────────────────────────────────────

export const valueOf = (args: Args, name: string): string | undefined =>
  args.flags.get(name)?.at(-1);

export function oneOf<Choice extends string>(
  args: Args,
  name: string,
  choices: readonly [Choice, ...Choice[]],
): Choice {
  const value = valueOf(args, name) ?? choices[0];
  const choice = choices.find((candidate) => candidate === value);
  if (choice !== undefined) return choice;
  throw new UsageError(`${name} is "${value}"; it has to be one of ${choices.join(", ")}.`);
}

export function positiveNumber(args: Args, name: string, whole: boolean): number | undefined {
  const value = valueOf(args, name);
  if (value === undefined) return undefined;
  const number = Number(value);
  if (value.trim() !== "" && Number.isFinite(number) && number > 0 && (!whole || number % 1 === 0))
    return number;
  throw new UsageError(
    `${name} is "${value}"; it has to be a ${whole ? "whole number" : "number"} above 0.`,
  );
}
