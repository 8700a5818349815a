/**
 * The daemon's log: one line an event on stderr, for people or as JSON.
 *
 * Invariant: a line is a line, whatever stood in a fact (a name, an error of a server), it cannot
 * drive a terminal, and no known secret is in it. Who writes an event leaves out what people and
 * models said.
 */

export type Facts = Record<string, string | number | boolean | null>;
/** `event`: a few words. What begins with "debug " is written with `verbose` only. */
export type Log = (event: string, facts?: Facts) => void;

export type LogOptions = {
  json: boolean;
  verbose: boolean;
  /** Shown as ••• wherever they occur; those under six characters would mask words. */
  secrets?: readonly string[];
  write?: (line: string) => void;
  now?: () => number;
};

export function openLog(options: LogOptions): Log {
  const { json, verbose, secrets = [], now = Date.now } = options;
  const { write = (line: string) => void process.stderr.write(`${line}\n`) } = options;
  const masked = secrets
    .filter((secret) => secret.length >= 6)
    .toSorted((one, other) => other.length - one.length); // a token that holds another goes whole
  const clean = (text: string) =>
    cut(masked.reduce((shown, secret) => shown.replaceAll(secret, "•••"), text));
  return (event, facts = {}) => {
    if (event.startsWith("debug ") && !verbose) return;
    const cleaned = Object.entries(facts).map(([name, value]): [string, Facts[string]] => [
      name,
      typeof value === "string" ? clean(value) : value,
    ]);
    write(json ? jsonLine(now(), clean(event), cleaned) : line(now(), clean(event), cleaned));
  };
}

const MAX_CHARS = 400;

const cut = (text: string): string =>
  text.length > MAX_CHARS ? `${text.slice(0, MAX_CHARS).toWellFormed()}…` : text;

type Entries = [string, Facts[string]][];

function line(at: number, event: string, facts: Entries): string {
  const time = new Date(at).toTimeString().slice(0, 8);
  const shown = facts.map(([name, value]) => ` ${name}=${readable(value)}`).join("");
  return `${time} ${quote(event).slice(1, -1)}${shown && ` ${shown}`}`;
}

function readable(value: Facts[string]): string {
  if (typeof value !== "string") return String(value);
  const quoted = quote(value);
  return /^[^\s"=\\]+$/.test(value) && quoted.length === value.length + 2 ? value : quoted;
}

/** `at` and `event` are ours: a fact of that name gives way. */
function jsonLine(at: number, event: string, facts: Entries): string {
  const own = { at: new Date(at).toISOString(), event };
  return escapeHidden(JSON.stringify({ ...own, ...Object.fromEntries(facts), ...own }));
}

const quote = (text: string): string => escapeHidden(JSON.stringify(text));

/** What JSON leaves as it is though it drives a terminal, reorders a line or hides in it. */
const escapeHidden = (json: string): string =>
  json.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (hidden) =>
    hidden
      .split("")
      .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`)
      .join(""),
  );
