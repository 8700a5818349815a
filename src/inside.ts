/**
 * Reads files of a folder that somebody else writes to (a sandbox), and nothing outside of it,
 * wherever links lead. What was opened is looked at, not its name: a name can be swapped in between.
 */
import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  realpathSync,
} from "node:fs";
import { sep } from "node:path";

/** The bytes of a regular file in `folder`. Throws a sentence's end: "it is not in the workspace". */
export function readInside(path: string, folder: string, maxBytes = 50_000_000): Buffer {
  const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const linux = process.platform === "linux";
    const opened = linux ? readlinkSync(`/proc/self/fd/${file}`) : realpathSync(path);
    if (!opened.startsWith(realpathSync(folder) + sep))
      throw new Error("it is not in the workspace");
    const stat = fstatSync(file);
    if (!stat.isFile()) throw new Error("it is no file");
    if (stat.size > maxBytes) throw new Error(`it has more than ${maxBytes} bytes`);
    return readFileSync(file);
  } finally {
    closeSync(file);
  }
}
