/**
 * `claw hands BOX`: the worker inside a sandbox. Takes the orders that the host puts into its box
 * (wire.ts), runs each once, and leaves the answers there, whether or not the host still lives.
 *
 * Invariant: no permission is asked here, for the host did, and there is no key to lose. An order is
 * never run twice. A call is announced (KEY.text) before it runs, so that the host of tomorrow knows
 * what was begun. A worker whose host is gone finishes its calls, and then leaves.
 */
import {
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  watch,
  writeFileSync,
} from "node:fs";
import { closeSync, utimesSync, writeSync } from "node:fs";
import { join } from "node:path";
import { messageOf, UsageError } from "../errors.ts";
import { type Mcp, openMcp } from "../tools/mcp.ts";
import { isMcpTool } from "../tools/mcp-words.ts";
import { scrubEnv } from "../tools/shell.ts";
import type { Hands } from "../types.ts";
import { BRIDGE_PORT, openBridge } from "./bridge.ts";
import { openLocalHands } from "./hands.ts";
import { isKey, LEASE_MS, type Order, parseOpening, parseOrder, PRINTED_BYTES } from "./wire.ts";
import { PULSE_MS, putMessage, type Reply } from "./wire.ts";

/** Where watching does not serve, a worker that has long had nothing to do looks this often. */
const LOOK_MS = 500;

/** After so many leases that were not renewed, there is no host. */
const LEASES_MISSED = 4;

/** Resolves with the exit code 0 when its box is gone, or no host has shown itself for two minutes. */
export async function runHands([folder, ...rest]: string[]): Promise<number> {
  if (!folder?.startsWith("/") || rest.length > 0 || !existsSync(join(folder, "in/open.json")))
    throw new UsageError("`claw hands` is started by claw itself, in a sandbox.");
  const opening = parseOpening(readFileSync(join(folder, "in/open.json"), "utf8"));
  if (opening.hasWayOut) openBridge(join(folder, "net/proxy.sock"), BRIDGE_PORT);
  const hands = openLocalHands({ roots: opening.roots, adds: opening.env });
  const env = { ...scrubEnv(process.env), ...opening.env };
  const mcp = openMcp(opening.servers, { cwd: opening.roots[0] ?? "/", env });
  const desk = openDesk(folder, hands, mcp);
  const { promise: isGone, resolve: leave } = Promise.withResolvers<void>();
  const look = () => {
    const names = readdirSync(join(folder, "in"));
    if (!names.includes("open.json")) return leave();
    for (const name of names) desk.take(name);
    setTimeout(look, Math.max(opening.pollMs, Math.min(desk.quietMs() / 20, LOOK_MS)));
  };
  watch(join(folder, "in"), (_, name) => name !== null && desk.take(name));
  look();
  writeFileSync(join(folder, "out/ready"), "");
  await Promise.race([isGone, hostIsGone(join(folder, "in/lease"), desk.isBusy)]);
  await Promise.all([hands.close(), mcp.close()]);
  return 0;
}

/** Counts its own ticks and compares no clocks: a machine that slept has only just woken up. */
async function hostIsGone(lease: string, isBusy: () => boolean): Promise<void> {
  let [seen, missed] = [0, 0];
  while (missed < LEASES_MISSED || isBusy()) {
    await Bun.sleep(LEASE_MS);
    const at = statSync(lease, { throwIfNoEntry: false })?.mtimeMs ?? 0;
    missed = at === seen ? missed + 1 : 0;
    seen = at;
  }
}

/** What lies in `in` and what became of it. */
function openDesk(folder: string, hands: Hands, mcp: Mcp) {
  const running = new Map<string, AbortController>();
  const taken = new Set<string>();
  let takenAt = performance.now();
  const out = (name: string) => join(folder, "out", name);
  let pulse: Timer | undefined;

  const begin = async (key: string): Promise<Reply> => {
    const order = parseOrder(readFileSync(join(folder, "in", `${key}.json`), "utf8"));
    if (order.type === "preview")
      return { type: "preview", patch: await hands.preview(order.call) };
    const controller = new AbortController();
    running.set(key, controller);
    if (existsSync(join(folder, "in", `${key}.stop`))) controller.abort();
    if (order.type === "list") return listTools(order, mcp, controller.signal);
    const run: Hands["run"] = (...ask) =>
      isMcpTool(order.call.name) ? mcp.call(ask[0], ask[1]) : hands.run(...ask);
    return runOrder(order, run, controller.signal, out(`${key}.text`));
  };
  const answer = async (key: string): Promise<void> => {
    pulse ??= setInterval(() => touch(out("pulse")), PULSE_MS);
    try {
      putMessage(out(`${key}.json`), await begin(key));
    } finally {
      running.delete(key);
      if (running.size === 0) clearInterval(pulse);
      if (running.size === 0) pulse = undefined;
    }
  };
  return {
    isBusy: () => running.size > 0,
    /** Since the last order was taken; none while one runs. */
    quietMs: () => (running.size > 0 ? 0 : performance.now() - takenAt),
    /** A file's name in `in`; those that are known or mean nothing are passed over. */
    take(name: string): void {
      const [key = "", kind] = name.split(".");
      if (!isKey(key)) return;
      if (kind === "stop") running.get(key)?.abort();
      if (kind !== "json" || taken.has(key)) return;
      taken.add(key);
      takenAt = performance.now();
      // Of a worker that was started anew, or an order that its host has taken back.
      if (existsSync(out(`${key}.json`)) || !existsSync(join(folder, "in", name))) return;
      void answer(key);
    },
  };
}

async function runOrder(
  { call }: Order,
  run: Hands["run"],
  signal: AbortSignal,
  printedPath: string,
): Promise<Reply> {
  const file = openSync(printedPath, "w");
  let left = PRINTED_BYTES;
  const print = (bytes: Uint8Array) => {
    if (left > 0) left -= writeSync(file, bytes.subarray(0, left));
  };
  try {
    return { type: "output", output: await run(call, signal, print) };
  } catch (error) {
    if (signal.aborted) return { type: "aborted" }; // the one reason for which hands reject
    throw error;
  } finally {
    left = 0; // what it left in the background may print on
    closeSync(file);
  }
}

async function listTools({ call }: Order, mcp: Mcp, signal: AbortSignal): Promise<Reply> {
  try {
    return { type: "specs", specs: await mcp.list(call.name, signal) };
  } catch (error) {
    return signal.aborted ? { type: "aborted" } : { type: "fault", why: messageOf(error) };
  }
}

function touch(path: string): void {
  const now = new Date();
  try {
    utimesSync(path, now, now);
  } catch {
    writeFileSync(path, ""); // the first time
  }
}
