/**
 * What the parts of the daemon share: its stores, channels, hands and clocks. Types and nothing
 * else; serve.ts makes the one value.
 */
import type { Channel } from "../channels/channel.ts";
import type { Memory } from "../store/memory.ts";
import type { Outbox } from "../store/outbox.ts";
import type { People } from "../store/people.ts";
import type { Claim, Conversation, Queue } from "../store/queue.ts";
import type { Schedules } from "../store/schedules.ts";
import type { Store } from "../store/sessions.ts";
import type { Hands, Model } from "../types.ts";
import type { Access } from "./access.ts";
import type { Log } from "./log.ts";
import type { Questions } from "./questions.ts";

export type Daemon = {
  readonly clawHome: string;
  readonly store: Store;
  readonly queue: Queue;
  readonly outbox: Outbox;
  readonly people: People;
  readonly memory: Memory;
  readonly schedules: Schedules;
  readonly access: Access;
  readonly questions: Questions;
  /** Those that are configured, by name. */
  readonly channels: ReadonlyMap<string, Channel>;
  /** What the running turns are doing, by conversation. */
  readonly doing: Map<string, () => string>;
  /** Who builds the walls of the conversations' hands; "none": nobody. */
  readonly isolation: string;
  readonly log: Log;
  now: () => number;
  /** The model of a name, or the daemon's. Throws UsageError. */
  model: (name: string | null) => Promise<Model>;
  /** A conversation's hands with the brain's tools; kept warm, and closed by the daemon. */
  hands: (conversation: Conversation, folder: string) => Hands;
  /** Something may be ready to be worked on. */
  wakeTurns: () => void;
  /** Something may be ready to go out. */
  wakeSenders: () => void;
  /** A conversation's turn is to end. */
  interrupt: (conversationId: string) => void;
};

/** A claim and all that working on it needs. */
export type Work = Claim & { daemon: Daemon; signal: AbortSignal };
