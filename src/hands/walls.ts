/**
 * What a sandbox is, whatever runs it: the words between the lifecycle (container.ts) and the
 * runtimes (runtime.ts, sandbox.ts). Types only.
 */
import type { Mount } from "../types.ts";

/** Everything about a sandbox that is to be started. Paths are absolute; those outside are real. */
export type Walls = {
  /** Unique on this machine, of [a-z0-9-]. */
  name: string;
  /** Which claw it belongs to (label "claw"), and which of its boxes (label "claw.box"). */
  install: string;
  box: string;
  /** An image's name; bubblewrap has none and ignores it. */
  image: string;
  /** The runtime below docker ("runsc"), or null for its default. */
  runtime: string | null;
  /** The claw executable outside; inside it is INSIDE_BINARY. */
  binary: string;
  /** Whose files it makes; never 0. */
  user: { uid: number; gid: number };
  /** The working folder and HOME; one of the mounts. */
  folder: string;
  /** No two have the same `to`, none is in another's read-only part unless it comes later. */
  mounts: readonly Mount[];
  /** Files inside that are covered by an empty read-only one. */
  covers: readonly string[];
  /** The empty file outside that covers them. */
  emptyFile: string;
  env: Readonly<Record<string, string>>;
  limits: { memoryBytes: number; cpus: number; pids: number; tmpBytes: number };
  /** What runs inside, e.g. [INSIDE_BINARY, "hands", "/box"]. */
  command: readonly string[];
};

export const INSIDE_BINARY = "/usr/local/bin/claw";
