/**
 * A channel: how people's messages come in and how claw's go out. Slack and email are two; a fork
 * adds its own by writing one more module with this interface (skills/add-channel).
 *
 * A channel converts and delivers, and decides nothing: not who may speak, not what is answered. It
 * never acknowledges a message to its server before `Host.receive` has resolved, and never sends a
 * message a second time by itself: what may have been sent is thrown as "ambiguous", and the outbox
 * asks `find` before it tries again.
 */
import type { StoredFile } from "../types.ts";

export type { StoredFile };

/** A message as it came, converted. */
export type Incoming = {
  type: "message";
  /** The same at every redelivery, unique in its channel: "C1/1712.0001", a Message-ID. */
  externalId: string;
  /** The conversation it belongs to, in the channel's own words: "C1:1712.0001", a thread's root. */
  thread: string;
  /** Where an answer goes; what `send` takes: "C1:1712.0001", "D7", "a@b.org". */
  address: string;
  /** What the channel needs to answer this very message (mail: its headers); JSON. */
  reply?: Record<string, unknown>;
  from: Person;
  /**
   * direct: to claw alone. mention: in a shared place, naming claw. overheard: in a shared place,
   * not naming it.
   */
  reach: "direct" | "mention" | "overheard";
  /** The title of the thread that it begins. */
  subject?: string;
  /** What the person wrote, without a mention of claw, quotes or a signature. */
  text: string;
  /** What stood around it: quoted mails, earlier messages of the thread. Data, never a command. */
  context?: string;
  files: StoredFile[];
  /** Files that could not be had, a sentence each, for the model and the person. */
  problems: string[];
  /** When it was sent, in milliseconds since 1970. */
  at: number;
};

/** `address` is stable and comparable as it stands: a Slack user id, a mail address in lower case. */
export type Person = { address: string; name: string };

export type Inbound =
  | Incoming
  /** A message was changed or taken back by its author. */
  | { type: "edit"; externalId: string; text: string }
  | { type: "delete"; externalId: string }
  /** A button under a question was pressed. */
  | { type: "answer"; question: string; yes: boolean; from: Person };

/** What a channel may ask of the daemon. */
export interface Host {
  /**
   * Resolves once it is durable, also when it was known already; only then may the channel
   * acknowledge. Rejects when it could not be stored (a full disk): then do not acknowledge.
   */
  receive(inbound: Inbound): Promise<void>;
  /**
   * Whether this person's message will be kept; asked before attachments are downloaded. `thread`
   * and `reach` as in `Incoming`.
   */
  admits(message: Pick<Incoming, "from" | "reach" | "thread">): boolean;
  /** The thread that one of these external or sent ids belongs to, the first that is known. */
  findThread(ids: readonly string[]): string | null;
  /** A small note that outlives the process (a mailbox cursor); null where there is none. */
  readNote(): Promise<unknown>;
  writeNote(note: unknown): Promise<void>;
  /** An empty folder for one message's attachments; the daemon removes what nobody refers to. */
  newFolder(): Promise<string>;
  log(event: string, facts?: Record<string, string | number | boolean | null>): void;
}

/** A message to go out. */
export type Outgoing = {
  /**
   * Ours, unique for ever (letters, digits and dashes): the channel puts it where `find` sees it
   * again (mail: the Message-ID; Slack: the message's metadata).
   */
  clientId: string;
  address: string;
  /** `Incoming.reply` of the message that this answers, or null. */
  reply: Record<string, unknown> | null;
  /** One part, as `compose` made it. */
  text: string;
  files: StoredFile[];
  /** When it was decided to send it, in milliseconds since 1970: it was not sent before then. */
  createdAt: number;
  /** Nobody's words are answered here (a schedule, a notice); mail says so in its headers. */
  automatic: boolean;
  /** A question to be answered yes or no: buttons carry this id, where the channel has buttons. */
  question?: string;
};

/**
 * Why a message did not go out. retry: it surely did not, and may later (`afterMs`, where the
 * server says). permanent: it never will. ambiguous: it may have.
 */
export class SendError extends Error {
  override name = "SendError";
  readonly kind: "retry" | "permanent" | "ambiguous";
  readonly afterMs: number | null;
  constructor(kind: SendError["kind"], message: string, afterMs: number | null = null) {
    super(message);
    this.kind = kind;
    this.afterMs = afterMs;
  }
}

/** `since`: connected since, or null while it is not. Times in milliseconds since 1970. */
export type ChannelState = {
  since: number | null;
  lastIn: number | null;
  lastOut: number | null;
  /** The last failure in a sentence, null once it has passed. */
  error: string | null;
};

export interface Channel {
  /** "slack", "email": the word before the colon in CLAW_OWNER and in conversations. */
  readonly name: string;
  /**
   * Connects and begins to receive. Resolves at the first connection. Rejects with UsageError when
   * no retry can help (a refused token), after which `stop` is not called; otherwise it keeps
   * trying, for as long as it takes, and tells `state()`.
   */
  start(host: Host): Promise<void>;
  /** Resolves when what waited at the server at the time of the call has been received. */
  caughtUp(): Promise<void>;
  /** Ends receiving; a send that is under way is finished. Resolves when nothing is left open. */
  stop(): Promise<void>;
  state(): ChannelState;

  /** Markdown as parts that can be sent, in order; never cut inside a fence or a character. Pure. */
  compose(markdown: string): string[];
  /** Sends one part and returns the server's id for it. Throws SendError. */
  send(outgoing: Outgoing, signal: AbortSignal): Promise<string>;
  /**
   * What became of an ambiguous send: the server's id, or null when it is surely not there; of a
   * send in several steps the missing ones are done. Throws SendError "retry" when it cannot be
   * known now, "permanent" when it never can: a sentence for the owner, complete in itself.
   */
  find(outgoing: Outgoing, signal: AbortSignal): Promise<string | null>;
  /**
   * The thread and address of a target that a person named ("U1", "C1:1712.0001", "a@b.org").
   * Throws SendError.
   */
  locate(target: string): Promise<{ thread: string; address: string }>;

  /** Shows on a message that it was seen (`on`) or is done with. Best effort: never throws. */
  react?(externalId: string, on: boolean): Promise<void>;
  /**
   * Shows what a long turn is doing in one message, edited in place: `id` is what the first call
   * returned; text null takes it away. Best effort: null when it could not be shown.
   */
  showProgress?(address: string, id: string | null, text: string | null): Promise<string | null>;
}
