/**
 * The other end of crew.ts: a thread that is given a task, and then files in batches. It is an entry
 * point of its own, which build.ts must list.
 */
import { parentPort, workerData } from "node:worker_threads";
import type { Batch } from "./crew.ts";
import { Pace } from "./pace.ts";
import { type Task, workOn } from "./task.ts";

const work = workOn(workerData as Task);
const pace = new Pace(null);

parentPort?.on("message", async ({ number, paths }: Batch) => {
  // A Buffer arrives as its bytes.
  const files = paths.map((path) => (typeof path === "string" ? path : Buffer.from(path)));
  parentPort?.postMessage({ number, share: await work(files, pace) });
});
