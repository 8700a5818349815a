/**
 * Where the file tools touch the disk: paths, bounded reads, stamps, and saving.
 *
 * Invariant: the last part of a path is never followed once it is resolved, what opens when it is
 * touched (pipes, devices) is never opened, and a save that fails leaves the old content. Errors of
 * the system become sentences with a cure; a UsageError here is the model's mistake.
 */
import { constants, existsSync, type Stats } from "node:fs";
import { access, lstat, mkdir, open, readdir, readlink } from "node:fs/promises";
import { realpath, rename, stat, unlink, type FileHandle } from "node:fs/promises";
import { basename, dirname, join, relative, resolve } from "node:path";
import { nearest } from "../args.ts";
import { messageOf, UsageError } from "../errors.ts";
import type { FileStamp, Workbench } from "../types.ts";

/** Without waiting: a pipe that took the file's place would else hang us. */
const HELD = constants.O_NONBLOCK | constants.O_NOFOLLOW;

/** Up to here a file is read whole: its lines are counted, it has a hash, and may be changed. */
export const WHOLE_BYTES = 20_000_000;
const CHUNK_BYTES = 1 << 20;

// ── Errors ──────────────────────────────────────────────────────────────────────────────────────

/** What a model is told of `error`, or null where it is no business of the model's. */
export function complaint(error: unknown, file: string): string | null {
  if (error instanceof UsageError) return error.message;
  const code = codeOf(error);
  return code && `${file}: ${TROUBLE[code] ?? messageOf(error)}.`;
}

/** The system's name for an error, such as ENOENT; null for an error that is not the system's. */
const codeOf = (error: unknown): string | null =>
  error instanceof Error && "errno" in error && "code" in error ? String(error.code) : null;

const TROUBLE: Record<string, string> = {
  EACCES: "permission denied; `ls -ld` shows whose it is, and its mode",
  EPERM: "the system does not permit it; `ls -ld` and `lsattr -d` may show why",
  EROFS: "the file system is read-only; choose another folder",
  ENOSPC: "the disk is full; free some space, then try again",
  EDQUOT: "the disk quota is used up; free some space, then try again",
  EFBIG: "the file would be larger than the system allows; write less",
  ENAMETOOLONG: "the name is too long (255 bytes a part, 4095 in all); choose a shorter one",
  ENOTDIR: "a part of this path is a file, not a folder; look with `ls`",
  EEXIST: "a part of this path is a file, not a folder; look with `ls`",
  ELOOP: "its symbolic links lead in a circle; look with `ls -l`",
  EAGAIN: "it has nothing to give now, and might never; use Bash with `timeout`",
};

// ── Paths ───────────────────────────────────────────────────────────────────────────────────────

/** A file that may not exist yet. `path` is real; `name` is shorter, from the workspace. */
export type Place = { path: string; name: string; stats: Stats | null };

export async function locate(file: string, { roots }: Workbench): Promise<Place> {
  const root = roots[0] ?? "/";
  if (file === "" || file.includes("\0"))
    throw new UsageError(`file_path ${JSON.stringify(file)} names no file: give a path.`);
  if (/^~(\/|$)/.test(file))
    throw new UsageError(`~ is not expanded in ${file}: give the whole path, or one from ${root}.`);
  const path = await realOf(resolve(root, file));
  const inside = relative(root, path);
  const name = inside === "" || inside.split("/")[0] === ".." ? path : inside;
  return { path, name, stats: await statOf(path) };
}

/** The real path, also of what does not exist yet. */
async function realOf(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    if (codeOf(error) !== "ENOENT") throw error;
  }
  const here = join(await realOf(dirname(path)), basename(path));
  if (!(await statOf(here, lstat))) return here;
  // A write would make a file wherever the link points, which is not what was permitted.
  const target = await readlink(here);
  throw new UsageError(`${path} is a link to ${target}, which does not exist: name that instead.`);
}

async function statOf(
  path: string,
  look: (path: string) => Promise<Stats> = stat,
): Promise<Stats | null> {
  try {
    return await look(path);
  } catch (error) {
    if (codeOf(error) === "ENOENT") return null;
    throw error;
  }
}

/** The file's stats, if it is a file; throws what it is instead, and what to do with that. */
export async function existing({ path, name, stats }: Place, bench: Workbench): Promise<Stats> {
  if (!stats) throw new UsageError(await whyMissing(path, name, bench.roots[0] ?? "/"));
  if (stats.isFile()) return stats;
  if (!stats.isDirectory()) {
    const kind = stats.isFIFO() ? "named pipe" : stats.isSocket() ? "socket" : "device";
    throw new UsageError(`${name} is a ${kind}, not a file: use Bash, with \`timeout\`.`);
  }
  const entries = await readdir(path, { withFileTypes: true });
  const names = entries.map((entry) => entry.name + (entry.isDirectory() ? "/" : "")).toSorted();
  const more = names.length > 20 ? `, and ${names.length - 20} more` : "";
  const list = names.slice(0, 20).join(", ") || "nothing";
  throw new UsageError(`${name} is a folder: list it with Glob or \`ls\`. In it: ${list}${more}.`);
}

async function whyMissing(path: string, name: string, root: string): Promise<string> {
  const meant = join(root, path); // "/src/x" is often meant from the workspace.
  if (existsSync(meant)) return `${name} does not exist. Did you mean ${meant}?`;
  let [folder, part] = [dirname(path), basename(path)];
  while (!existsSync(folder)) [folder, part] = [dirname(folder), basename(folder)];
  // To compare takes time, and a folder may have very many names.
  const likely = (await readdir(folder)).filter((one) => Math.abs(one.length - part.length) < 3);
  const folded = likely.find((one) => one.toLowerCase() === part.toLowerCase());
  const near = folded ?? nearest(part, likely);
  const hint = near === null ? "Look for it with Glob." : `Did you mean ${join(folder, near)}?`;
  return `${name} does not exist: there is no ${part} in ${folder}. ${hint}`;
}

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────

export const openFile = ({ path }: Place): Promise<FileHandle> =>
  open(path, constants.O_RDONLY | HELD);

/** The next bytes, `max` at most; fewer only at the end, whatever size the system reports. */
export async function readBytes(handle: FileHandle, max: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let got = 0; got < max;) {
    const part = Buffer.allocUnsafe(Math.min(CHUNK_BYTES, max - got));
    const { bytesRead } = await handle.read(part, 0, part.length, null);
    if (bytesRead === 0) break;
    parts.push(part.subarray(0, bytesRead));
    got += bytesRead;
  }
  return Buffer.concat(parts);
}

export function stampOf({ mtimeMs, size }: Stats, bytes: Buffer): FileStamp {
  return { mtimeMs, size, hash: new Bun.CryptoHasher("sha256").update(bytes).digest("hex") };
}

/** The bytes of a file that is about to be changed: it may be, was read, and is as it was then. */
export async function readToChange(place: Place, bench: Workbench): Promise<Buffer> {
  const { path, name } = place;
  const stats = await existing(place, bench);
  await access(path, constants.W_OK);
  await using handle = await openFile(place);
  const bytes = await readBytes(handle, WHOLE_BYTES + 1);
  if (bytes.length > WHOLE_BYTES)
    throw new UsageError(
      `${name} has ${stats.size} bytes, too many to change here: use sed or a script in Bash.`,
    );
  const stamp = bench.stamps.get(path);
  if (!stamp && bytes.length > 0 && bench.needsRead !== false)
    throw new UsageError(`${name} has not been read yet: Read it before you change it.`);
  if (stamp && stamp.hash !== stampOf(stats, bytes).hash)
    throw new UsageError(`${name} has changed since it was read (by someone else): read it again.`);
  return bytes;
}

// ── Saving ──────────────────────────────────────────────────────────────────────────────────────

/** Makes `bytes` the content of the file and stamps it; `old` is what it held, null for a new one. */
export async function save(
  place: Place,
  bytes: Buffer,
  old: Buffer | null,
  bench: Workbench,
): Promise<void> {
  const { path, name } = place;
  try {
    await mkdir(dirname(path), { recursive: true });
    const saved = await put(place, bytes, old);
    bench.stamps.set(path, stampOf(saved, bytes));
  } catch (error) {
    const why = complaint(error, name);
    if (why === null || error instanceof UsageError) throw error;
    throw new UsageError(`${why} ${old ? "The file is as it was." : "Nothing was written."}`);
  }
}

/** By renaming, so that nobody ever sees half a file; in place where that would lose something. */
async function put({ path, stats }: Place, bytes: Buffer, old: Buffer | null): Promise<Stats> {
  if (!old || !stats) return await replace(path, bytes, null);
  if (stats.nlink > 1) return await overwrite(path, bytes, old);
  try {
    return await replace(path, bytes, stats);
  } catch (error) {
    // A folder that takes no new file, an owner we cannot give, a single file that is mounted.
    if (!["EACCES", "EPERM", "EROFS", "EBUSY", "EXDEV"].includes(codeOf(error) ?? "")) throw error;
    return await overwrite(path, bytes, old);
  }
}

async function replace(path: string, bytes: Buffer, old: Stats | null): Promise<Stats> {
  const temporary = join(dirname(path), `.claw-${crypto.randomUUID()}.tmp`);
  const handle = await open(temporary, "wx", old ? 0o600 : 0o666);
  try {
    await fill(handle, bytes);
    const made = await handle.stat();
    if (old && (made.uid !== old.uid || made.gid !== old.gid)) await handle.chown(old.uid, old.gid);
    if (old) await handle.chmod(old.mode & 0o7777);
    await rename(temporary, path);
    return await handle.stat();
  } catch (error) {
    await unlink(temporary).catch(() => null); // Why it failed counts, not that a stray file stays.
    throw error;
  } finally {
    await handle.close();
  }
}

/** The old bytes have their blocks on the disk, so they can be put back when it is full. */
async function overwrite(path: string, bytes: Buffer, old: Buffer): Promise<Stats> {
  await using handle = await open(path, constants.O_RDWR | HELD);
  try {
    await fill(handle, bytes);
  } catch (error) {
    await fill(handle, old).catch((worse) => {
      const why = messageOf(worse);
      throw new UsageError(
        `${path} is damaged: neither the new nor the old content fits (${why}).`,
      );
    });
    throw error;
  }
  return await handle.stat();
}

async function fill(handle: FileHandle, bytes: Buffer): Promise<void> {
  for (let at = 0; at < bytes.length;)
    at += (await handle.write(bytes, at, bytes.length - at, at)).bytesWritten;
  await handle.truncate(bytes.length);
  await handle.datasync();
}
