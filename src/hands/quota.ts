/**
 * How much a sandbox's folder holds, looked at while a call runs in it: no file system that a folder
 * is mounted from keeps a quota for it. Looking costs at most a twentieth of the time.
 */
import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";

const FIRST_MS = 3_000;

/** Calls `onExcess`, with why, when the folder holds more than `maxBytes` and still grows. */
export function watchSize(folder: string, maxBytes: number, onExcess: (why: string) => void) {
  let [isStopped, first] = [false, -1];
  const again = (ms: number) => setTimeout(() => void look(), ms).unref();
  let timer = again(FIRST_MS);
  async function look(): Promise<void> {
    const startedAt = performance.now();
    const bytes = await bytesIn(folder, () => isStopped);
    if (first < 0) first = bytes;
    if (bytes > maxBytes && bytes > first && !isStopped)
      onExcess(`its folder held more than ${maxBytes / 1e6} MB`);
    const next = Math.max(FIRST_MS, 20 * (performance.now() - startedAt));
    if (!isStopped) timer = again(next);
  }
  return {
    stop(): void {
      isStopped = true;
      clearTimeout(timer);
    },
  };
}

/** What lies in a folder, in bytes on the disk. What goes away meanwhile counts nothing. */
async function bytesIn(folder: string, isStopped: () => boolean): Promise<number> {
  let bytes = 0;
  const open = [folder];
  for (let path = open.pop(); path !== undefined && !isStopped(); path = open.pop())
    for (const entry of await readdir(path, { withFileTypes: true }).catch(() => [])) {
      const inner = join(path, entry.name);
      if (entry.isDirectory()) open.push(inner);
      else bytes += 512 * ((await lstat(inner).catch(() => null))?.blocks ?? 0);
    }
  return bytes;
}
