/**
 * What a sandbox is, whatever runs it: the words between the lifecycle (container.ts) and those who
 * build the walls (bubblewrap.ts, and runtime.ts for containers).
 */
import type { Mount } from "../types.ts";

/** Who builds walls: bubblewrap, or a container runtime. */
export type Builder = {
  /** "bwrap", "docker", "docker (runsc)": as people are told. */
  readonly name: string;
  /** Whose files a worker makes, seen from outside; null: ours. */
  readonly user: { uid: number; gid: number } | null;
  /** How often a worker has to look for orders itself: where watching does not cross the mount. */
  readonly pollMs: number;
  /** What has to be there before anything starts (an image); says its progress. */
  prepare(onProgress: (line: string) => void): Promise<void>;
  /** Throws a sentence when it cannot. */
  start(walls: BareWalls): Promise<Sandbox>;
  /** One that an earlier process started, by its mark; null: it is gone. */
  find(mark: string): Promise<Sandbox | null>;
  /** All of that claw that are left, dead ones too, as far as somebody keeps a list of them. */
  list(install: string): Promise<Sandbox[]>;
};

/** A sandbox that was started. */
export type Sandbox = {
  /** By which a later process finds it. */
  readonly mark: string;
  /** Why it ended, or null while it runs. */
  cause(): Promise<string | null>;
  /** Resolves with why, once it has ended by itself, where that can be known at once. */
  readonly ended?: Promise<string>;
  /** Ends it and all that runs in it; resolves when that is done. */
  kill(): Promise<void>;
};

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
  /** Whether it goes on when its host dies, so that the next one finds what it has done. */
  outlivesHost: boolean;
  /** What runs inside, e.g. [INSIDE_BINARY, "hands", "/box"]. */
  command: readonly string[];
};

/** Walls as the lifecycle knows them: an image is the builder's business. */
export type BareWalls = Omit<Walls, "image" | "runtime">;

export const INSIDE_BINARY = "/opt/claw/bin/claw";

/** All that programs inside know of their environment; the folder is HOME besides. */
export const INSIDE_ENV = {
  PATH: "/opt/claw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
  LANG: "C.UTF-8",
  TERM: "dumb",
  TMPDIR: "/tmp",
};
