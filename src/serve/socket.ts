/**
 * The daemon's socket: HTTP on `$CLAW_HOME/claw.sock`, for `claw status` and for commands that change
 * what the daemon holds in memory. No port is ever opened.
 *
 * Invariant: nobody but this user can connect, at no moment: the file is made with mode 0600, in a
 * folder of mode 0700. It tells states and takes hints; it commands nothing and holds no secret.
 */
import { lstatSync, rmSync } from "node:fs";
import { join } from "node:path";
import { messageOf, UsageError } from "../errors.ts";
import type { Status } from "./status.ts";

export type SocketOptions = {
  path: string;
  status: () => Status;
  /** Another process changed schedules, people or settings in the store. */
  changed: () => void;
};

/** Where the daemon of a home listens. */
export const socketPath = (clawHome: string): string => join(clawHome, "claw.sock");

/**
 * Listens. Only for the one daemon of a home, once it knows that it is: a socket that is there
 * already is a dead one's, and removed.
 */
export function openSocket({ path, status, changed }: SocketOptions): { stop(): void } {
  removeStale(path);
  const umask = process.umask(0o177);
  try {
    const server = Bun.serve({
      unix: path,
      routes: {
        "/status": { GET: () => Response.json(status()) },
        "/changed": {
          POST: () => {
            changed();
            return new Response(null, { status: 204 });
          },
        },
      },
      fetch: () => new Response("There is GET /status and POST /changed.\n", { status: 404 }),
      error: (error) => new Response(`${messageOf(error)}\n`, { status: 500 }),
    });
    return {
      stop() {
        void server.stop(true);
        rmSync(path, { force: true });
      },
    };
  } catch (error) {
    throw new UsageError(`The daemon cannot listen on ${path}: ${messageOf(error)}.`);
  } finally {
    process.umask(umask);
  }
}

function removeStale(path: string): void {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (!found) return;
  if (!found.isSocket())
    throw new UsageError(`${path} is in the way: it is no socket. Move it away.`);
  rmSync(path, { force: true });
}

/**
 * Asks the daemon of a home; what it answers, as JSON (true where there is nothing to say), or null
 * where no daemon serves. Throws for one that does not answer, or answers with a failure.
 */
export async function askDaemon(
  clawHome: string,
  path: "/status" | "/changed",
  method: "GET" | "POST",
): Promise<unknown> {
  try {
    const response = await fetch(`http://claw${path}`, {
      unix: socketPath(clawHome),
      method,
      signal: AbortSignal.timeout(ANSWER_MS),
    });
    if (!response.ok) throw new Error((await response.text()).trim());
    return response.status === 204 ? true : await response.json();
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "";
    if (["ENOENT", "ECONNREFUSED", "ENOTDIR"].includes(code)) return null;
    throw new Error(`The daemon of ${clawHome} does not answer as it should: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

const ANSWER_MS = 5_000;
