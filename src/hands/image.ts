/**
 * The image that containers start from: there already, pulled where its name says from where, or
 * built from container/Containerfile, which this executable carries.
 *
 * Invariant: nothing is fetched but what a person named or the Containerfile pins; nobody waits for
 * the same image twice. Without it nothing starts, and the cause is told with the way out.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import containerfile from "../../container/Containerfile" with { type: "text" };
import { UsageError } from "../errors.ts";
import { type Runtime, tell } from "./runtime.ts";

/** Another Containerfile is another image. */
export const defaultImage = `claw-hands:${new Bun.CryptoHasher("sha256")
  .update(containerfile)
  .digest("hex")
  .slice(0, 12)}`;

export type ImageOptions = {
  log?: (event: string, facts?: Record<string, string | number | boolean | null>) => void;
  /** Lines of a pull or a build, as they come. */
  onProgress?: (line: string) => void;
  /** Ends the wait, not the work, which others may wait for. */
  signal?: AbortSignal;
};

type Work = { done: Promise<void>; listeners: Set<(line: string) => void> };
type Asked = Pick<Runtime, "name" | "hasImage" | "pull" | "build">;

/** What is being made ready now, by runtime and image. */
const works = new Map<string, Work>();

/** Resolves when the image is there; a UsageError says why it cannot be. */
export async function ensureImage(
  runtime: Asked,
  image: string,
  { log = () => {}, onProgress, signal }: ImageOptions = {},
): Promise<void> {
  signal?.throwIfAborted();
  const key = `${runtime.name} ${image}`;
  const work = works.get(key) ?? startWork(key, runtime, image, log);
  if (onProgress) work.listeners.add(onProgress);
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(signal?.reason);
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    await Promise.race([work.done, aborted.promise]);
  } finally {
    signal?.removeEventListener("abort", onAbort);
    if (onProgress) work.listeners.delete(onProgress);
  }
}

function startWork(
  key: string,
  runtime: Asked,
  image: string,
  log: NonNullable<ImageOptions["log"]>,
): Work {
  const listeners: Work["listeners"] = new Set();
  const onLine = (line: string) => listeners.forEach((listener) => listener(line.slice(0, 300)));
  const done = makeReady(runtime, image, log, onLine).finally(() => works.delete(key));
  done.catch(() => undefined); // those who still wait are told
  const work = { done, listeners };
  works.set(key, work);
  return work;
}

async function makeReady(
  runtime: Asked,
  image: string,
  log: NonNullable<ImageOptions["log"]>,
  onLine: (line: string) => void,
): Promise<void> {
  if ((await tell(runtime.hasImage(image))).code === 0) return;
  const isOurs = image === defaultImage;
  if (!isOurs && !hasRegistry(image))
    throw new UsageError(
      `${runtime.name} has no image "${image}", and the name says no registry to pull it from: ` +
        `make it with \`container/make-image ${image}\`, or set CLAW_IMAGE to another.`,
    );
  const startedAt = performance.now();
  log(isOurs ? "image build started" : "image pull started", { image, runtime: runtime.name });
  onLine(`${isOurs ? "Building" : "Pulling"} the image ${image}, once.`);
  await (isOurs ? build(runtime, image, onLine) : pull(runtime, image, onLine));
  log("image ready", { image, seconds: Math.round((performance.now() - startedAt) / 1000) });
}

/** "host.example/name", "host:5000/name": a name without one would be looked for anywhere. */
const hasRegistry = (image: string): boolean => /^(localhost|[^/]*[.:][^/]*)\//.test(image);

const WORK_MS = 1_800_000;

async function pull(runtime: Asked, image: string, onLine: (line: string) => void): Promise<void> {
  const told = await tell(runtime.pull(image), { timeoutMs: WORK_MS, isOnline: true, onLine });
  if (told.code === 0) return;
  throw new UsageError(
    `${runtime.name} could not pull the image "${image}" (${causeOf(told)}): correct CLAW_IMAGE, ` +
      "or leave it out to build claw's own.",
  );
}

async function build(runtime: Asked, image: string, onLine: (line: string) => void): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "claw-image-"));
  try {
    await Bun.write(join(folder, "Containerfile"), containerfile);
    const argv = runtime.build(image, folder);
    const told = await tell(argv, { timeoutMs: WORK_MS, isOnline: true, onLine });
    if (told.code === 0) return;
    throw new UsageError(
      `${runtime.name} could not build claw's image (${causeOf(told)}). Make it from Debian's ` +
        `packages with \`container/make-image ${image}\` (\`claw fork DIR\` writes that file), or ` +
        "set CLAW_IMAGE to an image with git, python3, ripgrep and curl in it.",
    );
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** The last line that says what went wrong. */
function causeOf({ stdout, stderr }: { stdout: string; stderr: string }): string {
  const lines = `${stdout}\n${stderr}`.split("\n").filter((line) => line.trim() !== "");
  const cause = lines.findLast((line) => /error|fail|denied|not found|no such|cannot/i.test(line));
  return (cause ?? lines.at(-1) ?? "it did not say why").trim().slice(0, 300);
}
