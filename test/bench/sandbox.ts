/**
 * `bun test/bench/sandbox.ts [bwrap|docker|runsc …] [--warm N] [--calls N]`: what a sandbox costs.
 * N conversations, each with a warm sandbox of its own, from one process: the time to their first
 * tool result, cold and warm, what the next conversation waits for its place, idle or busy, and
 * what all of it adds to the memory of the host's process. Needs root for docker and runsc.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { findBuilder } from "../../src/hands/builder.ts";
import { openLocalHands } from "../../src/hands/hands.ts";
import { openSandboxHands } from "../../src/hands/sandbox.ts";
import { openWarm } from "../../src/hands/warm.ts";
import { installOf, type Yard } from "../../src/hands/yard.ts";
import type { Hands } from "../../src/types.ts";
import { binary, newPlace } from "../claw.ts";
import { dockerMissing, startDocker } from "../docker.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    warm: { type: "string", default: "50" },
    calls: { type: "string", default: "200" },
  },
});
const [places, calls] = [Number(values.warm), Number(values.calls)];
const kinds = positionals.length > 0 ? positionals : ["bwrap", "docker", "runsc"];
const signal = new AbortController().signal;
let lastCall = 0;

const call = (hands: Hands, command: string) =>
  hands.run(
    { type: "tool_call", id: `call_${++lastCall}`, name: "Bash", input: { command } },
    signal,
  );

async function timed(work: () => Promise<{ isError?: boolean; content: string }>): Promise<number> {
  const startedAt = performance.now();
  const { isError, content } = await work();
  if (isError) throw new Error(content);
  return performance.now() - startedAt;
}

const at = (times: number[], part: number): string =>
  (times.toSorted((a, b) => a - b)[Math.floor((times.length - 1) * part)] ?? 0).toFixed(1);
const show = (name: string, times: number[]) =>
  console.log(`  ${name.padEnd(52)} ${at(times, 0.5)} ms, p95 ${at(times, 0.95)}`);

async function measure(kind: string, image: string | null): Promise<void> {
  using place = newPlace();
  const runtime = kind === "runsc" ? kind : null;
  const wanted = kind === "bwrap" ? "bwrap" : "docker";
  const builder = await findBuilder(wanted, { runtime, image, log: () => {} });
  const yard: Yard = {
    builder: async () => builder,
    install: installOf(place.clawHome),
    boxes: join(place.clawHome, "boxes"),
    home: place.home,
    clawHome: place.clawHome,
    warm: openWarm(places),
    isGuest: false,
    binary,
    log: () => {},
  };
  const open = (name: string) => {
    const folder = join(place.clawHome, "groups", name);
    mkdirSync(folder, { recursive: true });
    return openSandboxHands(yard, { folder, name });
  };
  const all = Array.from({ length: places }, (_, index) => open(`c${index}`));
  const memory = () => (Bun.gc(true), process.memoryUsage.rss() / 1e6);

  console.log(`\n${builder.name}: ${places} conversations`);
  const before = memory();
  const cold: number[] = [];
  for (const hands of all) cold.push(await timed(() => call(hands, "true")));
  show("first tool result, its sandbox started for it", cold);
  console.log(
    `  ${"memory of the host's process, before and with all".padEnd(52)} ${before.toFixed(0)} MB, ${memory().toFixed(0)} MB`,
  );
  const warm: number[] = [];
  for (let n = 0; n < calls; n++) warm.push(await timed(() => call(all[n % places]!, "true")));
  show("Bash `true` in a warm sandbox, all in turn", warm);
  const near = openLocalHands({ roots: [place.cwd] });
  const local: number[] = [];
  for (let n = 0; n < calls; n++) local.push(await timed(() => call(near, "true")));
  show("the same in this process", local);
  const next = open("next");
  show(`the ${places + 1}st: its first result, taking an idle one's place`, [
    await timed(() => call(next, "true")),
  ]);
  const busy = all
    .slice(1)
    .concat(next)
    .map((hands) => call(hands, "sleep 3"));
  await Bun.sleep(1000); // all have begun
  const late = open("late");
  show("one more while all are busy for 2 s more", [await timed(() => call(late, "true"))]);
  await Promise.all(busy);
  await Promise.all([...all, next, late].map((hands) => hands.close()));
}

const docker =
  kinds.some((kind) => kind !== "bwrap") && !dockerMissing ? await startDocker() : null;
if (docker) process.env["DOCKER_HOST"] = docker.host;
try {
  for (const kind of kinds)
    if (kind === "bwrap" || docker) await measure(kind, docker?.image ?? null);
    else console.log(`\n${kind}: not measured, for ${dockerMissing}`);
} finally {
  await docker?.stop();
}
process.exit(0);
