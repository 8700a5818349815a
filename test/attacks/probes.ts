/** What rows share: looking for canaries, and calls by python, which no rule reads. */
import { expect } from "bun:test";
import { bash, canaries, type Call } from "./stage.ts";

const secrets = Object.values(canaries);
export const expectNoCanary = (text: string): void =>
  expect(secrets.filter((secret) => text.includes(secret))).toEqual([]);
export const clean = (seen: string[]): void => expectNoCanary(seen.join("\n"));

export const python = (body: string): Call => bash(`python3 - <<'EOF'\n${body}\nEOF`);

/** What python's os and socket calls come to, one a line: `name: ok` or `name: errno`. */
export const attempts = (lines: [name: string, body: string][]): Call =>
  python(`
import os, socket, struct, fcntl, ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
  if libc.syscall(*args) < 0: raise OSError(ctypes.get_errno(), "")
def attempt(name, do):
  child = os.fork()
  if child == 0:
    try: do(); print(name + ": ok", flush=True)
    except OSError as error: print(name + ": " + errno.errorcode.get(error.errno, str(error)), flush=True)
    os._exit(0)
  os.waitpid(child, 0)
${lines.map(([name, body]) => `attempt(${JSON.stringify(name)}, lambda: ${body})`).join("\n")}`);

/** The names of the attempts that came through. */
export const through = (seen: string): string[] =>
  seen.split("\n").flatMap((line) => /^(.*): ok$/.exec(line)?.[1] ?? []);
